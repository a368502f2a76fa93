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
        starts: by name, the fraction of the training before which a term is left out: plain training comes first, and
            costs what it costs. Terms without one start at once.
        mean_recurrence, backprop_depth, depth_growth, grow_from, least_recurrence: of the deep pass, as in
            :class:`NextToken`.
        checkpoint_recurrences: recompute each recurrence in the backward pass to save memory, in the terms too.

    Raises:
        ValueError: for weights that are negative, all zero, or of terms that are not there, and for starts that leave
            steps without any term.
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
        starts: dict[str, float] | None = None,
    ):
        super().__init__(
            mean_recurrence, backprop_depth, depth_growth, grow_from, least_recurrence, checkpoint_recurrences
        )
        self.weights = {PLAIN: 0.0, **weights}
        self.terms = dict(terms or {})
        self.starts = dict(starts or {})
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
        problems += [
            f"starts.{name}={start} must be a fraction of the training, from 0 to below 1"
            for name, start in self.starts.items()
            if not 0 <= start < 1
        ]
        problems += [
            f"starts.{name}={start} is of no term; there are {', '.join(self.terms)}"
            for name, start in self.starts.items()
            if name not in self.terms
        ]
        growths = {
            name: getattr(getattr(term, "schedule", None), "width_growth", 0.0) for name, term in self.terms.items()
        }
        problems += [
            f"terms.{name}.schedule.width_growth={growths[name]} is over before starts.{name}={start};"
            " both are fractions of the whole training: raise the one, or lower the other"
            for name, start in self.starts.items()
            if 0 < growths.get(name, 0.0) <= start
        ]
        if not problems and not any(self.weights.values()):
            problems.append(f"weights={self.weights} are all 0; set weights.{PLAIN}=1.0")
        if not problems and not self.weights[PLAIN] and not self.active_at(0.0):
            late = {name: self.starts[name] for name in self.active_at(1.0)}
            problems.append(
                f"starts={late}: there is nothing to train on before; set weights.{PLAIN}=1.0 or a start to 0"
            )
        if problems:
            raise ValueError("; ".join(problems))

    def active_at(self, progress: float) -> dict[str, Term]:
        """The terms that are computed when ``progress`` (0 … 1) of the training is done."""
        return {n: term for n, term in self.terms.items() if self.weights[n] and progress >= self.starts.get(n, 0.0)}

    def __call__(
        self,
        model: RecurrentDepthForCausalLM,
        batch: Mapping[str, Tensor],
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Loss:
        """The loss of a batch; see :class:`~recdepth.objectives.Objective`."""
        weight, active = self.weights[PLAIN], self.active_at(progress)
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
