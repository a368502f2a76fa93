#!/usr/bin/env bash
# A sweep of 12 small trainings of which two fail and one is killed; then it is resumed. From the repository's root:
#   bash docs/examples/sweep_with_failures.sh [launcher: pool or local]
set -uo pipefail
sweep=outputs/train/multiruns/failures
rm -rf "$sweep"
# Jobs 3 and 7 cannot make their folders of checkpoints: files of that name are in the way.
mkdir -p "$sweep/3" "$sweep/7"
touch "$sweep/3/checkpoints" "$sweep/7/checkpoints"
# Job 5 is killed as soon as it trains.
(
  until [ -s "$sweep/5/metrics.jsonl" ]; do sleep 0.2; done
  kill -KILL "$(python -c "import json; print(json.load(open('$sweep/5/status.json'))['pid'])")"
) &
python train.py -m sweep.name=failures hydra/launcher="${1:-pool}" optimizer.lr=1e-3,3e-3,1e-2 model.mean_recurrence=2,4 \
  seed=0,1 model=tiny trainer.max_steps=60 trainer.log_every_n_steps=2 trainer.limit_val_batches=2 evaluation.items=8 \
  callbacks.sampler_evaluation.during_training=false report=false
echo "exit code $?"
count() { find "$sweep" -name 'run-*.wandb' | sed 's/.*run-//' | sort -u | wc -l; }
echo "W&B runs: $(count)"
# What stood in the way of job 3 is removed, job 7 will fail again.
rm -f "$sweep/3/checkpoints"
python train.py sweep.resume="$sweep"
echo "exit code $?"
echo "W&B runs: $(count)"
rm -f "$sweep/7/checkpoints"
python train.py sweep.resume="$sweep"
echo "exit code $?"
echo "W&B runs: $(count)"
