"""Checkpoint families: how a public format's configuration and tensor names map onto ours.

A family is a module with ``matches(config) -> bool``, ``convert_config(config) -> RecurrentDepthConfig`` and
``rename(name) -> str | None`` (None: the tensor is not a weight). ``config`` is the parsed ``config.json``.
"""

from types import ModuleType

from . import huginn, native

FAMILIES: tuple[ModuleType, ...] = (native, huginn)
