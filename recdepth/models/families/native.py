"""Our own format: what ``save_pretrained`` writes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor

from ..config import RecurrentDepthConfig

FIXED: dict[str, Any] = {}
CAPABILITIES: dict[str, Any] = {}  # a configuration has its own
IGNORED: tuple[str, ...] = ()


def matches(config: dict[str, Any], names: Collection[str] | None) -> bool:
    """Whether a ``config.json`` describes this family."""
    return config.get("model_type") == RecurrentDepthConfig.model_type


def convert_config(config: dict[str, Any]) -> RecurrentDepthConfig:
    """Read our configuration.

    Raises:
        ValueError: for impossible settings.
    """
    return RecurrentDepthConfig.from_dict(config)


def export_config(config: RecurrentDepthConfig) -> dict[str, Any]:
    """Write our configuration."""
    return {**config.to_dict(), "architectures": ["RecurrentDepthForCausalLM"]}


def export_problems(config: RecurrentDepthConfig) -> Iterable[str]:
    """None beside ``FIXED``."""
    return ()


def names(ours: str) -> tuple[str, ...]:
    """A tensor has its own name."""
    return (ours,)


def extra_tensors(config: RecurrentDepthConfig) -> dict[str, Tensor]:
    """None."""
    return {}
