"""How a run, or a job of a sweep, stands: ``status.json`` in its folder."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from .files import write_whole

log = logging.getLogger(__name__)

FILE, ALONE = "status.json", -1
State = Literal["pending", "running", "finished", "failed", "killed", "interrupted", "unknown"]


@dataclass(frozen=True)
class Status:
    """How a run stands, as its ``status.json`` tells it.

    Attributes:
        job: number in the sweep; -1 for a run of its own.
        state: pending (not started), running, finished, failed (an exception), killed (ended without a word),
            interrupted (Ctrl-C), unknown (nothing was noted).
        overrides: of a job, as on the command line, ``key=value``.
        metric: what was to be optimized, by name; empty until it has finished.
        seconds: wall-clock time of the last attempt.
        started: of the last attempt of a job, ISO 8601.
        attempt: of a job: 1, and one more with every start again in the same folder.
        error, traceback: of what did not finish; the error is one line.
        pid, host: of the process that runs it.
    """

    job: int = ALONE
    state: State = "pending"
    overrides: list[str] = field(default_factory=list)
    metric: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    started: str | None = None
    attempt: int = 0
    error: str | None = None
    traceback: str | None = None
    pid: int | None = None
    host: str | None = None

    def write(self, folder: Path) -> None:
        """Write ``status.json``; a reader sees the old file or the new one, never half of it."""
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / FILE, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @property
    def now(self) -> Status:
        """As it is: what says that it is running, but whose process is gone, was killed."""
        if self.state != "running" or self.host != platform.node() or _alive(self.pid):
            return self  # only its own machine can tell
        return replace(self, state="killed", error="killed: its process ended without a word")


def read_status(folder: Path) -> Status | None:
    """The status of a run's or job's folder, as it was noted; None where there is none yet.

    Raises:
        ValueError: for a file that is not what it should be.
    """
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        status = Status(**found)
    except FileNotFoundError:
        return None
    except TypeError as error:
        raise ValueError(f"{folder / FILE} is not the status of a run: {error}") from error
    if status.state not in get_args(State):
        raise ValueError(f"{folder / FILE} has no state that is known: {status.state!r}")
    return status


@contextmanager
def recorded(folder: Path) -> Iterator[dict[str, Any]]:
    """Keeps ``status.json`` while the block runs, whatever ends it. What is put into the dictionary are further fields.

    Of a job of a sweep nothing is written here: the sweep keeps its status, from outside, so also when it is killed.
    """
    found: dict[str, Any] = {}
    before = read_status(folder)
    if before is not None and before.job != ALONE:
        yield found
        return
    began, running = time.monotonic(), Status(state="running", pid=os.getpid(), host=platform.node())
    running.write(folder)

    def end(state: State, **failure: Any) -> None:
        ended = replace(running, state=state, seconds=round(time.monotonic() - began, 3), **failure, **found)
        try:
            ended.write(folder)
        except OSError as error:  # a full disk must not hide how the run ended
            log.error("How the run ended (%s) could not be noted in %s: %s", state, folder / FILE, error)

    try:
        yield found
    except KeyboardInterrupt:
        end("interrupted")
        raise
    except BaseException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
        end("failed", error=text, traceback="".join(traceback.format_exception(error)))
        raise
    end("finished")


def _alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
