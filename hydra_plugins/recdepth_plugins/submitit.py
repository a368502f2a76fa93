"""SLURM, and the same on this machine, through hydra-submitit-launcher; there only where that is installed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from hydra.core.utils import JobReturn, JobStatus

from .local import JobFailed

log = logging.getLogger(__name__)

if find_spec("hydra_plugins.hydra_submitit_launcher") is not None:
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher as plugin

    class _Patient:
        """A job whose death is a failed result, instead of an exception that takes the sweep with it."""

        def __init__(self, job: Any):
            self.job = job

        def results(self) -> list[JobReturn]:
            import submitit

            try:
                found: list[JobReturn] = self.job.results()
            except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
                failed = JobReturn(status=JobStatus.FAILED)
                failed.return_value = JobFailed(f"job {self.job.job_id}: {str(error).splitlines()[0]}")
                return [failed]
            return found

    def _launch(launcher: Any, jobs: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        """Launch with patient jobs, and with this code on the path of their processes."""
        import submitit

        class Executor(submitit.AutoExecutor):
            def map_array(self, function: Any, *arguments: Iterable[Any]) -> list[Any]:
                return [_Patient(job) for job in super().map_array(function, *arguments)]

        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        with mock.patch.object(submitit, "AutoExecutor", Executor), mock.patch.dict(os.environ, PYTHONPATH=path):
            return plugin.BaseSubmititLauncher.launch(launcher, jobs, first)

    class SlurmLauncher(plugin.SlurmLauncher):
        """Jobs by ``sbatch``, as one array; a job that is preempted or times out is queued again."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Submit the jobs and wait for them."""
            return _launch(self, job_overrides, initial_job_idx)

    class LocalLauncher(plugin.LocalLauncher):
        """The same without a cluster, all jobs at once: for trying out what SLURM will do."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Start the jobs and wait for them."""
            return _launch(self, job_overrides, initial_job_idx)
