"""Runs the study of sampler-aware training: every run of it, one after the other, in one command.

    python benchmarks/df_aware.py                        # all; again after a stop: goes on where it was
    python benchmarks/df_aware.py --list                 # what is to be done, and what is done
    python benchmarks/df_aware.py --tasks word_problems --seeds 0 1 2 --starts finetune
    python benchmarks/df_aware.py --base pointer_chase 0 outputs/pointer_chase

For every task and seed: plain and ``--recipe`` from scratch, then every objective as a fine-tune of the plain model
from scratch (or of ``--base TASK SEED FOLDER``), each with equal steps and with equal time. A finished run has a
comparison.json and is skipped; one that was cut off is resumed. What the page needs of a run goes to
``docs/results/data/df_aware/RUN``; then: python docs/update_df_aware.py
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from recdepth.reporting.study import choices_of  # noqa: E402

PLAIN = "next_token"
OBJECTIVES = ["next_token", "staircase", "draft_exposure", "independent_depths", "depth_consistency", "state_noise"]
OBJECTIVES += ["terminal_kv", "aware"]
DATA = ROOT / "docs" / "results" / "data" / "df_aware"


@dataclass(frozen=True)
class Run:
    """One run of the study.

    Attributes:
        name: of its folder.
        overrides: of train.py.
    """

    name: str
    overrides: tuple[str, ...]

    def folder(self, outputs: Path) -> Path:
        return outputs / self.name

    def finished(self, outputs: Path) -> bool:
        return (self.folder(outputs) / "comparison.json").is_file()

    def command(self, outputs: Path) -> list[str]:
        """Start it, or go on from its last checkpoint if it was cut off in training."""
        folder = self.folder(outputs)
        words = [sys.executable, str(ROOT / "train.py"), *self.overrides, f"hydra.run.dir={folder}"]
        if (folder / "checkpoints" / "last.ckpt").exists() and not (folder / "model").is_dir():
            words += [f"resume={folder}", "init_from=null"]
        return words


def study(args: argparse.Namespace) -> Iterator[Run]:
    """All runs in an order in which each finds what it starts from."""
    bases = {(task, int(seed)): folder for task, seed, folder in args.base}
    for seed in args.seeds:
        for task in args.tasks:
            common = [f"seed={seed}", f"comparison.accuracy_prompts={args.accuracy_prompts}", *args.set]
            plain = f"{task}-scratch-steps-{PLAIN}-{seed}"
            if "scratch" in args.starts:
                limits = budgets(args.scratch_steps, args.scratch_time)
                for objective in (PLAIN, args.recipe):
                    for budget, limit in limits.items():
                        words = [f"experiment=df_aware/{task}", f"objective={objective}", *common, *limit]
                        yield Run(f"{task}-scratch-{budget}-{objective}-{seed}", tuple(words))
            if "finetune" in args.starts:
                start = bases.get((task, seed), str(args.outputs / plain))
                for objective in args.objectives:
                    for budget, limit in budgets(args.finetune_steps, args.finetune_time).items():
                        words = [f"experiment=df_aware/{task}_finetune", f"objective={objective}", *common, *limit]
                        yield Run(f"{task}-finetune-{budget}-{objective}-{seed}", (*words, f"init_from={start}"))


def budgets(steps: int, time: str) -> dict[str, list[str]]:
    """Overrides for as many steps, and for as much time; 0 or an empty text leaves a budget out."""
    found = {}
    if steps:
        found["steps"] = [f"trainer.max_steps={steps}", "trainer.max_time=null", f"trainer.val_check_interval={steps}"]
    if time:
        found["time"] = ["trainer.max_steps=-1", f"trainer.max_time='{time}'", "trainer.val_check_interval=100000"]
    return found


def keep(folder: Path) -> None:
    """Copy what the results page needs."""
    target = DATA / folder.name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / ".hydra" / "config.yaml", target / "config.yaml")
    for name in ("metrics.jsonl", "comparison.json"):
        shutil.copyfile(folder / name, target / name)
    (target / "choices.yaml").write_text(yaml.safe_dump(choices_of(folder)), encoding="utf-8")
    facts = json.loads((folder / ".hydra" / "provenance.json").read_text(encoding="utf-8"))
    kept = {name: facts[name] for name in ("git_commit", "git_dirty", "python", "torch", "threads") if name in facts}
    (target / "provenance.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Run what is not finished; a run that fails is named, the others go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=["word_problems", "pointer_chase"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--starts", nargs="*", default=["scratch", "finetune"], choices=["scratch", "finetune"])
    parser.add_argument("--objectives", nargs="*", default=OBJECTIVES, help="of the fine-tunes")
    parser.add_argument("--recipe", default="aware", help="the objective that is also trained from scratch")
    parser.add_argument("--base", nargs=3, action="append", default=[], metavar=("TASK", "SEED", "FOLDER"))
    parser.add_argument("--scratch-steps", type=int, default=1000, help="0: no runs of equal steps")
    parser.add_argument("--scratch-time", default="00:00:10:00", help="DD:HH:MM:SS; empty: none")
    parser.add_argument("--finetune-steps", type=int, default=200)
    parser.add_argument("--finetune-time", default="00:00:02:00", help="DD:HH:MM:SS")
    parser.add_argument("--accuracy-prompts", type=int, default=700, help="per run: three seeds make 2100")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/df_aware"))
    parser.add_argument("--set", nargs="*", default=["compile=false", "logger=none"], help="overrides of every run")
    parser.add_argument("--prefix", type=shlex.split, default=[], help="words before every command, such as 'nice'")
    parser.add_argument("--list", action="store_true", help="only say what there is to do")
    args = parser.parse_args()
    runs = list(study(args))
    failed = []
    for number, run in enumerate(runs, 1):
        done = run.finished(args.outputs)
        print(f"[{number}/{len(runs)}] {run.name}: {'finished' if done else 'to do'}", flush=True)
        if args.list:
            continue
        if not done:
            result = subprocess.run([*args.prefix, *run.command(args.outputs)], check=False)
            if result.returncode == 130:  # Ctrl-C
                return 130
            if result.returncode or not run.finished(args.outputs):
                failed.append(run.name)
                continue
        keep(run.folder(args.outputs))
    for name in failed:
        print(f"{name} failed; the same command tries again", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
