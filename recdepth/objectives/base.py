"""What an objective is and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from recdepth.models import RecurrentDepthForCausalLM


@dataclass
class Loss:
    """A summed loss and what it is summed over.

    Attributes:
        sum: scalar, differentiable.
        count: scalar, the number of targets in the sum (at least 1).
        metrics: named scalars for the log.
    """

    sum: Tensor
    count: Tensor
    metrics: dict[str, Tensor | float] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        """Loss per target, in nats."""
        return self.sum / self.count


class Objective(Protocol):
    """A training objective."""

    def __call__(
        self,
        model: RecurrentDepthForCausalLM,
        batch: Mapping[str, Tensor],
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Loss:
        """Compute the loss of a batch.

        Args:
            model: the model in training.
            batch: ``input_ids`` and ``labels``, both [batch, time]; labels are not shifted, -100 is ignored.
            progress: fraction of the training that is done, for schedules.
            generator: source of the depth draw; None for torch's global one.
        """
        ...
