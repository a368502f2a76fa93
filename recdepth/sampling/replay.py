"""One row of a trace as text that grows: what is final, what is drafted, and what each step did to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from .trace import TraceStep


@dataclass(frozen=True)
class LaneView:
    """The lanes of a row in one step, from the front on, and what became of them.

    Attributes:
        first: position of the first lane.
        tokens: their input tokens after the step: a lane that flipped has its new one.
        before: their input tokens during the step.
        depth, age, residual, flipped, committed: as in :class:`TraceStep`.
    """

    first: int
    tokens: Int[np.ndarray, " lanes"]
    before: Int[np.ndarray, " lanes"]
    depth: Int[np.ndarray, " lanes"]
    age: Int[np.ndarray, " lanes"]
    residual: Float[np.ndarray, " lanes"]
    flipped: Bool[np.ndarray, " lanes"]
    committed: Bool[np.ndarray, " lanes"]


class Replay:
    """Follows a row through the steps of its trace.

    Args:
        prompt: the row's prompt.
        row: its place in the batch.

    Attributes:
        front: the token here is the last final one; before the first step it is taken for the prompt's end.
        flips: drafts that changed so far.
        lanes: those of the last step that the row took part in; None before.
    """

    def __init__(self, prompt: list[int], row: int = 0):
        self.row = row
        self.prompt_length = len(prompt)
        self.front = len(prompt)
        self.flips = 0
        self.lanes: LaneView | None = None
        self._tokens = dict(enumerate(prompt))
        self._end = len(prompt)  # drafts reach up to here, exclusive

    @property
    def committed(self) -> list[int]:
        """The new tokens that are final."""
        return [self._tokens[p] for p in range(self.prompt_length, self.front + 1) if p in self._tokens]

    @property
    def drafts(self) -> list[int]:
        """The tokens behind them, up to the one that the last lane proposed."""
        return [self._tokens[p] for p in range(max(self.front + 1, self.prompt_length), self._end)]

    def token(self, position: int) -> int | None:
        """The token at a position; None where there is none yet."""
        return self._tokens.get(position) if position < max(self._end, self.front + 1) else None

    def open(self, step: TraceStep) -> None:
        """Take over what was so before the row's first step: the front, and the token there."""
        positions = step.positions[self.row]
        at = np.nonzero(positions >= 0)[0]
        self.front = int(positions[at[0]])
        self._tokens[self.front] = int(step.tokens[self.row][at[0]])
        self._end = max(self.front + 1, self.prompt_length)

    def advance(self, step: TraceStep) -> bool:
        """Take over what a step did.

        Returns:
            whether the row took part in it.
        """
        row = self.row
        at = np.nonzero(step.positions[row] >= 0)[0]
        if not len(at):
            return False
        first, width = int(step.positions[row][at[0]]), len(at)
        before, proposals = step.tokens[row][at], step.proposals[row][at]
        flipped, committed = step.flipped[row][at], step.committed[row][at]
        tokens = before.copy()
        tokens[1:] = np.where(flipped[1:], proposals[:-1], before[1:])  # a draft is what the lane before it proposed
        residual, depth, age = (a[row][at] for a in (step.residual, step.depth, step.age))
        self.lanes = LaneView(first, tokens, before, depth, age, residual, flipped, committed)
        self._tokens |= dict(zip(range(first, first + width), tokens.tolist(), strict=True))
        if proposals[-1] >= 0:
            self._tokens[first + width] = int(proposals[-1])
            self._end = first + width + 1
        elif self._end != first + width + 1:  # the lane's earlier proposal stands where it was the last one before
            self._end = first + width
        self.front = first + int(committed.sum())
        self.flips += int(flipped.sum())
        return True
