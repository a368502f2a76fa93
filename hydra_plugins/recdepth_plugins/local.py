"""The local launcher: every job in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class JobFailed(RuntimeError):
    """Stands for the error of a job, which happened in another process; the job's status file has its traceback."""


class LocalLauncher(Launcher):
    """Runs jobs on this machine, so many at a time.

    Args:
        n_jobs: at a time; None for as many as there are cores.
        threads: of each job; None shares the cores out when several run at a time.
        grace_seconds: how long jobs have to stop after Ctrl-C before they are killed.
    """

    def __init__(self, n_jobs: int | None = 1, threads: int | None = None, grace_seconds: float = 60.0):
        self.n_jobs, self.threads, self.grace_seconds = n_jobs, threads, grace_seconds

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; returns those that were started, in their order."""
        from recdepth.sweeps.job import Function, Place, pack
        from recdepth.sweeps.plan import job_config, number_of
        from recdepth.sweeps.pool import ProcessPool, Task

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        function, loader = Function.of(self.function), self.context.config_loader
        tasks, returns = [], {}
        for index, overrides in enumerate(job_overrides, start=initial_job_idx):
            job = job_config(loader, self.config, overrides, index)
            sweep = Path(job.hydra.sweep.dir).resolve()
            number = number_of(sweep, job.hydra.sweep.subdir, index)
            folder, own = sweep / job.hydra.sweep.subdir, list(job.hydra.overrides.task)
            packed = pack(self.context, self.config, function, overrides, Place(number, folder, own))
            tasks.append(Task(number, folder, own, packed))
            returns[number] = JobReturn(overrides=own, cfg=_without_hydra(job), working_dir=str(folder))
        stop = OmegaConf.select(self.config, "sweep.on_error") == "stop"
        for status in ProcessPool(self.n_jobs, self.threads, stop, self.grace_seconds).run(tasks):
            returned = returns[status.job]
            values: list[Any] = list(status.metric.values())
            finished = status.state == "finished"
            returned.status = JobStatus.COMPLETED if finished else JobStatus.FAILED
            result = values[0] if len(values) == 1 else tuple(values) or None
            returned.return_value = (
                result if finished else JobFailed(f"job {status.job} {status.state}: {status.error}")
            )
        return [returned for returned in returns.values() if returned.status != JobStatus.UNKNOWN]


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
