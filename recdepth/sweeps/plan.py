"""Which jobs a sweep has, in which folders: ``sweep.json``, written before the first one starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ..reporting.files import write_whole
from ..reporting.sweep import PLAN, read_plan
from ..settings import ConfigError


@dataclass(frozen=True)
class PlannedJob:
    """Number, folder inside the sweep's, and overrides of a job."""

    job: int
    folder: str
    overrides: list[str]


def begin_plan(config: DictConfig) -> Path:
    """Make the sweep folder with its ``sweep.json``, unless it is there (the sweep is resumed).

    Args:
        config: of the multirun, with its ``hydra`` node.
    """
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / PLAN).exists():
        names, directions = objectives(config)
        overrides = config.hydra.overrides
        own = [o for o in overrides.hydra if not o.startswith(("hydra.mode=", "hydra.sweep.dir="))]
        plan = {
            "program": config.hydra.job.config_name,
            "command": [*overrides.task, *own],
            "name": OmegaConf.select(config, "sweep.name"),
            "metrics": names,
            "directions": directions,
            "jobs": [],
        }
        _write(folder, plan)
    return folder


def objectives(config: DictConfig) -> tuple[list[str], list[str]]:
    """Names of the optimized metrics and their directions."""
    names = OmegaConf.select(config, "optimized_metric")
    directions = OmegaConf.select(config, "optimized_direction")
    return _listed(names), _listed(directions)


def plan_of(
    loader: ConfigLoader, config: DictConfig, jobs: Sequence[Sequence[str]], first: int = 0
) -> list[PlannedJob]:
    """Number the jobs and find the folder that each will have.

    Raises:
        ConfigError: when two would share one.
    """
    planned: list[PlannedJob] = []
    taken: dict[str, int] = {}
    for number, overrides in enumerate(jobs, start=first):
        folder = str(job_config(loader, config, overrides, number).hydra.sweep.subdir)
        if folder in taken:
            where = f"hydra.sweep.subdir={folder} is the folder of jobs {taken[folder]} and {number}"
            raise ConfigError([f"{where}; leave it at ${{hydra.job.num}}, or add what tells the jobs apart"])
        taken[folder] = number
        planned.append(PlannedJob(number, folder, list(overrides)))
    return planned


def write_plan(folder: Path, jobs: Sequence[PlannedJob]) -> None:
    """Add jobs to ``sweep.json``; those of known numbers are replaced."""
    plan = read_plan(folder)
    known = {job["job"]: job for job in plan["jobs"]} | {job.job: asdict(job) for job in jobs}
    _write(folder, plan | {"jobs": [known[number] for number in sorted(known)]})


def read_jobs(folder: Path) -> list[PlannedJob]:
    """The jobs in ``sweep.json``."""
    return [PlannedJob(**job) for job in read_plan(folder)["jobs"]]


def placed(job: PlannedJob) -> list[str]:
    """The job's overrides and its folder, so that it runs there whatever number the launcher gives it."""
    folder = job.folder.replace("\\", "\\\\").replace("'", "\\'")
    return [*job.overrides, f"hydra.sweep.subdir='{folder}'"]


def number_of(sweep: Path, folder: str, default: int) -> int:
    """The number of the job with this folder, as planned."""
    if (sweep / PLAN).exists():
        default = next((job.job for job in read_jobs(sweep) if job.folder == folder), default)
    return default


def job_config(loader: ConfigLoader, config: DictConfig, overrides: Sequence[str], number: int) -> DictConfig:
    """Compose the configuration of one job, ``hydra`` node included."""
    job = loader.load_sweep_config(config, list(overrides))
    with open_dict(job):
        job.hydra.job.id = str(number)
        job.hydra.job.num = number
    known = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(job)
    try:
        folder = str(job.hydra.sweep.subdir)
    finally:
        HydraConfig.instance().cfg = known
    with read_write(job.hydra.sweep), open_dict(job.hydra.sweep):
        job.hydra.sweep.subdir = folder
    return job


def _write(folder: Path, plan: dict[str, Any]) -> None:
    write_whole(folder / PLAN, json.dumps(plan, indent=2) + "\n")


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
