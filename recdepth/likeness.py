"""Whether a checkpoint is of the model and the optimizer that a run which resumes it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig

from . import checks
from .models import RecurrentDepthConfig, RecurrentDepthForCausalLM


def other_optimizer(cfg: DictConfig, checkpoint: Mapping[str, Any]) -> list[str]:
    """What is wrong with a checkpoint of another kind of optimizer."""
    theirs = checkpoint["optimizer_states"][0]["param_groups"]
    stand_ins = [{"params": [torch.nn.Parameter(torch.zeros(2, 2))], "role": group.get("role")} for group in theirs]
    ours = checks.build(cfg, "optimizer")(stand_ins).param_groups
    settings = [[group.keys() - {"params", "initial_lr"} for group in groups] for groups in (ours, theirs)]
    if settings[0] == settings[1]:
        return []
    return [f"resume={cfg.resume} was trained by another optimizer; take its optimizer=…"]


def other_model(cfg: DictConfig, shape: RecurrentDepthConfig) -> list[str]:
    """What is wrong with a checkpoint of a model of another shape."""
    checkpoint = torch.load(checks.checkpoint_path(cfg.resume), map_location="cpu", mmap=True, weights_only=True)
    theirs = {name.removeprefix("model."): tuple(x.shape) for name, x in checkpoint["state_dict"].items()}
    with torch.device("meta"):
        ours = {name: tuple(x.shape) for name, x in RecurrentDepthForCausalLM(shape).state_dict().items()}
    other = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    if not other:
        return []
    sizes = f"{theirs.get(other[0], 'missing')} there and {ours.get(other[0], 'missing')} here"
    return [f"resume={cfg.resume} is of another model: {other[0]} is {sizes}; take its model=…"]
