"""Several loss terms in one step, by weight, on one shared deep pass."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recdepth.models import RecurrentDepthForCausalLM, sample_depth

from .base import Loss
from .deep import deep_pass
from .next_token import NextToken, next_token_loss
from .terms import Term

PLAIN = "next_token"


class Weighted(NextToken):
    """``Σ_i w_i · mean_i``: next-token prediction at a random depth, and further terms that share its forward pass.

    With weight on ``next_token`` alone this *is* :class:`NextToken`, bit for bit. A term of weight 0 is not computed.
    Where only wavefronts are weighted, the deep pass runs without gradients: it then costs a third.

    Logs ``train/<term>`` (the mean of the term, unweighted) and ``train/<term>_<metric>``.

    Args:
        weights: of ``next_token`` and of the terms, by name.
        terms: by name; each of them has a weight.
        mean_recurrence, backprop_depth, depth_growth, grow_from, least_recurrence: of the deep pass, as in
            :class:`NextToken`.
        checkpoint_recurrences: recompute each recurrence in the backward pass to save memory, in the terms too.

    Raises:
        ValueError: for weights that are negative, all zero, or of terms that are not there.
    """

    def __init__(
        self,
        weights: dict[str, float],
        terms: dict[str, Term] | None = None,
        mean_recurrence: float | None = None,
        backprop_depth: int | None = None,
        depth_growth: float = 0.0,
        grow_from: float = 1.0,
        least_recurrence: int = 1,
        checkpoint_recurrences: bool = False,
    ):
        super().__init__(
            mean_recurrence, backprop_depth, depth_growth, grow_from, least_recurrence, checkpoint_recurrences
        )
        self.weights = {PLAIN: 0.0, **weights}
        self.terms = dict(terms or {})
        problems = [
            f"weights.{name}={weight} must be at least 0" for name, weight in weights.items() if not weight >= 0
        ]
        known = ", ".join([PLAIN, *self.terms])
        problems += [
            f"weights.{name}={weight} is of no term; there are {known}"
            for name, weight in self.weights.items()
            if name != PLAIN and name not in self.terms
        ]
        problems += [
            f"terms.{name}=… has no weight; set weights.{name} (0 leaves it out)"
            for name in self.terms
            if name not in weights
        ]
        if not problems and not any(self.weights.values()):
            problems.append(f"weights={self.weights} are all 0; set weights.{PLAIN}=1.0")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def active(self) -> dict[str, Term]:
        """The terms that are computed."""
        return {name: term for name, term in self.terms.items() if self.weights[name]}

    def __call__(
        self,
        model: RecurrentDepthForCausalLM,
        batch: Mapping[str, Tensor],
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Loss:
        """The loss of a batch; see :class:`~recdepth.objectives.Objective`."""
        weight, active = self.weights[PLAIN], self.active
        if not active:
            loss = super().__call__(model, batch, progress, generator)
            return loss if weight == 1.0 else Loss(weight * loss.sum, loss.count, loss.metrics)
        depth = sample_depth(self.mean_at(model, progress), generator, least=self.least_recurrence)
        plain = bool(weight) or any(term.through_states for term in active.values())
        with torch.set_grad_enabled(plain and torch.is_grad_enabled()):
            deep = deep_pass(
                model,
                batch["input_ids"],
                depth,
                self.backprop_depth or model.config.backprop_depth,
                checkpoint_recurrences=self.checkpoint_recurrences,
            )
        parts = {PLAIN: next_token_loss(deep.logits, batch["labels"], depth)} if weight else {}
        for name, term in active.items():
            parts[name] = term(model, batch, deep, progress, generator)
        return self._add(parts, depth)

    def _add(self, parts: Mapping[str, Loss], depth: int) -> Loss:
        """The weighted mean times the plain count, so that steps of different sizes add up as they do without terms."""
        count = parts[PLAIN].count if PLAIN in parts else torch.ones_like(next(iter(parts.values())).count)
        total = sum(
            (self.weights[name] * (part.sum if name == PLAIN else part.mean * count) for name, part in parts.items()),
            start=torch.zeros((), device=count.device),
        )
        metrics: dict[str, Tensor | float] = {"depth": float(depth)}
        for name, part in parts.items():
            metrics[name] = part.mean.detach()
            if name == PLAIN:
                metrics |= part.metrics
            else:
                metrics |= {f"{name}_{metric}": value for metric, value in part.metrics.items()}
        return Loss(total, count, metrics)
