"""Runs the study of sampler-aware training: every run of it, one after the other, in one command.

    python benchmarks/df_aware.py                        # all; again after a stop: goes on where it was
    python benchmarks/df_aware.py --list                 # what is to be done, and what is done
    python benchmarks/df_aware.py --tasks word_problems --seeds 0 1 2 --starts finetune
    python benchmarks/df_aware.py --base pointer_chase 0 outputs/pointer_chase
    python benchmarks/df_aware.py --again                # compare the samplers of finished runs again
    python benchmarks/df_aware.py --suffix=-compiled --set logger=none comparison.compile=true

For every task and seed, with as many steps as ``experiment=df_aware/…`` says: plain from scratch; every objective as a
fine-tune of that model (or of ``--base TASK SEED FOLDER``); last ``--recipe`` from scratch. A step of the others takes
longer than one of plain, so plain training has a second run in each place, of *equal time*: as many steps as it makes
while the slowest of the others is trained. A recipe that begins like plain training goes on from plain's last
checkpoint before it differs, and plain's time until there counts as its own: it is the run that it would have been. A
finished run has a comparison.json and is skipped; one that was cut off is resumed. What the page needs of a run goes to
``docs/results/data/df_aware/RUN``; then: python docs/update_df_aware.py
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from recdepth import checks  # noqa: E402
from recdepth.objectives import Weighted  # noqa: E402
from recdepth.reporting.study import choices_of, equal_steps  # noqa: E402

PLAIN = "next_token"
OBJECTIVES = ["next_token", "staircase", "draft_exposure", "independent_depths", "depth_consistency", "state_noise"]
OBJECTIVES += ["terminal_kv", "aware", "aware_answers"]
DATA = ROOT / "docs" / "results" / "data" / "df_aware"


@dataclass(frozen=True)
class Run:
    """One run of the study.

    Attributes:
        name: of its folder.
        overrides: of train.py.
        as_long_as: runs in the longest of whose times this one is trained, instead of so many steps.
        pace: the run that tells how many steps that makes.
        trunk: a run of plain training with the same settings, whose checkpoints serve this one until its terms start.
    """

    name: str
    overrides: tuple[str, ...]
    as_long_as: tuple[str, ...] = ()
    pace: str = ""
    trunk: str = ""

    def folder(self, outputs: Path) -> Path:
        return outputs / self.name

    def finished(self, outputs: Path) -> bool:
        return (self.folder(outputs) / "comparison.json").is_file()

    def command(self, outputs: Path) -> list[str]:
        """Start it, or go on from its last checkpoint.

        Raises:
            ValueError: if a run whose time it is to take is not finished.
        """
        folder = self.folder(outputs)
        words = [sys.executable, str(ROOT / "train.py"), *self.overrides, f"hydra.run.dir={folder}"]
        if self.as_long_as:
            steps = max(equal_steps(outputs / name, outputs / self.pace) for name in self.as_long_as)
            tags = ",".join([*self._config().tags, "equal_time"])
            words += [f"trainer.max_steps={steps}", "trainer.max_time=null", f"tags=[{tags}]"]
        if (folder / "checkpoints" / "last.ckpt").exists():  # with all its steps: the samplers are compared
            words.append(f"resume={folder}")
        elif self.trunk:
            words += self._branch(outputs)
        return words

    def _config(self) -> DictConfig:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("train", overrides=[*self.overrides, "paths.run_dir=none"])

    def _branch(self, outputs: Path) -> list[str]:
        """What lets a new run go on from its trunk, whose records until there become its own; nothing without one."""
        cfg = self._config()
        trunk, objective = outputs / self.trunk, checks.build(cfg, "objective")
        saved = {int(p.stem.removeprefix("step_")): p for p in (trunk / "checkpoints").glob("step_*.ckpt")}
        step = max((s for s in saved if _plain_until(s / cfg.trainer.max_steps, objective)), default=None)
        if step is None:
            return []
        lines = (trunk / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        self.folder(outputs).mkdir(parents=True, exist_ok=True)
        shared = "".join(line for line in lines if json.loads(line)["step"] < step)
        (self.folder(outputs) / "metrics.jsonl").write_text(shared, encoding="utf-8")
        apart = ["logger.continue_run=false"] if "continue_run" in (cfg.logger or {}) else []
        return [f"resume={saved[step]}", *apart]


def _plain_until(done: float, objective: Any) -> bool:
    """Whether training by ``objective`` is plain training until ``done`` (0 … 1) of it is over."""
    late = isinstance(objective, Weighted) and objective.weights[PLAIN] == 1.0
    return late and done <= min((objective.starts.get(name, 0.0) for name in objective.active_at(1.0)), default=1.0)


def study(args: argparse.Namespace) -> Iterator[Run]:
    """All runs in an order in which each finds what it starts from."""
    bases = {(task, int(seed)): folder for task, seed, folder in args.base}
    places = [(task, seed) for seed in args.seeds for task in args.tasks]
    for task, seed in places:
        if (task, seed) not in bases:
            yield one(args, task, "scratch", PLAIN, seed)
        if "finetune" in args.starts:
            start = bases.get((task, seed), str(args.outputs / f"{task}-scratch-{PLAIN}-{seed}{args.suffix}"))
            made = [one(args, task, "finetune", each, seed, f"init_from={start}") for each in args.objectives]
            yield from made if "steps" in args.budgets else ()
            if "time" in args.budgets:
                yield equal_time(args, task, "finetune", seed, made, f"init_from={start}")
    for task, seed in places if "scratch" in args.starts else ():
        recipe = one(args, task, "scratch", args.recipe, seed)
        if (task, seed) not in bases:
            recipe = replace(recipe, trunk=one(args, task, "scratch", PLAIN, seed).name)
        yield from [recipe] if "steps" in args.budgets else []
        if "time" in args.budgets:
            yield equal_time(args, task, "scratch", seed, [recipe])


def one(args: argparse.Namespace, task: str, start: str, objective: str, seed: int, *more: str) -> Run:
    """A run of as many steps as its experiment says."""
    experiment = task if start == "scratch" else f"{task}_finetune"
    words = [f"experiment=df_aware/{experiment}", f"objective={objective}", f"seed={seed}", *args.set, *more]
    return Run(f"{task}-{start}-{objective}-{seed}{args.suffix}", tuple(words))


def equal_time(args: argparse.Namespace, task: str, start: str, seed: int, others: Sequence[Run], *more: str) -> Run:
    """Plain training for as long as the slowest of the others took."""
    plain = one(args, task, start, PLAIN, seed, *more)
    name = f"{task}-{start}-{PLAIN}-time-{seed}{args.suffix}"
    return Run(name, plain.overrides, tuple(run.name for run in others), pace=plain.name)


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
    parser.add_argument("--tasks", nargs="*", default=["word_problems", "pointer_chase_wide"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--starts", nargs="*", default=["scratch", "finetune"], choices=["scratch", "finetune"])
    parser.add_argument("--objectives", nargs="*", default=OBJECTIVES, help="of the fine-tunes")
    parser.add_argument("--budgets", nargs="*", default=["steps", "time"], choices=["steps", "time"])
    parser.add_argument("--recipe", default="aware", help="the objective that is also trained from scratch")
    parser.add_argument("--base", nargs=3, action="append", default=[], metavar=("TASK", "SEED", "FOLDER"))
    parser.add_argument("--outputs", type=Path, default=Path("outputs/df_aware"))
    parser.add_argument("--set", nargs="*", default=["logger=none"], help="overrides of every run")
    parser.add_argument("--suffix", default="", help="of the runs' names: other overrides beside those of before")
    parser.add_argument("--prefix", type=shlex.split, default=[], help="words before every command, such as 'nice'")
    parser.add_argument("--again", action="store_true", help="compare the samplers of finished runs again")
    parser.add_argument("--list", action="store_true", help="only say what there is to do")
    args = parser.parse_args()
    runs = list(study(args))
    failed = []
    for number, run in enumerate(runs, 1):
        done = run.finished(args.outputs)
        print(f"[{number}/{len(runs)}] {run.name}: {'finished' if done else 'to do'}", flush=True)
        if args.list:
            continue
        if not done or args.again:
            try:
                command = run.command(args.outputs)
            except ValueError as error:  # the runs whose time it is to take have failed
                print(error, file=sys.stderr)
                failed.append(run.name)
                continue
            result = subprocess.run([*args.prefix, *command], check=False)
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
