"""Checkpoint families: how a public format's configuration and tensors map onto ours, both ways.

A family is a module of the shape of :class:`Family`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol

from torch import Tensor

from ..config import RecurrentDepthConfig
from . import huginn, native, ouro, raven_llama


class Family(Protocol):
    """What a family says of its format. ``config`` is the parsed ``config.json``."""

    @property
    def FIXED(self) -> dict[str, Any]:
        """Our settings that the format implies: what it cannot store otherwise."""
        ...

    @property
    def CAPABILITIES(self) -> dict[str, Any]:
        """What samplers may count on: ``decodable_at_depth``, ``kv_sharing_safe`` (injection is a setting)."""
        ...

    @property
    def IGNORED(self) -> tuple[str, ...]:
        """Tensors that a checkpoint may hold and that are no weights."""
        ...

    def matches(self, config: dict[str, Any], names: Collection[str] | None) -> bool:
        """Whether a configuration, with these tensor names (None: whatever they are), is of this family."""
        ...

    def convert_config(self, config: dict[str, Any]) -> RecurrentDepthConfig:
        """Translate a configuration; ValueError for a variant that is not covered."""
        ...

    def export_config(self, config: RecurrentDepthConfig) -> dict[str, Any]:
        """The other way."""
        ...

    def export_problems(self, config: RecurrentDepthConfig) -> Iterable[str]:
        """What the format cannot store beside ``FIXED``, one sentence each."""
        ...

    def names(self, ours: str) -> tuple[str, ...]:
        """The format's tensors that, stacked along their first dimension, are our tensor of this name."""
        ...

    def extra_tensors(self, config: RecurrentDepthConfig) -> dict[str, Tensor]:
        """Tensors that the public implementation stores beside the weights."""
        ...


FAMILIES: dict[str, Family] = {
    "recdepth": native,
    "huginn": huginn,
    "raven_llama": raven_llama,
    "ouro": ouro,
}
