"""A run from start to end: seeds, the run folder, memory settings, and a clean close."""

from __future__ import annotations

import ctypes
import json
import logging
import platform
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

_MMAP_THRESHOLDS = (2**30, 2**25)  # bytes; glibc before 2.35 refuses more than HEAP_MAX / 2, which is 32 MiB
_TOP_PAD = 64 * 2**20  # bytes
# parameter numbers of <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_large_buffers() -> bool:
    """Tell glibc's malloc to keep freed buffers for the next call, instead of giving them back to the system.

    Without it every large tensor on the CPU costs a system call and fresh, zeroed pages. Safe to call at any time, as
    often as one likes; memory that was used once stays with the process.

    Returns:
        Whether it took effect: False where malloc is not glibc's, or refuses.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    if not any(mallopt(_M_MMAP_THRESHOLD, bytes_) == 1 for bytes_ in _MMAP_THRESHOLDS):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) == 1 and mallopt(_M_TOP_PAD, _TOP_PAD) == 1)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, in workers too."""
    lightning.seed_everything(seed, workers=True, verbose=False)


def quiet() -> None:
    """Keep the libraries' routine messages off the console."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # of lightning with newer torch
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*The dirpath has changed.*")  # a resumed run has a folder of its own
    warnings.filterwarnings("ignore", ".*The `srun` command is available.*")


def sweep_folder() -> Path | None:
    """The folder of the sweep that this run is a job of; None for a run of its own."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir)


def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and whether it was changed since; empty outside a git checkout."""
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return {}  # installed somewhere inside another project
        return {
            "git_commit": git("rev-parse", "HEAD"),
            "git_dirty": bool(git("status", "--porcelain", "-uno")),
        }
    except (OSError, subprocess.SubprocessError):
        return {}


def provenance() -> dict[str, Any]:
    """What is needed to run this again: command, code, versions, machine."""
    return {
        "command": [Path(sys.executable).name, *sys.argv],
        **git_state(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "transformers": version("transformers"),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def rank() -> int:
    """Of this process among those of a distributed run; 0 is the one that writes."""
    return int(getattr(rank_zero_only, "rank", None) or 0)


@rank_zero_only
def prepare_run_folder(cfg: DictConfig, folder: Path, facts: dict[str, Any]) -> None:
    """Make the run folder; ``.hydra/`` gets the configuration (unless Hydra put it there) and ``provenance.json``."""
    hydra = folder / ".hydra"
    hydra.mkdir(parents=True, exist_ok=True)
    if not (hydra / "config.yaml").exists():
        OmegaConf.save(cfg, hydra / "config.yaml")
    (hydra / "provenance.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@contextmanager
def closing() -> Iterator[None]:
    """Whatever happens inside: the W&B run is finished (as failed, on an error), and Ctrl-C works as before."""
    handler = signal.getsignal(signal.SIGINT)
    failed = True
    try:
        yield
        failed = False
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=int(failed))
