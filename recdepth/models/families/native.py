"""Our own format: what ``save_pretrained`` writes."""

from __future__ import annotations

from typing import Any

from ..config import RecurrentDepthConfig


def matches(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` describes this family."""
    return config.get("model_type") == RecurrentDepthConfig.model_type


def convert_config(config: dict[str, Any]) -> RecurrentDepthConfig:
    """Read our configuration.

    Raises:
        ValueError: for impossible settings.
    """
    return RecurrentDepthConfig.from_dict(config)


def rename(name: str) -> str | None:
    """Our name of a tensor: its own."""
    return name
