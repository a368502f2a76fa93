"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) by peft: added to a model, saved by themselves, merged."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recdepth.models import RecurrentDepthForCausalLM

_NEEDED = "lora=… needs the extra finetune: pip install -c constraints.txt -e '.[finetune]'"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What is trained instead of the weights; the names are peft's.

    Args:
        r: rank of the adapters.
        lora_alpha: their outputs are scaled by ``lora_alpha / r`` (or ``/ √r``, with ``use_rslora``).
        lora_dropout: dropout on their inputs, in training.
        target_modules: linear layers that get one: ``all-linear`` for all but the head, or ends of names
            (``qkv``, ``proj``, ``fc``, ``injection``).
        use_rslora: see ``lora_alpha``.
        base_dtype: of the frozen weights; None as ``trainer.precision`` has it. With ``bfloat16`` and
            ``trainer.precision=32-true`` the adapters and their optimizer are float32 on half the memory.

    Raises:
        ValueError: for values out of range.
        ModuleNotFoundError: without peft.
    """

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    use_rslora: bool = False
    base_dtype: Literal["float32", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        rules = {
            "r": (self.r >= 1, "at least 1"),
            "lora_alpha": (self.lora_alpha > 0, "above 0"),
            "lora_dropout": (0 <= self.lora_dropout < 1, "at least 0 and below 1"),
            "target_modules": (bool(self.target_modules), "all-linear, or names of layers"),
        }
        if problems := [f"{k}={getattr(self, k)!r} must be {rule}" for k, (ok, rule) in rules.items() if not ok]:
            raise ValueError("; ".join(problems))
        try:
            import peft  # noqa: F401
        except ImportError as error:
            raise ModuleNotFoundError(_NEEDED) from error

    def add_to(self, model: RecurrentDepthForCausalLM) -> None:
        """Freeze a model and add adapters, which change nothing before the first step; they are float32 at least.

        Raises:
            ValueError: if the model has no such layers.
        """
        from peft import LoraConfig

        names = ("r", "lora_dropout", "use_rslora", "target_modules")
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        config = LoraConfig(task_type="CAUSAL_LM", lora_alpha=self.lora_alpha, **settings)
        try:
            model.add_adapter(config)
        except ValueError as error:
            raise ValueError(f"target_modules={self.target_modules}: {' '.join(str(error).split())}") from error
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def has_adapters(model: nn.Module) -> bool:
    """Whether :meth:`Lora.add_to` has been at work."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def without_adapters(model: RecurrentDepthForCausalLM) -> RecurrentDepthForCausalLM:
    """The model itself or, with adapters, a copy on the CPU into which they are merged, in the base's dtype."""
    if not has_adapters(model):
        return model
    with torch.device("meta"):
        plain = type(model)(model.config)
    plain.load_state_dict(dict(_merged(model)), strict=False, assign=True)
    plain.tie_weights()
    plain.generation_config = deepcopy(model.generation_config)
    plain.name_or_path = model.name_or_path
    return plain.eval()


def _merged(model: RecurrentDepthForCausalLM) -> Iterator[tuple[str, Tensor]]:
    """The weights by their plain names; a layer at a time leaves the device."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    inside = tuple(f"{name}." for name in layers)
    for name, tensor in model.state_dict().items():
        if not name.startswith(inside):
            yield name, tensor.detach().cpu()
    for name, layer in layers.items():
        layer = deepcopy(layer)
        assert isinstance(layer, nn.Module)
        layer.cpu()
        layer.merge(safe_merge=True)
        for inner, tensor in layer.get_base_layer().state_dict().items():
            yield f"{name}.{inner}", tensor.detach()
