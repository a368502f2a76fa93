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
        self._modules = [(ref(m), [None if x is None else ref(x) for x in m._modules.values()]) for m in modules]
        foreign = [m for m in modules if not type(m).__module__.startswith(("recdepth.", "torch.nn.modules."))]
        self._foreign = [ref(m) for m in foreign]
        self._devices = sorted({"cpu", "cuda"} | {x.device.type for x in model.parameters()})
        self._settings = self._settings_of(model)

    def holds(self, model: nn.Module) -> bool:
        """Whether all is as it was."""
        if self._modules[0][0]() is not model:
            return False
        for module, parts in self._modules:  # none is named on the way: samplers ask at every call
            m = module()
            if m is None or list(m._modules.values()) != [x if x is None else x() for x in parts]:
                return False
        return self._settings == self._settings_of(model)

    def _settings_of(self, model: nn.Module) -> list[Any]:
        autocast = [torch.get_autocast_dtype(k) if torch.is_autocast_enabled(k) else None for k in self._devices]
        context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        return [*autocast, context] + [
            repr({k: v for k, v in vars(m()).items() if k not in _OF_ANY and isinstance(v, _PLAIN)})
            for m in self._foreign
        ]


_OF_ANY = vars(nn.Module()).keys() - {"training"}
_PLAIN = bool, int, float, str, tuple, list, dict, set, type(None)
