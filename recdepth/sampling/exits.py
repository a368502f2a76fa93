"""Exit criteria: when a lane's state counts as converged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor


class Exit(Protocol):
    """A lane is done when its score falls below ``threshold``."""

    @property
    def threshold(self) -> float:
        """Below which a lane is done."""
        ...

    def score(
        self, state: Float[Tensor, "batch lanes dim"], before: Float[Tensor, "batch lanes dim"]
    ) -> Float[Tensor, "batch lanes"]:
        """How much a step changed each lane (its own state, before and after)."""
        ...


@dataclass(frozen=True)
class LatentDiff:
    """``‖s − s_prev‖ / ‖s‖`` over one step (2510.14961, section 4; typical thresholds 0.01 to 0.3)."""

    threshold: float

    def score(
        self, state: Float[Tensor, "batch lanes dim"], before: Float[Tensor, "batch lanes dim"]
    ) -> Float[Tensor, "batch lanes"]:
        if state.dtype in (torch.bfloat16, torch.float16):
            state, before = state.float(), before.float()
        return (state - before).norm(dim=-1) / state.norm(dim=-1)
