"""The default sweeper: every combination, as Hydra's own, but a failing job ends neither the others nor the sweep."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

log = logging.getLogger(__name__)


class GridSweeper(BasicSweeper):
    """Runs every combination; in a resumed sweep, those that have not finished.

    Args:
        max_batch_size: how many jobs the launcher gets at once; None for all.
        params: what to sweep, ``key: values``, as on the command line.
    """

    def sweep(self, arguments: list[str]) -> Any:
        """Plan, run and return the results of the jobs that were run."""
        from recdepth.sweeps.plan import PlannedJob, placed, plan_of, read_jobs, write_plan
        from recdepth.sweeps.resume import of_jobs, same_jobs, unfinished

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        overrides = parser.parse_overrides([*self._parse_config(), *of_jobs(arguments)])
        (jobs,) = self.split_arguments(overrides, None)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        planned: Sequence[PlannedJob] = plan_of(loader, self.config, jobs)
        if OmegaConf.select(self.config, "sweep.resume") is not None:
            planned = same_jobs(folder, read_jobs(folder), planned)
        write_plan(folder, planned)
        waiting = unfinished(folder, planned)
        log.info("%s: %d jobs, %d to run", folder, len(planned), len(waiting))
        returns: list[Sequence[JobReturn]] = []
        size = self.max_batch_size or len(waiting) or 1
        for begin in range(0, len(waiting), size):
            batch = [placed(job) for job in waiting[begin : begin + size]]
            returns.append(self.launcher.launch(batch, initial_job_idx=waiting[begin].job))
            failed = any(job.status != JobStatus.COMPLETED for job in returns[-1])
            if failed and OmegaConf.select(self.config, "sweep.on_error") == "stop":
                break
        return returns
