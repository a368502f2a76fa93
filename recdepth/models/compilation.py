"""torch.compile for the model's seams, where the machine can."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn


def can_compile(device: torch.device | str = "cpu") -> tuple[bool, str]:
    """Whether torch.compile can work here; if not, the reason in one sentence."""
    if torch.device(device).type == "cpu":
        candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
        if not any(shutil.which(name) for name in candidates):
            return False, f"no C++ compiler ({' or '.join(candidates)}) is on the PATH: running eagerly, slower"
    return True, ""


def compile_seams(model: nn.Module) -> None:
    """Compile ``embed``, ``recur`` and ``decode`` in place (static shapes: one graph per input shape)."""
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    for name in ("embed", "recur", "decode"):
        setattr(model, name, torch.compile(getattr(model, name), dynamic=False))
