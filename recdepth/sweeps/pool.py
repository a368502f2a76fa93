"""Jobs in processes of their own: what happens to one does not happen to the others, nor to the sweep."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from ..reporting.status import Status, read_status
from .job import Place

log = logging.getLogger(__name__)

_WORKER = Path(__file__).with_name("worker.py")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_POLL = 0.05  # seconds


@dataclass(frozen=True)
class Task(Place):
    """A job to run; ``payload`` is what its process gets, see :func:`.job.pack`."""

    payload: bytes = field(repr=False)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class _Running:
    task: Task
    process: subprocess.Popen[bytes]
    attempt: int  # of the attempt before this one
    began: float = field(default_factory=time.monotonic)


class ProcessPool:
    """Runs each job in a process of its own, so many at a time.

    A job's process is told of the end of this one by the end of its standard input, and then stops as after Ctrl-C.

    Args:
        n_jobs: at a time; None for as many as there are cores.
        threads: of each job; None shares the cores out when several run, and leaves a single one alone.
        stop_on_error: start no more jobs once one has not finished.
        grace_seconds: how long jobs have to stop after Ctrl-C before they are killed.
    """

    def __init__(self, n_jobs: int | None, threads: int | None, stop_on_error: bool, grace_seconds: float):
        self._asked, self._threads = n_jobs, threads
        self._stop_on_error, self._grace = stop_on_error, grace_seconds

    def run(self, tasks: Sequence[Task]) -> list[Status]:
        """Run the jobs.

        Returns:
            the statuses of those that were started.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when all jobs have stopped.
        """
        slots = max(1, min(len(tasks), self._asked or cores()))
        environment = self._environment(slots)
        waiting, running, done = deque(tasks), list[_Running](), list[Status]()
        with _terminable():
            try:
                while waiting or running:
                    while waiting and len(running) < slots:
                        running.append(self._start(waiting.popleft(), environment, alone=slots == 1))
                    for job in [job for job in running if job.process.poll() is not None]:
                        running.remove(job)
                        done.append(_settle(job))
                        if self._stop_on_error and done[-1].state != "finished" and waiting:
                            log.info("sweep.on_error=stop: %d jobs are not started", len(waiting))
                            waiting.clear()
                    time.sleep(_POLL)
            finally:
                if running:  # Ctrl-C, or an error of ours
                    self._stop(running)
        return done

    def _environment(self, slots: int) -> dict[str, str]:
        environment = dict(os.environ)
        share = self._threads
        if share is None and slots > 1:
            share = max(1, cores() // slots)
            given = environment.get("OMP_NUM_THREADS", "")
            share = min(share, int(given)) if given.isdigit() and int(given) > 0 else share
        if share is not None:
            environment |= dict.fromkeys(_THREADS, str(share))
        return environment

    def _start(self, task: Task, environment: dict[str, str], alone: bool) -> _Running:
        task.folder.mkdir(parents=True, exist_ok=True)
        before = read_status(task.folder)
        log.info("job %d starts: %s", task.number, " ".join(task.overrides))
        with _output(task.folder, alone) as output:
            process = subprocess.Popen(
                [sys.executable, str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT if output is not None else None,
                env=environment,
                start_new_session=True,  # Ctrl-C in the terminal comes to this process alone, which passes it on
            )
        assert process.stdin is not None
        header = {"path": sys.path, "argv": [sys.argv[0], *task.overrides], "size": len(task.payload)}
        try:
            process.stdin.write(json.dumps(header).encode() + b"\n" + task.payload)
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died already, which is noticed soon
        return _Running(task, process, before.attempt if before is not None else 0)

    def _stop(self, running: list[_Running]) -> None:
        log.info("Stopping %d jobs; Ctrl-C again kills them", len(running))
        deadline = time.monotonic() + self._grace
        try:
            for job in running:
                job.process.send_signal(signal.SIGINT)
            while any(job.process.poll() is None for job in running) and time.monotonic() < deadline:
                time.sleep(_POLL)
        finally:
            for job in running:
                if job.process.poll() is None:
                    job.process.kill()
                    job.process.wait()
                _settle(job, interrupted=True)


def _settle(job: _Running, interrupted: bool = False) -> Status:
    """The status of a job whose process has ended, completed where the job could not do that itself."""
    assert job.process.stdin is not None
    with suppress(BrokenPipeError):
        job.process.stdin.close()
    task, code = job.task, job.process.returncode
    status = read_status(task.folder)
    if status is None or status.attempt == job.attempt:  # it did not get as far as noting its start
        status = Status(task.number, "running", task.overrides, attempt=job.attempt + 1)
    if status.state == "running":
        seconds = round(time.monotonic() - job.began, 3)
        how: dict[str, Any] = {"state": "interrupted" if interrupted else "killed", "error": _death(code)}
        status = replace(status, seconds=seconds, **how)
        status.write(task.folder)
    metric = ", ".join(f"{name} {value:.5g}" for name, value in status.metric.items())
    log.info("job %d %s in %.0f s: %s", task.number, status.state, status.seconds or 0.0, metric or status.error or "")
    return status


def _death(code: int) -> str:
    if code >= 0:
        return f"its process left with exit code {code}, without a word"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (by someone, or for lack of memory)" if name == "SIGKILL" else "")


@contextmanager
def _output(folder: Path, alone: bool) -> Iterator[IO[bytes] | None]:
    """Where a job's output goes: the screen where it is alone, else ``output.log``."""
    if alone:
        yield None
        return
    with (folder / "output.log").open("ab") as file:
        yield file


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM inside is Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
