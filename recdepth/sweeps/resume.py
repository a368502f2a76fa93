"""Going on with a sweep: the command of its folder again, for the jobs that have not finished."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..reporting.status import Status, read_status
from ..reporting.sweep import read_plan
from ..settings import ConfigError
from .plan import PlannedJob

#: What may differ from the sweep's first command, and then counts: how jobs are run, not what they are.
_HOW = ("hydra.launcher", "hydra/launcher", "sweep", "hydra.sweeper.n_jobs", "hydra.sweeper.n_trials", "hydra.verbose")


def resumed(folder: Path, program: str, given: Sequence[str]) -> list[str]:
    """The command line that goes on with a sweep.

    Args:
        folder: of the sweep.
        program: ``train`` or ``sample``: the one that is asked to.
        given: the overrides on the command line, without ``sweep.resume``; they may be left away.

    Raises:
        ConfigError: if the folder is none of a sweep, or of the other program, or the overrides are not its own.
    """
    try:
        plan = read_plan(folder)
    except ValueError as error:
        remedy = "give the folder that the sweep's table named, with sweep.json in it"
        raise ConfigError([f"sweep.resume={folder}: {error}; {remedy}"]) from error
    if plan["program"] != program:
        raise ConfigError([f"sweep.resume={folder} is a sweep of {plan['program']}.py; resume it with that"])
    kept = {_key(o): o for o in plan["command"] if _key(o) != "sweep.resume"}
    name = {}
    if plan.get("name") and "sweep.name" not in kept:  # by default the time of day: the W&B group, and Optuna's study
        name = {"sweep.name": f"sweep.name={_quoted(plan['name'])}"}
    now = {_key(o): o for o in given}
    problems = [
        f"{override}: the sweep in {folder} was started {_instead(kept.get(key))}; leave it away, or start a new sweep"
        for key, override in now.items()
        if override != kept.get(key) and not _only_how(key)
    ]
    what = {_key(o) for o in given if not _only_how(_key(o))}
    if what:  # the command is repeated, then whole
        problems += [
            f"{override} of the sweep in {folder} is missing; add it, or give sweep.resume alone"
            for key, override in kept.items()
            if key not in now and not _only_how(key)
        ]
    if problems:
        raise ConfigError(problems)
    where = [f"sweep.resume={_quoted(folder)}", f"hydra.sweep.dir={_quoted(folder)}"]
    return ["-m", *{**name, **kept, **now}.values(), *where]


def of_jobs(arguments: Iterable[str]) -> list[str]:
    """The overrides that a sweep's jobs get: the same whether the sweep is resumed or not."""
    return [override for override in arguments if _key(override) != "sweep.resume"]


def same_jobs(folder: Path, before: Sequence[PlannedJob], now: Sequence[PlannedJob]) -> Sequence[PlannedJob]:
    """The jobs of a resumed sweep as they were planned; a configuration file may have changed since.

    Raises:
        ConfigError: naming the jobs that are no longer the same.
    """
    if not before:
        return now
    known = {job.job: _what(job) for job in before}
    problems = [
        f"sweep.resume={folder}: job {job.job} was {' '.join(known[job.job])!r} and is now {' '.join(_what(job))!r};"
        " start a new sweep, or put the configuration back"
        for job in now
        if job.job in known and known[job.job] != _what(job)
    ]
    if len(before) != len(now):
        problems.append(f"sweep.resume={folder}: {len(before)} jobs have become {len(now)}; start a new sweep")
    if problems:
        raise ConfigError(problems)
    return before


def unfinished(folder: Path, jobs: Iterable[PlannedJob]) -> list[PlannedJob]:
    """The jobs that have not finished.

    Raises:
        ConfigError: where some of them still run.
    """
    jobs = list(jobs)
    statuses = {job.job: read_status(folder / job.folder) for job in jobs}
    problems = [
        f"sweep.resume={folder}: job {job.job} still runs (process {status.pid}); wait for it or end it, or if that is"
        f" another program by now, delete {folder / job.folder}/status.json"
        for job in jobs
        if (status := statuses[job.job]) is not None and _still_runs(status)
    ]
    if problems:
        raise ConfigError(problems)
    return [job for job in jobs if (status := statuses[job.job]) is None or status.state != "finished"]


def _still_runs(status: Status) -> bool:
    """Whether another process of this machine runs a job; of those elsewhere nobody can tell, and they may be dead."""
    here = status.host == platform.node() and status.pid != os.getpid()
    return here and status.now.state == "running"


def _what(job: PlannedJob) -> list[str]:
    return [override for override in job.overrides if not _only_how(_key(override))]


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~")


def _only_how(key: str) -> bool:
    return any(key == how or key.startswith(f"{how}.") for how in _HOW)


def _instead(override: str | None) -> str:
    return f"with {override}" if override is not None else "without it"


def _quoted(text: Path | str) -> str:
    return "'" + str(text).replace("\\", "\\\\").replace("'", "\\'") + "'"
