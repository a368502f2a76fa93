"""Whether a checkpoint is of the model and the optimizer that a run which resumes it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from . import checks
from .models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from .training import TrainingModule


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
    with torch.device("meta"):
        ours = RecurrentDepthForCausalLM(shape).state_dict()
    return _difference(cfg, _checkpoint(cfg), {f"model.{name}": weight for name, weight in ours.items()}, "model=…")


def other_weights(cfg: DictConfig, module: TrainingModule) -> list[str]:
    """What is wrong with a checkpoint of other weights than those that will be trained, or of other adapters."""
    checkpoint, kept = _checkpoint(cfg), module.kept_weights()
    adapted = len(kept) < len(module.state_dict()) or any(".lora_" in name for name in checkpoint["state_dict"])
    if problems := _difference(cfg, checkpoint, kept, "lora=… and init_from=…" if adapted else "init_from=…"):
        return problems
    theirs, ours = checkpoint["training"].get("adapter_scales"), module.adapter_scales()
    if theirs is None or theirs == ours:
        return []
    name = next(name for name in ours if theirs.get(name) != ours[name])
    sizes = f"{theirs.get(name)} there and {ours[name]} here"
    return [f"resume={cfg.resume}: its adapters count differently, {name} {sizes}; take its lora.lora_alpha=…"]


def _checkpoint(cfg: DictConfig) -> dict[str, Any]:
    path = checks.checkpoint_path(cfg.resume)
    found: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return found


def _difference(cfg: DictConfig, checkpoint: Mapping[str, Any], ours: Mapping[str, Tensor], remedy: str) -> list[str]:
    here, there = ({name: tuple(x.shape) for name, x in w.items()} for w in (ours, checkpoint["state_dict"]))
    other = [name for name in {**there, **here} if here.get(name) != there.get(name)]
    if not other:
        return []
    sizes = f"{there.get(other[0], 'missing')} there and {here.get(other[0], 'missing')} here"
    name = other[0].removeprefix("model.")
    return [f"resume={cfg.resume} is of another model: {name} is {sizes}; take its {remedy}"]
