"""What compiled graphs take for granted: nothing checks it at a call."""

from __future__ import annotations

from typing import Any
from weakref import ref

import torch
from torch import nn


class Makeup:
    """What graphs of a model take for granted beside shapes: autocast, its context, its modules, and settings of those
    that are not ours. Adapters, say, may be added, switched off or merged between two calls.
    """

    def __init__(self, model: nn.Module):
        modules = list(model.modules())
        self._modules = [ref(module) for module in modules]
        self._settings = _settings_of(model, modules)

    def holds(self, model: nn.Module) -> bool:
        """Whether all is as it was."""
        modules = list(model.modules())  # once: samplers ask at every call
        same = len(modules) == len(self._modules) and all(a() is b for a, b in zip(self._modules, modules, strict=True))
        return same and self._settings == _settings_of(model, modules)


def _settings_of(model: nn.Module, modules: list[nn.Module]) -> list[Any]:
    kinds = {x.device.type for m in modules for x in m._parameters.values() if x is not None}
    autocast = [torch.get_autocast_dtype(k) if torch.is_autocast_enabled(k) else None for k in sorted(kinds)]
    foreign = [m for m in modules if not type(m).__module__.startswith(("recdepth.", "torch.nn.modules."))]
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return [*autocast, context] + [
        repr({k: v for k, v in vars(m).items() if k not in _OF_ANY and isinstance(v, _PLAIN)}) for m in foreign
    ]


_OF_ANY = vars(nn.Module()).keys() - {"training"}
_PLAIN = bool, int, float, str, tuple, list, dict, set, type(None)
