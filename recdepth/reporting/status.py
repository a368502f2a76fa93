"""How a run stands: ``status.json`` in its folder."""

from __future__ import annotations

import json
import os
import platform
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "status.json"


@dataclass(frozen=True)
class Status:
    """What ``status.json`` says.

    Attributes:
        state: ``running``, ``finished``, ``failed``, ``interrupted`` (Ctrl-C), ``killed``, or ``unknown``.
        error: of a failed run, one line; and its traceback.
        metric: the value of ``optimized_metric``.
        seconds: from start to end.
    """

    state: str = "unknown"
    error: str | None = None
    traceback: str | None = None
    metric: Any = None
    seconds: float | None = None


def read_status(folder: Path) -> Status:
    """The status of a run folder; a run that says it is running, but whose process is gone, was killed.

    Raises:
        ValueError: for a file that is not what it should be.
    """
    path = folder / FILE
    if not path.is_file():
        return Status()
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not isinstance(found.get("state"), str):
        raise ValueError(f"{path} has no state")
    state = "killed" if found["state"] == "running" and _gone(found) else found["state"]
    return Status(state, *(found.get(name) for name in ("error", "traceback", "metric", "seconds")))


@contextmanager
def recorded(folder: Path) -> Iterator[dict[str, Any]]:
    """Keeps ``status.json`` while the block runs, whatever ends it. What is put into the dictionary is kept with it.

    Of a job of a sweep nothing is written here: the sweep keeps its status, from outside, so also when it is killed.
    """
    found: dict[str, Any] = {}
    if _kept_by_a_sweep(folder):
        yield found
        return
    began, facts = time.monotonic(), {"pid": os.getpid(), "host": platform.node()}
    _write(folder, {"state": "running", **facts})
    try:
        yield found
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        if state == "failed":
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            found["error"] = f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
            found["traceback"] = "".join(traceback.format_exception(error))
        _write(folder, {"state": state, "seconds": round(time.monotonic() - began, 3), **found, **facts})
        raise
    _write(folder, {"state": "finished", "seconds": round(time.monotonic() - began, 3), **found, **facts})


def _kept_by_a_sweep(folder: Path) -> bool:
    path = folder / FILE
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return isinstance(found, dict) and "job" in found


def _write(folder: Path, status: Mapping[str, Any]) -> None:
    """A reader sees the old file or the new one, never half of it."""
    fresh = folder / f"{FILE}.new"
    fresh.write_text(json.dumps(status, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    fresh.replace(folder / FILE)


def _gone(found: Mapping[str, Any]) -> bool:
    """Whether the process is known to have ended; only its own machine can tell."""
    if found.get("host") != platform.node() or not isinstance(found.get("pid"), int):
        return False
    try:
        os.kill(found["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
