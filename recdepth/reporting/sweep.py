"""A sweep folder: one numbered folder a job, each with ``status.json``, and ``sweep.json`` about all of them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .curves import read_metrics
from .status import FILE as STATUS
from .status import State, Status, read_status

PLAN = "sweep.json"
Direction = Literal["minimize", "maximize"]
_OVERRIDE = re.compile(r"\+{0,2}(?P<key>[^=]+)=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True)
class Job:
    """A job with what its folder holds.

    Attributes:
        status: see :class:`Status`.
        folder: of the job; need not exist yet.
        settings: its overrides by key, numbers as numbers.
        metrics: the last value of everything that it logged, and its optimized metrics.
    """

    status: Status
    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Sweep:
    """A sweep folder.

    Attributes:
        folder: of the sweep.
        program: ``train`` or ``sample``.
        command: the overrides that started it.
        metrics: names of the optimized metrics, the first one first.
        directions: minimize or maximize, one for each of them.
        jobs: by number; the planned ones that have not started too.
    """

    folder: Path
    program: str
    command: list[str]
    metrics: list[str]
    directions: list[Direction]
    jobs: list[Job]

    @property
    def name(self) -> str:
        """Of the sweep, and of its group in W&B."""
        return self.folder.resolve().name

    @property
    def swept(self) -> list[str]:
        """The keys that differ between jobs, in the order of the command."""
        keys = dict.fromkeys(key for job in self.jobs for key in job.settings)
        return [key for key in keys if len({str(job.settings.get(key)) for job in self.jobs}) > 1]

    def of_state(self, *states: State) -> list[Job]:
        """The jobs in one of these states."""
        return [job for job in self.jobs if job.status.state in states]

    @property
    def finished(self) -> list[Job]:
        """The jobs that have finished."""
        return self.of_state("finished")

    @property
    def unfinished(self) -> list[Job]:
        """The jobs that resuming would run."""
        return [job for job in self.jobs if job.status.state != "finished"]


def read_sweep(folder: Path | str) -> Sweep:
    """Read a sweep folder; a job whose process has died without a word counts as killed.

    Args:
        folder: one with ``sweep.json``.

    Raises:
        ValueError: if there is none.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    found = {path.parent: read_status(path.parent) for path in folder.glob(f"*/{STATUS}")}
    planned = {folder / job["folder"]: Status(job["job"], overrides=job["overrides"]) for job in plan["jobs"]}
    statuses = {**planned, **{path: status for path, status in found.items() if status is not None}}
    jobs = [_job(path, status) for path, status in statuses.items()]
    jobs.sort(key=lambda job: job.status.job)
    return Sweep(folder, plan["program"], plan["command"], plan["metrics"], plan["directions"], jobs)


def read_plan(folder: Path) -> dict[str, Any]:
    """What ``sweep.json`` holds.

    Raises:
        ValueError: if it is missing or no JSON.
    """
    try:
        plan: dict[str, Any] = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{folder} holds no {PLAN}: it is no sweep folder") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / PLAN} is not JSON: {error}") from error
    return plan


def _job(folder: Path, status: Status) -> Job:
    logged: dict[str, float] = {}
    if (folder / "metrics.jsonl").is_file():
        for record in read_metrics(folder / "metrics.jsonl"):
            logged |= {name: value for name, value in record.items() if isinstance(value, (int, float))}
    own = {name: value for name, value in logged.items() if name not in ("step", "seconds")}
    return Job(status.now, folder, settings(status.overrides), {**own, **status.metric})


def settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Overrides by key; a value that is a number becomes one."""
    matches = [match for override in overrides if (match := _OVERRIDE.fullmatch(override))]
    return {match["key"]: _number(match["value"]) for match in matches}


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def write_csv(sweep: Sweep) -> Path:
    """Write ``sweep.csv``, a row a job: number, state, attempt, seconds, settings, metrics, error.

    A metric of the same name as a setting would be ambiguous, so settings come first, under their full keys.
    """
    keys = list(dict.fromkeys(key for job in sweep.jobs for key in job.settings))
    names = list(dict.fromkeys([*sweep.metrics, *sorted({name for job in sweep.jobs for name in job.metrics})]))
    path = sweep.folder / "sweep.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["job", "state", "attempt", "seconds", *keys, *names, "error", "folder"])
        for job in sweep.jobs:
            status = job.status
            rows.writerow(
                [status.job, status.state, status.attempt, status.seconds]
                + [job.settings.get(key) for key in keys]
                + [job.metrics.get(name) for name in names]
                + [status.error, job.folder.relative_to(sweep.folder)]
            )
    return path
