"""The Hydra callback of every multirun: a status file a job, a summary at the end; under any launcher and sweeper."""

from __future__ import annotations

import os
import re
import socket
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from ..reporting.overview import write_sweep_report
from ..reporting.status import Status, read_status
from ..reporting.sweep import Sweep, read_sweep
from ..reporting.sweep_summary import summarize
from ..settings import ConfigError
from .plan import begin_plan, number_of, objectives

_open: list[Path] = []  # the sweep folder of this process, until its summary is made
_closed: list[Sweep] = []  # and what the summary was made of


class SweepRecords(Callback):
    """Writes ``sweep.json``, each job's ``status.json``, and the summary."""

    def __init__(self) -> None:
        self._began = 0.0

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _closed.clear()  # a single run's exit code is its own, whatever ran in this process before

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _closed.clear()
        _open[:] = [begin_plan(config)]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        finish()

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        folder = Path(config.hydra.runtime.output_dir)
        self._began = time.monotonic()
        started(folder, number_of(folder.parent, folder.name, config.hydra.job.num), config.hydra.overrides.task)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        os.environ.pop("WANDB_RUN_ID", None)  # where jobs share a process
        folder = Path(config.hydra.runtime.output_dir)
        status, seconds = read_status(folder), round(time.monotonic() - self._began, 3)
        assert status is not None
        result = job_return._return_value  # the property would print and raise
        if job_return.status == JobStatus.COMPLETED:
            metric = _by_name(objectives(config)[0], result)
            replace(status, state="finished", metric=metric, seconds=seconds).write(folder)
        else:
            failure = _failure(result)
            replace(status, state="failed", seconds=seconds, **failure).write(folder)


def finish() -> Sweep | None:
    """Make the summary of this process's sweep, once: the table, ``sweep.csv``, the pictures.

    Returns:
        the sweep as it ended; None if this process ran none.
    """
    if _open:
        _closed[:] = [read_sweep(_open.pop())]
        if _closed[0].jobs:
            summarize(_closed[0])
            print(f"Report: {write_sweep_report(_closed[0].folder)}")
    return _closed[0] if _closed else None


def started(folder: Path, job: int, overrides: Sequence[str]) -> None:
    """Note that a job runs in this process. Starting again in the same folder keeps its W&B run."""
    before = read_status(folder)
    again = before is not None and before.attempt > 0
    attempt = before.attempt + 1 if before is not None else 1
    if again:
        _set_aside(folder, attempt - 1)
    facts: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname()}
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    Status(job, "running", list(overrides), started=now, attempt=attempt, **facts).write(folder)


def ended(folder: Path, status: Status, error: BaseException) -> None:
    """Note how a job ended that Hydra does not report: by Ctrl-C or by leaving the process."""
    state: Any = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    replace(status, state=state, **_failure(error)).write(folder)


def _set_aside(folder: Path, attempt: int) -> None:
    """Keep what an earlier attempt logged, unless the job goes on from its checkpoint; go on in its W&B run."""
    runs = sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    if runs:
        os.environ.setdefault("WANDB_RUN_ID", runs[-1].stem.removeprefix("run-"))
    if (folder / "checkpoints" / "last.ckpt").exists():
        return
    for name in ("metrics", "samples"):
        path = folder / f"{name}.jsonl"
        if path.exists():
            path.rename(folder / f"{name}.attempt-{attempt}.jsonl")


def _by_name(names: Sequence[str], result: Any) -> dict[str, float]:
    values = list(result) if isinstance(result, (list, tuple)) else [result]
    if len(names) != len(values):
        names = ["value"] if len(values) == 1 else [f"value_{i}" for i in range(len(values))]
    return {name: float(v) for name, v in zip(names, values, strict=True) if isinstance(v, (int, float))}


def _failure(error: BaseException) -> dict[str, Any]:
    text = "; ".join(error.problems) if isinstance(error, ConfigError) else str(error)
    first = re.sub(r"\s+", " ", text.strip().splitlines()[0]) if text.strip() else ""
    line = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return {"error": line, "traceback": "".join(traceback.format_exception(error))}
