"""Exit criteria: when a lane counts as converged, by what changed between two looks at it.

A *look* comes after every ``inner_steps`` recurrences; what a threshold means therefore depends on ``inner_steps``.
:func:`recdepth.evaluation.calibrate_exit` finds a threshold for a model and a criterion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from typing import ClassVar, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

State = Float[Tensor, "batch lanes dim"]
Logits = Float[Tensor, "batch lanes vocab"]
Feature = Float[Tensor, "batch lanes feature"]
Score = Float[Tensor, "batch lanes"]


class Exit(Protocol):
    """A lane is done when its score falls below ``threshold``; a score that is not a number never does.

    Scores are at least 0, so a threshold of 0 means that no lane exits early.
    """

    #: whether every look must be read out: ``feature`` then gets logits
    reads_logits: ClassVar[bool]

    @property
    def threshold(self) -> float:
        """Below which a lane is done."""
        ...

    def __hash__(self) -> int:
        """Graphs are kept by it; frozen dataclasses have one."""
        ...

    def feature(self, state: State, logits: Logits | None) -> Feature:
        """What is compared between two looks.

        Args:
            state: the lanes' latent states, in the model's dtype.
            logits: what the lanes read out, unnormalised; None unless ``reads_logits``.

        Returns:
            the state itself (no copy) for criteria on states, else float32 or wider.
        """
        ...

    def score(self, now: Feature, before: Feature, previous: Score) -> Score:
        """How much a lane changed between two looks.

        Args:
            now, before: features of this look and of the one before, of the same lane.
            previous: the lane's score at the look before; inf where it has none.

        Returns:
            scores of at least 0, float32 or wider; nan where they are undefined.
        """
        ...


@dataclass(frozen=True)
class LatentDiff:
    """``‖s − s_prev‖ / ‖s‖``: relative change of the state (2510.14961, section 4).

    The paper takes 0.03 with looks 4 recurrences apart. Sensible thresholds are 0.01 to 0.3: bfloat16 rounds states
    by about 0.002, which drowns smaller ones, and a state that still moves by a third has hardly settled. A zero
    state scores nan or inf: not done.
    """

    threshold: float
    reads_logits: ClassVar[bool] = False

    def feature(self, state: State, logits: Logits | None) -> Feature:
        return state

    def score(self, now: Feature, before: Feature, previous: Score) -> Score:
        now, before = _wide(now), _wide(before)
        return vector_norm(now - before, dim=-1) / vector_norm(now, dim=-1)


@dataclass(frozen=True)
class Cosine:
    """``1 − cos(s, s_prev)``, from 0 to 2: how far the state turned, whatever its length.

    Where the length stays, this is about half of the square of :class:`LatentDiff`, so that 0.01 to 0.3 there are
    5e-5 to 5e-2 here; the public Huginn code defaults to 1e-3. Zero states score nan: not done.
    """

    threshold: float
    reads_logits: ClassVar[bool] = False

    def feature(self, state: State, logits: Logits | None) -> Feature:
        return state

    def score(self, now: Feature, before: Feature, previous: Score) -> Score:
        now, before = (x / vector_norm(x, dim=-1, keepdim=True) for x in (_wide(now), _wide(before)))
        return (now - before).square().sum(-1) / 2  # = 1 − cos, but precise at small angles and never below 0


@dataclass(frozen=True)
class EntropyDiff:
    """``|H(p) − H(p_prev)|`` in nats, with p the distribution of the next token: change of its uncertainty.

    The public Huginn code defaults to 1e-3. Sensible thresholds are 1e-4 to 1e-1: entropies lie between 0 and
    log(vocabulary), 11 for 65 536 tokens, and float32 rounds them by about 1e-6. The criterion does not see a
    distribution that moves and stays as sharp, so it wants smaller thresholds than its scale suggests.
    """

    threshold: float
    reads_logits: ClassVar[bool] = True

    def feature(self, state: State, logits: Logits | None) -> Feature:
        return torch.special.entr(_wide(_required(logits)).softmax(-1)).sum(-1, keepdim=True)

    def score(self, now: Feature, before: Feature, previous: Score) -> Score:
        return (now - before).abs().squeeze(-1)


@dataclass(frozen=True)
class KL:
    """``KL(p ‖ p_prev)`` in nats, with p the distribution of the next token.

    The exit rule of 2502.05171 (adaptive compute at test time) with its threshold of 5e-4; the public code has the
    divergence the other way round, which is the same to second order. Sensible thresholds are 1e-5 to 1e-2: no
    token's probability moved by more than sqrt(KL / 2), 0.016 at 5e-4, so a likeliest token that leads by twice that
    is still the likeliest.

    The feature is a row of log-probabilities per lane: as large as the logits.
    """

    threshold: float
    reads_logits: ClassVar[bool] = True

    def feature(self, state: State, logits: Logits | None) -> Feature:
        return _wide(_required(logits)).log_softmax(-1)

    def score(self, now: Feature, before: Feature, previous: Score) -> Score:
        terms = now.exp() * (now - before)
        terms = terms.masked_fill(now == -torch.inf, 0.0)  # 0·log 0 = 0: tokens that are ruled out
        return terms.sum(-1).clamp(min=0.0)  # rounding can leave a negative sum of nearly equal distributions


@dataclass(frozen=True)
class ArgmaxStability:
    """``1 / (1 + n)``, with n the looks in a row whose likeliest token was that of the look before.

    A threshold of 1/m asks for m agreements in a row, exactly. The public Huginn code asks for 5, which is 0.2.
    Sensible are 2 to 8 (0.5 to 0.125): one agreement can be chance, and each one costs a look, so that m must stay
    well below num_steps / inner_steps. It does not see by how much the token leads.

    ``previous`` carries n; inf stands for n = 0. Where a lane has no look before, give nan as ``before`` (n is then 0
    and the score 1), or set the score to inf. Features and scores are float64: exact for every vocabulary and every m.
    """

    threshold: float
    reads_logits: ClassVar[bool] = True

    def feature(self, state: State, logits: Logits | None) -> Feature:
        value, token = _required(logits).max(-1, keepdim=True)
        return token.double().masked_fill(value.isnan(), torch.nan)  # nan agrees with nothing

    def score(self, now: Feature, before: Feature, previous: Score) -> Score:
        agreed = (now == before).squeeze(-1)
        # 1/previous is 1 + n up to rounding, and 0 for inf
        following = previous.double().reciprocal().round().clamp(min=1.0)
        return (1.0 + following * agreed).reciprocal()


Criterion = Literal["latent_diff", "cosine", "entropy_diff", "kl", "argmax_stability"]

#: The criteria by their names in configurations.
EXITS: dict[str, type[LatentDiff | Cosine | EntropyDiff | KL | ArgmaxStability]] = {
    "latent_diff": LatentDiff,
    "cosine": Cosine,
    "entropy_diff": EntropyDiff,
    "kl": KL,
    "argmax_stability": ArgmaxStability,
}


def scores_states(exit: Exit) -> Callable[[State, State], Score]:
    """The score of a criterion that looks at states, as a function of those after and before.

    Equal criteria, whatever their thresholds, get the same function: graphs are kept by it.
    """
    assert not exit.reads_logits
    return _scores_states(replace(exit, threshold=0.0) if is_dataclass(exit) else exit)


@cache
def _scores_states(exit: Exit) -> Callable[[State, State], Score]:
    never = torch.tensor(torch.inf)
    return lambda now, before: exit.score(exit.feature(now, None), exit.feature(before, None), never)


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _required(logits: Logits | None) -> Logits:
    assert logits is not None, "a criterion with reads_logits needs logits"
    return logits
