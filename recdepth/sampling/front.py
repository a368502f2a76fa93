"""The wavefront's bookkeeping on the host: which lanes are open, what flips, what commits, what opens next.

Everything is numpy over [batch, lanes] or [batch, positions]; the device holds states and caches only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from .policies import Policy

LaneInts = Int[np.ndarray, "batch lanes"]
LaneBools = Bool[np.ndarray, "batch lanes"]


@dataclass(frozen=True)
class Lanes:
    """The open lanes of all rows before a step; a lane that a row does not use has position -1.

    Attributes:
        positions: [batch, lanes].
        active: which of them are in use.
        start: the first position where all rows have the same lanes, else None.
        stale: index of the first lane whose embedding must be recomputed, over all rows.
        depth, age: recurrences since the input changed, and since the lane was opened.
        steps: [batch], recurrences that each row gets in this step.
    """

    positions: LaneInts
    active: LaneBools
    start: int | None
    stale: int
    depth: LaneInts
    age: LaneInts
    steps: Int[np.ndarray, " batch"]

    @property
    def width(self) -> int:
        return self.positions.shape[1]


@dataclass(frozen=True)
class Outcome:
    """What a step decided, per lane of the step.

    Attributes:
        flipped: the lane's own input token changed.
        behind_flip: the lane or one before it flipped.
        committed: the lane is final.
        depth: recurrences since the lane's input last changed, before flips reset it.
        age: recurrences since the lane was opened.
    """

    flipped: LaneBools
    behind_flip: LaneBools
    committed: LaneBools
    depth: LaneInts
    age: LaneInts


class Front:
    """Tokens, fronts and lane counters of a batch.

    Positions below ``front`` are committed and the token at ``front`` is final; lanes are ``front … front+width-1``.

    Args:
        prompts: token ids, one non-empty list per row.
        max_new_tokens: tokens to generate, at least 1.
        stop_tokens: ids that end a row.
        policy: the sampler's settings.
    """

    def __init__(self, prompts: list[list[int]], max_new_tokens: int, stop_tokens: set[int], policy: Policy):
        self.policy = policy
        batch = len(prompts)
        self.prompt = np.array([len(p) for p in prompts])
        self.last = self.prompt + max_new_tokens - 1  # position of the last token that may be generated
        self.capacity = int(self.last.max()) + 1
        self.tokens = np.zeros((batch, self.capacity + 1), dtype=np.int64)
        self.tokens[:, :-1][np.arange(self.capacity) < self.prompt[:, None]] = np.concatenate(prompts)
        self.stop = np.array(sorted(stop_tokens), dtype=np.int64)
        self.front = np.zeros(batch, dtype=np.int64)
        self.width = np.zeros(batch, dtype=np.int64)
        self.stale = np.zeros(batch, dtype=np.int64)  # first position whose embedding is out of date
        self.depth = np.zeros((batch, self.capacity + 1), dtype=np.int64)
        self.age = np.zeros((batch, self.capacity + 1), dtype=np.int64)
        self.finished = np.zeros(batch, dtype=bool)

    def open_after_prefill(self, first_tokens: Int[np.ndarray, " batch"]) -> None:
        """Commit the prompts and the tokens that they predict."""
        rows = np.arange(len(self.prompt))
        self.front[:] = self.stale[:] = self.prompt
        self.tokens[rows, self.prompt] = first_tokens
        self._finish(np.isin(first_tokens, self.stop))
        self._extend(1)

    def open_over_prompt(self) -> None:
        """Open the wavefront over the whole prompts (no prefill)."""
        self.width[:] = self.prompt

    def reopen(self) -> None:
        """Drop all lanes and open as many as may be, at depth 0 (speculative rounds)."""
        self.width[:] = 0
        self._extend(self.policy.max_wavefront)
        self.stale = self.front.copy()

    def take_drafts(self, lanes: Lanes, drafts: LaneInts) -> LaneInts:
        """Let the lanes' drafts be the tokens behind them; returns the lanes' input tokens."""
        rows = np.arange(len(self.front))[:, None]
        self.tokens[rows, np.where(lanes.active, lanes.positions + 1, -1)] = drafts
        return self.tokens[rows, lanes.positions]

    def lanes(self) -> Lanes:
        """The lanes of the next step."""
        offsets = np.arange(self.width.max())
        active = offsets < self.width[:, None]
        positions = np.where(active, self.front[:, None] + offsets, -1)
        same = (self.front == self.front[0]).all() and bool(active.all())
        rows = np.arange(len(self.front))
        head = self.depth[rows, self.front]
        steps = np.minimum(self.policy.inner_steps, self.policy.num_steps - head)
        return Lanes(
            positions=positions,
            active=active,
            start=int(self.front[0]) if same else None,
            stale=int(np.where(self.width > 0, self.stale - self.front, self.width.max()).min()),
            depth=self.depth[rows[:, None], positions],
            age=self.age[rows[:, None], positions],
            steps=np.where(self.width > 0, steps, 0),
        )

    def advance(self, lanes: Lanes, proposals: LaneInts | None, converged: LaneBools | np.bool) -> Outcome:
        """Apply what a step read out: drafts, flips, commits, stops, and new lanes.

        Args:
            lanes: the lanes of the step.
            proposals: the token each lane proposes for the next position; None if none was read (nothing commits).
            converged: lanes that their exit criterion calls done.
        """
        rows = np.arange(len(self.front))[:, None]
        depth, age = lanes.depth + lanes.steps[:, None], lanes.age + lanes.steps[:, None]
        self.depth[rows, lanes.positions], self.age[rows, lanes.positions] = depth, age
        if proposals is None:
            none = np.zeros_like(lanes.active)
            self.stale = self.front + self.width
            return Outcome(none, none, none, depth, age)

        # a lane proposes the token behind it; prompt tokens never flip
        behind = np.where(lanes.active, lanes.positions + 1, -1)
        free = lanes.active & (behind >= self.prompt[:, None])
        flipped = np.zeros_like(lanes.active)
        changed = free & (proposals != self.tokens[rows, behind])
        flipped[:, 1:] = (changed & (np.arange(lanes.width) < self.width[:, None] - 1))[:, :-1]
        self.tokens[rows, np.where(free, behind, -1)] = proposals
        behind_flip = np.logical_or.accumulate(flipped, axis=1) & lanes.active
        self.depth[rows, np.where(behind_flip, lanes.positions, -1)] = 0

        done = lanes.active & ((depth >= self.policy.num_steps) | converged)
        committed = np.logical_and.accumulate(done & ~flipped, axis=1)
        committed = self._cut_at_stop(committed, rows)
        count = committed.sum(1)
        first_flip = np.where(flipped.any(1), flipped.argmax(1), self.width)
        self.stale = self.front + np.maximum(first_flip, count)
        self.front = self.front + count
        self.width = self.width - count
        self._extend(self.policy.headway)
        return Outcome(flipped, behind_flip, committed, depth, age)

    def forget_age(self, lanes: Lanes, which: LaneBools) -> None:
        """Let lanes start anew at age 0 (their states were reset)."""
        rows = np.arange(len(self.front))[:, None]
        self.age[rows, np.where(which, lanes.positions, -1)] = 0

    def new_tokens(self, row: int) -> list[int]:
        """The tokens of a row that are final."""
        return self.tokens[row, self.prompt[row] : self.front[row] + 1].tolist()

    def keep_rows(self, rows: Int[np.ndarray, " kept"]) -> None:
        """Drop all other rows."""
        for name in ("prompt", "last", "tokens", "front", "width", "stale", "depth", "age", "finished"):
            setattr(self, name, getattr(self, name)[rows])

    def _cut_at_stop(self, committed: LaneBools, rows: Int[np.ndarray, "batch 1"]) -> LaneBools:
        """End rows whose newly final tokens hold a stop token: nothing behind it is committed."""
        positions = self.front[:, None] + np.arange(committed.shape[1]) + 1
        final = self.tokens[rows, np.minimum(positions, self.capacity)]
        stops = committed & np.isin(final, self.stop) & (positions >= self.prompt[:, None])
        before = np.logical_or.accumulate(stops, axis=1) & ~stops  # lanes behind the first stop, or later stops
        first = stops & (stops.cumsum(1) == 1)
        committed = committed & (~before & (~stops | first))
        self._finish(np.asarray(stops.any(1)))
        return committed

    def _finish(self, which: Bool[np.ndarray, " batch"]) -> None:
        self.finished = self.finished | which

    def _extend(self, headway: int) -> None:
        """Open new lanes, guess their tokens, and close rows that have all their tokens."""
        self.finished = self.finished | (self.front >= self.last)
        room = np.minimum(self.last - self.front, self.policy.max_wavefront)
        width = np.where(self.finished, 0, np.maximum(np.minimum(self.width + headway, room), self.width))
        opened = np.arange(headway) + (self.front + self.width)[:, None]
        fresh = opened < (self.front + width)[:, None]
        rows = np.arange(len(self.front))[:, None]
        # the first new lane's token was proposed by the lane before it; further ones repeat it until they are drafted
        guess = self.tokens[rows, np.minimum(opened[:, :1], self.capacity)]
        self.tokens[rows, np.where(fresh, opened, -1)] = guess
        at = np.where(fresh, opened, -1)
        self.depth[rows, at] = self.age[rows, at] = 0
        self.width = width
