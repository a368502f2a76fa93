"""Checking constructor arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def at_least_one(**settings: float) -> None:
    """Raise ValueError naming every setting that is below 1."""
    if wrong := [f"{name}={value} must be at least 1" for name, value in settings.items() if value < 1]:
        raise ValueError("; ".join(wrong))


def only_samplers(samplers: Mapping[str, Any]) -> None:
    """Raise ValueError naming every entry that is no sampler, such as settings of one that was not chosen."""
    if wrong := [name for name, each in samplers.items() if not callable(each)]:
        how = "choose one for it in the defaults list, /sampler@….samplers.{0}: diffusion_forcing"
        raise ValueError("; ".join(f"samplers.{name}=… is no sampler: {how.format(name)}" for name in wrong))
