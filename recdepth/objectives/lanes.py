"""Which lane of a training wavefront opens when: the schedules, and drawing the windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

#: A lane with this opening step stays closed.
NEVER = 1 << 30

#: Where windows begin; see :func:`draw_fronts`.
Fronts = Literal["random", "first"]


class Schedule(Protocol):
    """When the lanes of windows open, in steps of ``inner_steps`` recurrences each.

    Lane j of a window that takes S steps and opens it at step ``o_j`` ends with ``(S − o_j)·inner_steps`` recurrences.
    """

    @property
    def width(self) -> int:
        """Lanes of a window."""
        ...

    @property
    def inner_steps(self) -> int:
        """r', recurrences of a step."""
        ...

    def opens(
        self, shape: tuple[int, int], steps: int, progress: float, generator: torch.Generator | None
    ) -> Int[Tensor, "batch windows width"]:
        """The step at which each lane opens; 0 for the first one, ``NEVER`` for one that stays closed.

        Args:
            shape: rows of the batch, windows of each.
            steps: S.
            progress: fraction of the training that is done.
            generator: torch's random source; None for the global one.
        """
        ...


@dataclass(frozen=True)
class Staircase:
    """The sampler's diagonal: lane j opens ``⌈j/h⌉`` steps after the first, so depths fall from left to right.

    Lane j has had ``max(0, S − ⌈j/h⌉)·r'`` recurrences after S steps. The headway h is drawn for each window, so that
    one model serves samplers of every headway that is listed.

    Args:
        width: W, most lanes of a window.
        headway: h, lanes opened a step; one number, or several to draw from.
        inner_steps: r', recurrences of a step.
        width_growth: fraction of the training over which the lanes in use grow linearly from 1 to W; 0 for all at once.

    Raises:
        ValueError: for values out of range.
    """

    width: int = 8
    headway: int | Sequence[int] = (1, 2, 4)
    inner_steps: int = 1
    width_growth: float = 0.0

    def __post_init__(self) -> None:
        problems = [
            f"{k}={getattr(self, k)} must be at least 1" for k in ("width", "inner_steps") if getattr(self, k) < 1
        ]
        if min(self._headways, default=0) < 1:
            problems.append(f"headway={self.headway} must be at least 1, or a list of such numbers")
        if not 0 <= self.width_growth <= 1:
            problems.append(f"width_growth={self.width_growth} is a fraction of the training, between 0 and 1")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def _headways(self) -> list[int]:
        return [self.headway] if isinstance(self.headway, int) else list(self.headway)

    def lanes_at(self, progress: float) -> int:
        """Lanes in use when so much of the training is done."""
        if progress >= self.width_growth:
            return self.width
        return 1 + int((self.width - 1) * progress / self.width_growth)

    def opens(
        self, shape: tuple[int, int], steps: int, progress: float, generator: torch.Generator | None
    ) -> Int[Tensor, "batch windows width"]:
        choices = torch.tensor(self._headways)
        headway = choices[torch.randint(len(choices), (*shape, 1), generator=generator)]
        lane = torch.arange(self.width)
        opens = (lane + headway - 1).div(headway, rounding_mode="floor")
        return opens.masked_fill(lane >= self.lanes_at(progress), NEVER)


@dataclass(frozen=True)
class IndependentDepths:
    """Every position draws its own depth, as every frame its own noise in Diffusion Forcing (2407.01392).

    ``d_j`` is uniform over 1 … S for every lane but the first, which has all S; lane j opens ``S − d_j`` steps after
    the first one and is invisible to the others until then. Right neighbours may be deeper than left ones.

    Args:
        width: W, lanes of a window.

    Raises:
        ValueError: for values out of range.
    """

    width: int = 8
    inner_steps = 1

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width={self.width} must be at least 1")

    def opens(
        self, shape: tuple[int, int], steps: int, progress: float, generator: torch.Generator | None
    ) -> Int[Tensor, "batch windows width"]:
        opens = torch.randint(steps, (*shape, self.width), generator=generator)
        opens[..., 0] = 0
        return opens


@dataclass(frozen=True)
class SingleLanes:
    """Windows of one lane: autoregressive decoding with shared KV, at many places at once (terminal KV).

    Recurrence t of position p attends to the keys that the positions before it had at their *last* recurrence and to
    its own at t, where fixed-depth training lets it attend to everyone's at t. Models trained at fixed depth are known
    to lose accuracy under such sharing (2610.06833).
    """

    width = 1
    inner_steps = 1

    def opens(
        self, shape: tuple[int, int], steps: int, progress: float, generator: torch.Generator | None
    ) -> Int[Tensor, "batch windows width"]:
        return torch.zeros((*shape, 1), dtype=torch.long)


def draw_fronts(
    labels: Int[Tensor, "batch time"], windows: int, generator: torch.Generator | None, fronts: Fronts = "random"
) -> Int[Tensor, "batch windows"]:
    """Where windows begin, drawn with replacement from positions that predict a labelled token.

    Args:
        labels: not shifted, -100 ignored. A row without labels gets windows anywhere; they have no targets.
        windows: per row.
        generator: torch's random source; None for the global one.
        fronts: ``random`` takes any of them, ``first`` the first of each run of them (an answer).
    """
    predicts = (labels[:, 1:] != -100).float().cpu()
    if fronts == "first":
        predicts[:, 1:] *= 1.0 - predicts[:, :-1].clone()
    predicts[predicts.sum(1) == 0] = 1.0
    return torch.multinomial(predicts, windows, replacement=True, generator=generator).to(labels.device)
