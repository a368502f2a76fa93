"""Next-token prediction at a random depth."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from recdepth.models import RecurrentDepthForCausalLM, sample_depth

from .base import Loss


class NextToken:
    """Cross-entropy of the next token after ``r`` recurrences, one random ``r`` per step (2502.05171, section 3.3).

    ``r ~ Poisson(LogNormal(log r̄ - σ²/2, σ=½)) + 1``; gradients flow through the last ``backprop_depth`` recurrences.

    Args:
        mean_recurrence: r̄; None takes the model configuration's.
        backprop_depth: None takes the model configuration's.
        depth_growth: fraction of the training over which r̄ grows linearly from ``grow_from``; 0 for none
            (as in retrofitted recurrence, arXiv 2511.07384).
        grow_from: r̄ at the start of the growth.
        least_recurrence: no step has fewer recurrences, with the same mean: for tasks that cannot be done in fewer,
            where shallow steps teach shortcuts; 1 is the paper's distribution.
        checkpoint_recurrences: recompute each recurrence in the backward pass to save memory.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        mean_recurrence: float | None = None,
        backprop_depth: int | None = None,
        depth_growth: float = 0.0,
        grow_from: float = 1.0,
        least_recurrence: int = 1,
        checkpoint_recurrences: bool = False,
    ):
        if mean_recurrence is not None and not mean_recurrence > 0:
            raise ValueError(f"mean_recurrence={mean_recurrence} must be positive")
        if backprop_depth is not None and backprop_depth < 1:
            raise ValueError(f"backprop_depth={backprop_depth} must be at least 1")
        if not 0 <= depth_growth <= 1:
            raise ValueError(f"depth_growth={depth_growth} is a fraction of the training, between 0 and 1")
        if not grow_from > 0:
            raise ValueError(f"grow_from={grow_from} must be positive")
        if least_recurrence < 1:
            raise ValueError(f"least_recurrence={least_recurrence} must be at least 1")
        means = {"mean_recurrence": mean_recurrence, "grow_from": grow_from if depth_growth else None}
        for name, mean in means.items():
            if mean is not None and least_recurrence > max(mean, 1):
                raise ValueError(
                    f"least_recurrence={least_recurrence} exceeds {name}={mean}; lower it or raise the mean"
                )
        self.mean_recurrence = mean_recurrence
        self.backprop_depth = backprop_depth
        self.depth_growth = depth_growth
        self.grow_from = grow_from
        self.least_recurrence = least_recurrence
        self.checkpoint_recurrences = checkpoint_recurrences

    def mean_at(self, model: RecurrentDepthForCausalLM, progress: float) -> float:
        """r̄ when ``progress`` (0 … 1) of the training is done."""
        mean = self.mean_recurrence or float(model.config.mean_recurrence)
        if progress >= self.depth_growth:
            return mean
        return self.grow_from + (mean - self.grow_from) * progress / self.depth_growth

    def __call__(
        self,
        model: RecurrentDepthForCausalLM,
        batch: Mapping[str, Tensor],
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Loss:
        """The loss of a batch; see :class:`~recdepth.objectives.Objective`."""
        depth = sample_depth(self.mean_at(model, progress), generator, least=self.least_recurrence)
        out = model(
            batch["input_ids"],
            num_steps=depth,
            backprop_depth=self.backprop_depth or model.config.backprop_depth,
            checkpoint_recurrences=self.checkpoint_recurrences,
        )
        return next_token_loss(out.logits, batch["labels"], depth)


def next_token_loss(logits: Float[Tensor, "batch time vocab"], labels: Int[Tensor, "batch time"], depth: int) -> Loss:
    """Cross-entropy of the next token; labels are not shifted, -100 is ignored."""
    logits, targets = logits[:, :-1], labels[:, 1:]
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    with torch.no_grad():
        counted = targets != -100
        count = counted.sum().clamp(min=1)
        right = ((logits.argmax(-1) == targets) & counted).sum() / count
    return Loss(total, count, {"depth": float(depth), "token_accuracy": right})
