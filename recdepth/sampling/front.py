"""The wavefront's bookkeeping on the host: which lanes are open, what flips, what commits, what opens next.

Everything is numpy over [batch, lanes] or [batch, positions]; the device holds states and caches only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int

from .guesses import guess
from .policies import Policy

LaneInts = Int[np.ndarray, "batch lanes"]
LaneBools = Bool[np.ndarray, "batch lanes"]
Rows = Int[np.ndarray, " rows"]


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
        due: lanes that are to be read out after the step.
    """

    positions: LaneInts
    active: LaneBools
    start: int | None
    stale: int
    depth: LaneInts
    age: LaneInts
    steps: Int[np.ndarray, " batch"]
    due: LaneBools

    @property
    def width(self) -> int:
        return self.positions.shape[1]

    @property
    def end(self) -> int:
        """The position behind the last lane of all rows."""
        return int(self.positions.max()) + 1 if self.start is None else self.start + self.width


@dataclass(frozen=True)
class Outcome:
    """What a step decided, per lane of the step.

    Attributes:
        flipped: the lane's own input token changed.
        behind_flip: the lane or one before it flipped.
        committed: the lane is final.
        depth: recurrences since the lane's input last changed, before flips reset it.
        age: recurrences since the lane was opened.
        withdrawn: pending flips that a second read-out took back.
    """

    flipped: LaneBools
    behind_flip: LaneBools
    committed: LaneBools
    depth: LaneInts
    age: LaneInts
    withdrawn: int = 0


class Front:
    """Tokens, fronts and lane counters of a batch; every row serves one prompt at a time.

    Positions below ``front`` are committed and the token at ``front`` is final; lanes are ``front … front+width-1``.

    Args:
        batch: rows.
        capacity: positions of the longest prompt with its new tokens.
        stop_tokens: ids that end a row.
        policy: the sampler's settings.
    """

    def __init__(self, batch: int, capacity: int, stop_tokens: Collection[int], policy: Policy):
        self.policy = policy
        self.capacity = capacity
        self.stop = np.array(sorted(stop_tokens), dtype=np.int64)
        self.prompt = np.zeros(batch, dtype=np.int64)
        self.last = np.zeros(batch, dtype=np.int64)  # position of the last token that may be generated
        self.front = np.zeros(batch, dtype=np.int64)
        self.width = np.zeros(batch, dtype=np.int64)
        self.stale = np.zeros(batch, dtype=np.int64)  # first position whose embedding is out of date
        self.tokens = np.zeros((batch, capacity + 1), dtype=np.int64)  # the spare position swallows unused lanes
        self.pending = np.full((batch, capacity + 1), -1, dtype=np.int64)  # another token, said once (confirm_flips)
        self.depth = np.zeros((batch, capacity + 1), dtype=np.int64)
        self.age = np.zeros((batch, capacity + 1), dtype=np.int64)
        self.finished = np.ones(batch, dtype=bool)
        self._rows = np.arange(batch)[:, None]
        self._places = np.tile(np.arange(capacity + 1), (batch, 1))
        self._everywhere = np.ones((batch, capacity + 1), dtype=bool)
        self._read_by = 0  # where the longest prompt ends

    def admit(self, rows: Rows, prompts: list[list[int]], max_new_tokens: int) -> None:
        """Let finished rows serve new prompts; they have no lanes yet."""
        lengths = np.array([len(p) for p in prompts])
        self.prompt[rows], self.last[rows] = lengths, lengths + max_new_tokens - 1
        tokens = np.zeros((len(rows), self.capacity + 1), dtype=np.int64)
        tokens[np.arange(self.capacity + 1) < lengths[:, None]] = np.concatenate(prompts)
        self.tokens[rows], self.pending[rows] = tokens, -1
        self._read_by = max(self._read_by, int(lengths.max()))
        self.depth[rows] = self.age[rows] = 0
        self.front[rows] = self.width[rows] = self.stale[rows] = 0
        self.finished[rows] = False

    def open_after_prefill(self, rows: Rows, first_tokens: Int[np.ndarray, " rows"]) -> None:
        """Commit the prompts of these rows and the tokens that they predict."""
        self.front[rows] = self.stale[rows] = self.prompt[rows]
        self.tokens[rows, self.prompt[rows]] = first_tokens
        self.finished[rows] = self._stops(first_tokens)
        headway = np.zeros_like(self.front)
        headway[rows] = 1
        self._extend(headway)

    def open_over_prompt(self, rows: Rows) -> None:
        """Open the wavefront over the whole prompts (no prefill), and the lanes behind that need no read-out."""
        self.width[rows] = self.prompt[rows]
        if self.policy.headway > 1:
            headway = np.zeros_like(self.front)
            headway[rows] = self.policy.headway - 1
            self._extend(headway, said=0)

    def reopen(self) -> Rows:
        """Drop all lanes and open as many as may be, at depth 0 (speculative rounds).

        Returns:
            how many lanes of each row hold a token that is known: one, or the prompt where it has not been read yet.
        """
        self.depth[:] = self.age[:] = 0
        self.finished = self.finished | (self.front >= self.last)
        known = np.where(self.front == 0, self.prompt, 1)
        room = np.minimum(self.last - self.front, known - 1 + self.policy.max_wavefront)
        self.width = np.where(self.finished, 0, room)  # their tokens will be drafted: none is guessed
        self.stale = self.front.copy()
        return known

    def input_tokens(self, lanes: Lanes) -> LaneInts:
        """The tokens that the lanes hold, a copy."""
        return np.array(self.tokens[self._at(lanes)])

    def take_drafts(self, known: Rows, drafts: Int[np.ndarray, "batch drafts"]) -> None:
        """Let drafts be the tokens of the lanes behind the known ones; without a draft, or behind a stop token, a lane
        is closed again."""
        ahead = known[:, None] + np.arange(drafts.shape[1])
        at = np.where(ahead < self.width[:, None], self.front[:, None] + ahead, -1)
        self.tokens[self._rows, at] = drafts
        before_stop = np.logical_and.accumulate(~self._stops(drafts), axis=1).sum(1)
        self.width = np.minimum(self.width, known + before_stop)

    def redraft(self, lanes: Lanes, proposals: LaneInts, read: LaneBools, depth: int) -> tuple[LaneBools, int]:
        """Let what some lanes say at a depth on the way change the drafts behind them.

        Returns:
            lanes whose own input token changed, and how many pending changes were taken back.
        """
        return self._apply(replace(lanes, due=read), proposals, np.full_like(lanes.depth, depth))

    def lanes(self) -> Lanes:
        """The lanes of the next step."""
        widest, start = int(self.width.max()), int(self.front[0])
        alike = len(self.front) == 1 or bool((self.front == start).all() and (self.width == widest).all())
        at: Any
        if alike:
            at = np.s_[:, start : start + widest]
            positions, active, depth = self._places[at], self._everywhere[:, :widest], self.depth[at].copy()
            stale = int(self.stale.min()) - start
        else:
            offsets = np.arange(widest)
            active = offsets < self.width[:, None]
            positions = np.where(active, self.front[:, None] + offsets, -1)
            at = self._rows, positions
            depth = np.where(active, self.depth[at], 0)
            stale = int(np.where(self.width > 0, self.stale - self.front, widest).min())
        steps = np.minimum(self.policy.inner_steps, self.policy.num_steps - depth[:, 0])
        steps = steps if alike else np.where(self.width > 0, steps, 0)
        due = active if self.policy.always_due else active & self.policy.due(depth, depth + steps[:, None])
        return Lanes(positions, active, start if alike else None, stale, depth, self.age[at].copy(), steps, due)

    def again(self, lanes: Lanes) -> Lanes:
        """The same lanes a step later, when that step has read nothing out."""
        steps = lanes.steps[:, None]
        depth = lanes.depth + steps
        following = np.minimum(lanes.steps, self.policy.num_steps - depth[:, 0])
        return replace(lanes, stale=lanes.width, depth=depth, age=lanes.age + steps, steps=following)

    def advance(self, lanes: Lanes, proposals: LaneInts | None, converged: LaneBools | np.bool) -> Outcome:
        """Apply what a step read out: drafts, flips, commits, stops, and new lanes.

        Args:
            lanes: the lanes of the step.
            proposals: the token each lane that was due proposes for the next position (others: anything); None if
                none was read (nothing commits, nothing opens).
            converged: lanes that their exit criterion calls done.
        """
        here = self._at(lanes)
        depth, age = lanes.depth + lanes.steps[:, None], lanes.age + lanes.steps[:, None]
        self.depth[here], self.age[here] = depth, age
        if proposals is None:
            none = np.zeros_like(lanes.active)
            self.stale = self.front + self.width
            return Outcome(none, none, none, depth, age)

        flipped, withdrawn = self._apply(lanes, proposals, depth)
        done = lanes.due & ((depth >= self.policy.num_steps) | converged)
        behind_flip, unchanged = flipped, self.width
        if flipped.any():
            behind_flip = np.logical_or.accumulate(flipped, axis=1) & lanes.active
            self.depth[here] = np.where(behind_flip, 0, depth)
            unchanged = np.where(flipped.any(1), flipped.argmax(1), self.width)
            done &= ~flipped

        committed = self._cut_at_stop(np.logical_and.accumulate(done, axis=1), lanes)
        count = committed.sum(1)
        self.stale = self.front + np.maximum(unchanged, count)
        ready: Any = True
        if self.policy.draft_depth > 1 or not self.policy.always_due:
            # the next lane waits until the last one has been read out at draft_depth
            last_depth = depth[self._rows[:, 0], np.maximum(self.width - 1, 0)]
            ready = lanes.due.any(1) & (last_depth >= self.policy.draft_depth) | (count == self.width)
        self.front = self.front + count
        self.width = self.width - count
        self._extend(self.policy.headway * ready)
        return Outcome(flipped, behind_flip, committed, depth, age, withdrawn)

    def forget_age(self, lanes: Lanes, which: LaneBools) -> None:
        """Let lanes start anew at age 0 (their states were reset)."""
        here = self._at(lanes)
        self.age[here] = np.where(which, 0, self.age[here])

    def new_tokens(self, row: int) -> list[int]:
        """The tokens of a row that are final."""
        return self.tokens[row, self.prompt[row] : self.front[row] + 1].tolist()

    def keep_rows(self, rows: Rows) -> None:
        """Drop all other rows."""
        for name in ("prompt", "last", "tokens", "pending", "front", "width", "stale", "depth", "age", "finished"):
            setattr(self, name, getattr(self, name)[rows])
        for name in ("_rows", "_places", "_everywhere"):  # the same for every row
            setattr(self, name, getattr(self, name)[: len(rows)])

    def _at(self, lanes: Lanes, ahead: int = 0) -> tuple[Any, Any]:
        """Index of the lanes, or of the positions so far ahead of them, in arrays by row and position."""
        if lanes.start is not None:
            return np.s_[:, lanes.start + ahead : lanes.start + ahead + lanes.width]
        return self._rows, np.where(lanes.active, lanes.positions + ahead, -1)

    def _apply(self, lanes: Lanes, proposals: LaneInts, depth: LaneInts) -> tuple[LaneBools, int]:
        """Write what lanes propose for the positions behind them; prompt tokens never change.

        Returns:
            lanes whose own input token changed, and how many pending changes were taken back.
        """
        behind = self._at(lanes, 1)
        said = self.tokens[behind]
        heard = lanes.due
        if lanes.start is None or lanes.start < self._read_by:
            heard = heard & (lanes.positions >= self.prompt[:, None] - 1)
        differs = heard & (proposals != said)
        flipped, withdrawn = np.zeros(differs.shape, dtype=bool), 0
        if not self.policy.confirm_flips and not differs.any():
            return flipped, withdrawn
        opened = np.zeros_like(flipped)  # the position behind is a lane too
        opened[:, :-1] = lanes.active[:, 1:]
        if self.policy.confirm_flips:
            withdrawn = self._confirm(behind, proposals, heard, differs, depth, opened)
        if differs.any():
            self.tokens[behind] = np.where(differs, proposals, said)
            flipped[:, 1:] = (differs & opened)[:, :-1]
            if self.policy.confirm_flips:  # lanes that start anew have said nothing yet
                anew = np.logical_or.accumulate(flipped, axis=1)
                self.pending[behind] = np.where(anew, -1, self.pending[behind])
        return flipped, withdrawn

    def _confirm(
        self,
        behind: tuple[Any, Any],
        proposals: LaneInts,
        heard: LaneBools,
        differs: LaneBools,
        depth: LaneInts,
        opened: LaneBools,
    ) -> int:
        """Let other tokens be pending until they are said again or are final: takes them out of ``differs``.

        Returns:
            how many that were pending have been taken back.
        """
        before = self.pending[behind]
        certain = ~opened | (depth >= self.policy.num_steps) | (before == proposals)
        withdrawn = int((heard & opened & (before >= 0) & ~differs).sum())
        self.pending[behind] = np.where(heard, np.where(differs & ~certain, proposals, -1), before)
        differs &= certain
        return withdrawn

    def _cut_at_stop(self, committed: LaneBools, lanes: Lanes) -> LaneBools:
        """End rows whose newly final tokens hold a stop token: nothing behind it is committed."""
        if not len(self.stop) or not committed[:, 0].any():
            return committed
        final = self.tokens[self._at(lanes, 1)]
        stops = committed & (lanes.positions >= self.prompt[:, None] - 1) & self._stops(final)
        if not stops.any():
            return committed
        self.finished = self.finished | stops.any(1)
        return committed & (stops.cumsum(1) - stops == 0)  # up to the first one

    def stop_in(self, tokens: Int[np.ndarray, "batch tokens"]) -> Bool[np.ndarray, " batch"]:
        """Whether any of each row's tokens is a stop token."""
        return np.asarray(self._stops(tokens).any(1))

    def _stops(self, tokens: Int[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
        return np.asarray((tokens[..., None] == self.stop).any(-1))

    def _extend(self, headway: Int[np.ndarray, " batch"], said: int = 1) -> None:
        """Open new lanes, guess their tokens but for the first ones that were ``said``, and close rows that have all.

        The lane before the first new one has proposed its token; that of the prompt's last lane has not, yet.
        """
        self.finished = self.finished | (self.front >= self.last)
        # a wavefront over the whole prompt is as wide as that, at least
        limit = self.policy.max_wavefront if self.policy.prefill else np.maximum(self.policy.max_wavefront, self.prompt)
        room = np.minimum(self.last - self.front, limit)
        width = np.where(self.finished, 0, np.maximum(np.minimum(self.width + headway, room), self.width))
        more = width - self.width - said
        if (most := int(more.max())) > 0:
            first = torch.from_numpy(self.front + self.width + said)
            guess(torch.from_numpy(self.tokens), first, torch.from_numpy(more), most)
        self.width = width  # depth and age are 0 where no lane has been before
