"""From logits to tokens: greedy, or sampled with randomness that belongs to the position."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from recdepth.models.randomness import TOKEN, gumbel


@dataclass(frozen=True)
class TokenChooser:
    """Choose tokens greedily (``temperature=0``) or by the Gumbel-max trick.

    There is one Gumbel draw per (seed, row, position), reused by every draft of that position: a draft stays put when
    its distribution hardly moves, and two samplers that see the same logits choose the same token.

    Args:
        temperature: 0 for greedy.
        top_k: keep the k likeliest tokens; 0 for all.
        top_p: keep the smallest set of tokens with this much probability; 1 for all.
        min_p: keep tokens with at least this fraction of the likeliest one's probability; 0 for all.
        seed: random seed of the draws.

    Raises:
        ValueError: for values out of range, or filters that greedy choice would ignore.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "temperature": (self.temperature >= 0, "at least 0 (0 is greedy)"),
            "top_k": (self.top_k >= 0, "at least 0 (0 keeps all)"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (1 keeps all)"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1 (0 keeps all)"),
        }
        problems = [f"{k}={getattr(self, k)} must be {rule}" for k, (ok, rule) in checks.items() if not ok]
        if self.temperature == 0:
            filters = {"top_k": self.top_k != 0, "top_p": self.top_p != 1, "min_p": self.min_p != 0}
            problems += [
                f"{k}={getattr(self, k)} has no effect at temperature=0; raise the temperature or drop it"
                for k, used in filters.items()
                if used
            ]
        if problems:
            raise ValueError("; ".join(problems))

    def __call__(
        self,
        logits: Float[Tensor, "batch lanes vocab"],
        rows: Int[Tensor, " batch"],
        positions: Int[Tensor, "batch lanes"],
    ) -> Int[Tensor, "batch lanes"]:
        """Choose a token for each place.

        Args:
            logits: unnormalised log-probabilities.
            rows: random-stream ids.
            positions: the positions that the tokens are for.
        """
        return self.pick(logits, self.noise(rows[:, None], positions, logits.shape[-1]))

    def noise(
        self, rows: Int[Tensor, "batch own"], positions: Int[Tensor, "batch lanes"], vocabulary: int
    ) -> Float[Tensor, "batch lanes vocab"] | None:
        """The Gumbel draws of these places, whose random streams are given each or per row; None for greedy choice."""
        if self.temperature == 0:
            return None
        return gumbel(self.seed, TOKEN, rows, positions, count=vocabulary)

    @cached_property
    def pick(self) -> TokenPick:
        """The choice itself, which knows no seed: compiled graphs are kept by it."""
        return TokenPick(self.temperature, self.top_k, self.top_p, self.min_p)


@dataclass(frozen=True)
class TokenPick:
    """From logits and noise to tokens; settings as in :class:`TokenChooser`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float

    def __call__(
        self, logits: Float[Tensor, "batch lanes vocab"], noise: Float[Tensor, "batch lanes vocab"] | None
    ) -> Int[Tensor, "batch lanes"]:
        """The likeliest tokens, or with noise those of a sample."""
        if noise is None:
            return logits.argmax(-1)
        kept = logits.flatten(0, 1)
        for warper in self._warpers():
            kept = warper(None, kept)  # these look at scores only
        return (kept.view_as(logits) + noise).argmax(-1)

    def _warpers(self) -> list[LogitsProcessor]:
        warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(float(self.temperature))]
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        if self.min_p:
            warpers.append(MinPLogitsWarper(self.min_p))
        return warpers
