"""Runs of a study, from their folders: what was trained how, and how the samplers fared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from recdepth.evaluation import Interval, mean_interval
from recdepth.evaluation.compare import EQUAL_DIFFERENCE

PLAIN, EQUAL_TIME = "next_token", ", equal time"


@dataclass(frozen=True)
class Setting:
    """What runs of a study have in common but for training and seed.

    Attributes:
        task: NAME of experiment ``df_aware/NAME`` or ``df_aware/NAME_finetune``; without one the choice of ``data``.
        start: ``finetune`` of a plain model where the run's tags say so, else ``scratch``.
        compiled: whether samplers were timed as compiled graphs.
    """

    task: str
    start: str
    compiled: bool = False

    def __str__(self) -> str:
        task = self.task.replace("_", " ").capitalize()
        start = "from scratch" if self.start == "scratch" else "fine-tuned"
        return f"{task}, {start}, compiled samplers" if self.compiled else f"{task}, {start}"


@dataclass(frozen=True)
class StudyRun:
    """One run.

    Attributes:
        setting: see :class:`Setting`.
        training: the choice of ``objective``, with "equal time" where the run has as many steps as take another's time.
        seed: of the run.
        config: the run's configuration, unresolved.
        rows: its comparison, by sampler.
        metrics: the last value of every metric.
        seconds: of the run up to the last logged step of training, over all of its sessions where it was resumed.
        steps: optimizer steps.
        step_seconds: median seconds of a step.
        commit: of the code that made it, or "".
    """

    setting: Setting
    training: str
    seed: int
    config: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, float]
    seconds: float
    steps: int
    step_seconds: float
    commit: str = ""

    @property
    def reference(self) -> str:
        """The name of AR at r."""
        return next(iter(self.rows))


def read_run(folder: Path) -> StudyRun:
    """Read a run folder, or what ``benchmarks/df_aware.py`` keeps of one.

    Raises:
        ValueError: naming the file that is missing.
    """
    config = yaml.safe_load(_text(folder, "config.yaml"))
    choices = yaml.safe_load(_text(folder, "choices.yaml") if (folder / "choices.yaml").exists() else _choices(folder))
    comparison = json.loads(_text(folder, "comparison.json"))
    lines = _records(folder)
    training = [line for line in lines if "train/loss" in line]
    latest: dict[str, float] = {}
    for line in lines:
        latest |= {name: value for name, value in line.items() if value is not None}
    setting = Setting(
        task=_task(choices),
        start="finetune" if "finetune" in config["tags"] else "scratch",
        compiled=bool(config.get("comparison", {}).get("compile")),
    )
    return StudyRun(
        setting=setting,
        training=choices["objective"] + (EQUAL_TIME if _of_equal_time(config) else ""),
        seed=config["seed"],
        config=config,
        rows={row["sampler"]: row for row in comparison},
        metrics=latest,
        seconds=_seconds(training),
        steps=training[-1]["step"] + 1 if training else 0,
        step_seconds=_step_seconds(training),
        commit=_commit(folder),
    )


def equal_steps(folder: Path, plain: Path) -> int:
    """How many steps at the pace of one run take as long as another run took.

    A run that has gone on from a checkpoint of the other shares its records until there, and these steps with it. The
    pace is that of the steps behind, which are deeper. Medians leave out what other work on the machine took in
    between; what the run's graphs took to compile counts.

    Args:
        folder: the run whose time counts.
        plain: the run at whose pace.

    Raises:
        ValueError: naming the file that is missing.
    """
    own, other = ([line for line in _records(f) if "train/loss" in line] for f in (folder, plain))
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, other, strict=False)))
    begin = own[shared - 1]["step"] + 1 if shared else 0
    own, pace = own[shared:], _step_seconds(other[shared:])
    behind = own[-1]["step"] - own[0]["step"]
    seconds = own[0]["seconds"] + (behind * _step_seconds(own) if behind else 0.0)
    return int(begin + math.ceil(seconds / pace))


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _text(folder, "metrics.jsonl").splitlines()]


def _of_equal_time(config: Mapping[str, Any]) -> bool:
    """Runs of old had a time instead of a number of steps."""
    return "equal_time" in config["tags"] or config["trainer"]["max_steps"] == -1


def _task(choices: Mapping[str, str]) -> str:
    group, _, name = str(choices.get("experiment")).rpartition("/")
    return name.removesuffix("_finetune") if group == "df_aware" else choices["data"]


def _commit(folder: Path) -> str:
    try:
        return str(json.loads(_text(folder, "provenance.json")).get("git_commit", ""))
    except ValueError:  # runs of old noted none
        return ""


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """A resumed run's clock starts anew: the ends of all sessions add up."""
    clock = [line["seconds"] for line in lines]
    return sum(now for now, following in zip(clock, [*clock, 0.0][1:], strict=True) if following < now)


def _step_seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Between two lines of training, on average: steps may become dearer on the way. Medians over a twentieth of the
    training each leave out the odd pair with a validation or a start between."""
    pairs = [(b["step"] - a["step"], b["seconds"] - a["seconds"]) for a, b in pairwise(lines)]
    rates = [seconds / steps for steps, seconds in pairs if steps > 0 and seconds > 0]  # a resumed run's clock is new
    parts = np.array_split(rates, min(20, max(1, len(rates) // 3)))
    return float(np.mean([np.median(part) for part in parts])) if rates else math.nan


def choices_of(folder: Path) -> dict[str, str]:
    """The choices of ``data`` and ``objective`` that Hydra noted in a run folder."""
    choices = yaml.safe_load(_choices(folder))
    return {name: str(choices[name]) for name in ("data", "objective", "experiment")}


def _choices(folder: Path) -> str:
    noted = yaml.safe_load(_text(folder, ".hydra/hydra.yaml"))
    return json.dumps(noted["hydra"]["runtime"]["choices"])


def _text(folder: Path, name: str) -> str:
    for path in (folder / name, folder / ".hydra" / name):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise ValueError(f"{folder} lacks {name}; give the folder of a finished run with compare=true")


@dataclass(frozen=True)
class Cell:
    """A sampler on the models of one training in one setting, over seeds; intervals are 95 %, of the mean over seeds.

    Attributes:
        seeds: how many.
        accuracy: mean score; of a sampler with fewer prompts, what its difference to AR at r makes of that one's.
        difference: to AR at r on the same model.
        speedup: over AR at r on the same model.
        speedup_equal: over the fastest one-token-at-a-time sampler of equal accuracy on the same model.
        core_passes, token_passes, flips: per token.
    """

    seeds: int
    accuracy: Interval
    difference: Interval
    speedup: Interval
    speedup_equal: Interval
    core_passes: Interval
    token_passes: Interval
    flips: Interval


def cell(runs: Sequence[StudyRun], sampler: str) -> Cell:
    """Runs of one training and setting that differ in the seed."""

    def over_seeds(column: str) -> Interval:
        return mean_interval([run.rows[sampler][column] for run in runs])

    accuracies = [run.rows[run.reference]["accuracy"] + run.rows[sampler]["difference"] for run in runs]
    return Cell(
        seeds=len(runs),
        accuracy=mean_interval(accuracies),
        difference=over_seeds("difference"),
        speedup=over_seeds("speedup"),
        speedup_equal=over_seeds("speedup_equal_accuracy"),
        core_passes=over_seeds("core_passes_per_token"),
        token_passes=over_seeds("token_passes_per_token"),
        flips=over_seeds("flips_per_token"),
    )


def grouped(runs: Iterable[StudyRun]) -> dict[Setting, dict[str, list[StudyRun]]]:
    """Runs by setting and training, plain first, seeds in order."""
    found: dict[Setting, dict[str, list[StudyRun]]] = {}
    order = sorted(runs, key=lambda r: (str(r.setting), not r.training.startswith(PLAIN), r.training, r.seed))
    for run in order:
        found.setdefault(run.setting, {}).setdefault(run.training, []).append(run)
    return found


def fastest_equal(
    runs: Sequence[StudyRun], needed: float, least_difference: float = EQUAL_DIFFERENCE
) -> tuple[str, Cell] | None:
    """The fastest sampler that drafts, at equal accuracy; None if there is none.

    Equal: its mean accuracy is at least ``needed`` less half a point, and its mean difference to AR at r of the same
    models is at least ``least_difference``.
    """
    drafting = [
        name
        for name, row in runs[0].rows.items()
        if row["settings"]["name"] not in ("autoregressive", "adaptive") and all(name in run.rows for run in runs)
    ]
    good = {name: cell(runs, name) for name in drafting}
    good = {
        name: each
        for name, each in good.items()
        if each.accuracy.value >= needed + EQUAL_DIFFERENCE and each.difference.value >= least_difference
    }
    return max(good.items(), key=lambda pair: pair[1].speedup.value, default=None)


def gain(ours: tuple[Sequence[StudyRun], str], base: tuple[Sequence[StudyRun], str]) -> Interval | None:
    """How much larger the speed-up over AR at r is, seed by seed; None without a common seed.

    Args:
        ours, base: runs of a training, and the sampler.
    """
    theirs = {run.seed: run.rows[base[1]]["speedup"] for run in base[0]}
    ratios = [run.rows[ours[1]]["speedup"] / theirs[run.seed] for run in ours[0] if run.seed in theirs]
    return mean_interval(ratios) if ratios else None
