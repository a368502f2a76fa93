"""What this machine's CPU is called, and who made it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


def cpu_name() -> str:
    """The processor's marketing name where the system tells, else its architecture."""
    return _described("model name") or platform.processor() or platform.machine()


def is_intel() -> bool:
    """Whether the CPU says that Intel made it."""
    return "GenuineIntel" in (_described("vendor_id") or platform.processor())  # the latter tells on Windows


@cache
def _described(field: str) -> str:
    """What Linux says of the first core, empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition("\t")[0] == field), "")
