#!/usr/bin/env bash
# A search of 20 trials, all of it killed after some, then resumed from its storage. From the repository's root:
#   bash docs/examples/search_killed_and_resumed.sh RUN_FOLDER
set -uo pipefail
sweep=outputs/sample/multiruns/search
rm -rf "$sweep"
finished() { grep -l '"state": "finished"' "$sweep"/*/status.json 2>/dev/null | wc -l; }
trials() {
  python - <<PYTHON
import collections, optuna
trials = optuna.load_study(study_name="search", storage="sqlite:///$sweep/study.db").trials
print("trials in the storage:", dict(collections.Counter(trial.state.name for trial in trials)))
PYTHON
}
python sample.py -m hparams_search=sampler_optuna sweep.name=search run_dir="$1" num_prompts=32 hydra/launcher=pool \
  hydra.sweeper.n_jobs=2 hydra.sweeper.sampler.seed=0 &
search=$!
until [ "$(finished)" -ge 7 ]; do sleep 0.2; done
sleep 3
kill -KILL "$search" $(pgrep -P "$search")
wait "$search" 2>/dev/null
echo "killed after $(finished) finished jobs"
trials
python sample.py sweep.resume="$sweep"
echo "exit code $?; $(finished) finished jobs"
trials
