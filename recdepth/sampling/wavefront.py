"""The sampling engine: one wavefront of lanes per row, refined in parallel and committed from the front.

Geiping, Yang and Su 2025 (arXiv 2510.14961), with committed prefixes, per-position comparison and exact stops.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recdepth.models import Depth, Flight, Places, Span, compiled_width, sampling_seams
from recdepth.models.randomness import STEP_NOISE, truncated_normal

from .decoding import Decoding, Place
from .exits import scores_states
from .front import LaneBools, LaneInts, Lanes, Outcome, Rows
from .fused import FusedFront, fused_look_of
from .trace import TraceStep

#: Most recurrences in one graph, and most lanes that get so many: to call one takes as long as some lanes' recurrence.
MOST_TOGETHER, WIDEST_TOGETHER = 4, 32


class Wavefront(Decoding):
    """One wavefront of lanes per row, a step at a time; made and run as :class:`Decoding` says."""

    def __init__(self, *decoding: Any):
        super().__init__(*decoding)
        most = max(self.policy.max_wavefront, 0 if self.policy.prefill else max(map(len, self.prompts)))
        self._ring = min(most, self._capacity)  # most lanes of a row
        self._looks: tuple[Tensor, Tensor] | None = None  # exit criteria on logits: features and scores
        self._fused = FusedFront(self) if FusedFront.can_run(self) else None
        exit = self.policy.exit
        self._score_states = scores_states(exit) if exit and not exit.reads_logits else None
        self._together = _together(self.policy.inner_steps) if self._ring == 1 and self.policy.compile else 1
        # a lone lane is read out only when it is done
        self._looks_alone = self._ring == 1 and self._score_states is not None
        look = fused_look_of(self.policy) if self._looks_alone else None
        self._fused_look = None if look is None else partial(sampling_seams(self.model).step, look)

    def step(self, number: int) -> None:
        """One step: embed, mix, add noise, recur, read out, commit, extend."""
        if self._fused is not None:
            self._step_fused(self._fused, number)
            return
        lanes = self.front.lanes()
        place, span = self._locate(lanes)
        tokens = self.front.input_tokens(lanes)
        lanes, proposals, residual = self._refine(lanes, tokens, place, span)
        outcome = self.front.advance(lanes, proposals, self._converged(residual))
        self._treat_flips(lanes, outcome, place)
        self._settle(lanes, outcome)
        if self.tracer is not None:
            self._record(number, lanes, tokens, proposals, residual, outcome)

    def _step_fused(self, fused: FusedFront, number: int) -> None:
        """The same, in one graph."""
        if self.tracer is None:
            fused.step()
            return
        began = time.perf_counter()
        lanes = self.front.lanes()
        tokens, steps = self.front.input_tokens(lanes), lanes.steps[:, None]
        self._clock += time.perf_counter() - began  # looking on is not decoding
        seen = fused.step()
        assert seen is not None
        said, flips, committed = (x.cpu().numpy()[:, : lanes.width] for x in (seen.said, seen.flips, seen.committed))
        score = None if seen.score is None else seen.score.cpu().numpy()[:, : lanes.width]
        flipped = np.pad(flips[:, :-1], ((0, 0), (1, 0)))
        behind = np.logical_or.accumulate(flipped, axis=1) & lanes.active
        outcome = Outcome(flipped, behind, committed, lanes.depth + steps, lanes.age + steps)
        self._record(number, lanes, tokens, said, score, outcome)

    # ------------------------------------------------------------------------------------------------ parts of a step

    def _refine(
        self, lanes: Lanes, tokens: LaneInts, place: Place, span: Span | Places
    ) -> tuple[Lanes, LaneInts | None, Float[np.ndarray, "batch lanes"] | None]:
        """Embed, mix, add noise, recur, read out, one seam after the other; the lanes as they were last looked at."""
        e = self._embed(lanes, tokens, place, span)
        before = place.read(self.states)
        proposals: LaneInts | None
        residual: Float[np.ndarray, "batch lanes"] | None
        if self._looks_alone:
            lanes, s, residual, done = self._recur_until_done(e, before, lanes, place, span)
            proposals = self._proposals(s, lanes, place, span) if done else None
        else:
            s = self._recur(e, self._add_noise(before, lanes, place), lanes, span)
            proposals, residual = self._read_out(s, before, lanes, place, span)
        place.write(self.states, s)  # only now: before is a view of it
        return lanes, proposals, residual

    def _embed(self, lanes: Lanes, tokens: LaneInts, place: Place, span: Span | Places) -> Tensor:
        """Prelude from the first changed token on, then momentum: ``e ← η·e_prev + (1−η)·e``."""
        if lanes.stale < lanes.width:
            first, width = lanes.stale, place.positions.shape[1]
            if self.policy.compile:  # the next width that is compiled: some lanes once more
                first = max(0, width - compiled_width(width - first))
            part = place.part(first, width)
            part_span = span if first == 0 else self._span(part, span.length)
            part.write(self.embedded, self.seams.embed(self._lay(tokens)[:, first:], self.cache, part_span))
        e = place.read(self.embedded)
        if not self.policy.momentum:
            return e
        e = torch.lerp(place.read(self.mixed), e, self._embedding_weights(lanes))
        place.write(self.mixed, e)
        return e

    def _embedding_weights(self, lanes: Lanes) -> Float[Tensor, "batch lanes 1"]:
        """1−η; a new lane has no previous embedding."""
        weight = np.where(lanes.age == 0, 1.0, 1.0 - self.policy.momentum)
        return self._lay(weight)[..., None].to(self.embedded.dtype)

    def _add_noise(self, s: Tensor, lanes: Lanes, place: Place) -> Tensor:
        """``s ← (1−β_a)·s + β_a·z`` with z keyed by (seed, row, position, age)."""
        if not self.policy.noise:
            return s
        config = self.model.config
        keys = (self._streams[:, None], place.positions, self._lay(lanes.age))
        z = truncated_normal(self.choose.seed, STEP_NOISE, *keys, count=config.hidden_size)
        z = z * config.state_scale
        beta = self._lay(self.policy.noise_weights(lanes.age))[..., None]
        return torch.lerp(s, z.to(s.dtype), beta.to(s.dtype))

    def _recur(self, e: Tensor, s: Tensor, lanes: Lanes, span: Span | Places) -> Tensor:
        """Each row's own number of recurrences, on all of its lanes at once."""
        depth, recur, cache = self._cache_depth(lanes), self.seams.recur, self.cache
        open_rows = lanes.steps[lanes.active[:, 0]]
        fewest, most = int(open_rows.min()), int(open_rows.max())
        s = self._pass_on(e, s, span, depth, fewest)
        for k in range(fewest, most):  # rows that have had theirs write nothing and keep their states
            going = lanes.active & (lanes.steps > k)[:, None]
            positions = self._lay(np.where(going, lanes.positions, -1), -1)
            partial = self.seams.span(positions, cache, length=span.length)
            at = _deeper(depth, k)
            at = at.clamp(max=self.policy.num_steps - 1) if isinstance(at, Tensor) else at
            s = torch.where(self._lay(going)[..., None], recur(e, s, cache, partial, at), s)
        self.stats.core_passes += most
        self.stats.token_passes += int((lanes.steps * lanes.active.sum(1)).sum())
        return s

    def _pass_on(self, e: Tensor, s: Tensor, span: Span | Places, depth: Depth | None, steps: int) -> Tensor:
        """So many recurrences of all lanes, compiled some of them in one graph."""
        recur, cache, at = self.seams.recur, self.cache, 0
        several = 1 if isinstance(depth, Tensor) or e.shape[1] > WIDEST_TOGETHER else self._together
        while 1 < several <= steps - at:
            s = recur(e, s, cache, span, _deeper(depth, at), steps=several)
            at += several
        for k in range(at, steps):
            s = recur(e, s, cache, span, _deeper(depth, k))
        return s

    def _recur_until_done(
        self, e: Tensor, s: Tensor, lanes: Lanes, place: Place, span: Span | Places
    ) -> tuple[Lanes, Tensor, Float[np.ndarray, "batch lanes"], bool]:
        """Recurrences of lone lanes up to the look at which one is done: before, there is nothing for the front to do.

        Returns:
            the lanes at that look, their states and scores, and whether one is done: with a tracer, which sees every
            look, or with momentum, which mixes e anew for each, one look may be all.
        """
        one_look = self.tracer is not None or bool(self.policy.momentum)
        while True:
            s, score = self._look_at_states(e, s, lanes, place, span)
            residual = score.cpu().numpy()
            at_end = (lanes.depth + lanes.steps[:, None] >= self.policy.num_steps) | self._converged(residual)
            done = bool((at_end & lanes.active).any())
            if done or one_look:
                return lanes, s, residual, done
            lanes = self.front.again(lanes)

    def _look_at_states(
        self, e: Tensor, before: Tensor, lanes: Lanes, place: Place, span: Span | Places
    ) -> tuple[Tensor, Tensor]:
        """The recurrences of a step, and the exit criterion's scores of them."""
        if self._fused_look is not None:
            self.stats.core_passes += self.policy.inner_steps
            self.stats.token_passes += self.policy.inner_steps * int(lanes.active.sum())
            inputs = place.positions, e, before
            s, score = self._fused_look(inputs, self.cache, span.length)
            return s, score
        s = self._recur(e, self._add_noise(before, lanes, place), lanes, span)
        assert self._score_states is not None
        return s, self._score_states(s, before)

    def _read_out(
        self, s: Tensor, before: Tensor, lanes: Lanes, place: Place, span: Span | Places
    ) -> tuple[LaneInts | None, Float[np.ndarray, "batch lanes"] | None]:
        """Proposals of the lanes that are due, and exit scores, in one transfer."""
        exit = self.policy.exit
        if exit is None:
            return self._proposals(s, lanes, place, span), None
        logits = self.seams.decode(s, self.cache, span)
        if self._score_states is None:
            score = self._compare_looks(exit.feature(s, logits), lanes, place)
        else:
            score = self._score_states(s, before)
        self.stats.readouts += int(lanes.active.sum())
        return self._download(self.choose(logits, self._streams, span.positions + 1), score, lanes.width)

    def _download(
        self, proposals: Tensor, score: Tensor | None, width: int
    ) -> tuple[LaneInts, Float[np.ndarray, "batch lanes"] | None]:
        """Bring both over in one transfer, without the padding."""
        if score is None or proposals.device.type == "cpu":
            return proposals.numpy(force=True)[:, :width], None if score is None else score.numpy()[:, :width]
        both = torch.stack([proposals.double(), score.double()]).cpu().numpy()[..., :width]
        return both[0].astype(np.int64), both[1]

    def _proposals(self, s: Tensor, lanes: Lanes, place: Place, span: Span | Places) -> LaneInts | None:
        """Read out the lanes that are due and no others; None if there are none."""
        counts = lanes.due.sum(1)
        most = int(counts.max())
        if not most:
            return None
        self.stats.readouts += int(counts.sum())
        if (lanes.due | ~lanes.active).all():
            chosen = self.choose(self.seams.decode(s, self.cache, span), self._streams, span.positions + 1)
            return chosen.cpu().numpy()[:, : lanes.width]
        order = np.argsort(~lanes.due, axis=1, kind="stable")[:, :most]  # due lanes first, in their order
        rows = np.arange(len(order))[:, None]
        positions = self._lay(np.where(lanes.due[rows, order], lanes.positions[rows, order], -1), -1)
        some = self.seams.span(positions, self.cache, length=span.length)
        logits = self.seams.decode(s[place.rows, self._lay(order)], self.cache, some)
        proposals = np.zeros_like(lanes.positions)
        proposals[rows, order] = self.choose(logits, self._streams, positions + 1).cpu().numpy()[:, :most]
        return proposals

    def _compare_looks(self, now: Tensor, lanes: Lanes, place: Place) -> Float[Tensor, "batch lanes"]:
        """The exit's score against each lane's last look; a lane's first look has none."""
        assert self.policy.exit is not None
        if self._looks is None:  # one entry per lane: logits are large
            shape = (len(now), self._ring + 1)
            self._looks = now.new_zeros(*shape, now.shape[-1]), now.new_full(shape, torch.inf)
        ring = np.where(lanes.active, lanes.positions % self._ring, -1)
        at = place.rows, self._lay(ring, -1)
        features, scores = self._looks
        first = self._lay(lanes.depth == 0)  # opened, or its input changed: no look of this input yet
        previous = scores[at].masked_fill(first, torch.inf)
        score = self.policy.exit.score(now, features[at], previous)
        score = score.masked_fill(first, torch.inf)
        features[at], scores[at] = now, score
        return score

    def _converged(self, residual: Float[np.ndarray, "batch lanes"] | None) -> LaneBools | np.bool:
        if residual is None or self.policy.exit is None:
            return np.False_
        return residual < self.policy.exit.threshold

    def _treat_flips(self, lanes: Lanes, outcome: Outcome, place: Place) -> None:
        """What becomes of the states behind a flip."""
        self.stats.flips += int(np.count_nonzero(outcome.flipped))
        self.stats.flips_withdrawn += outcome.withdrawn
        if self.policy.on_flip == "keep" or not outcome.behind_flip.any():
            return
        weight = 1.0 if self.policy.on_flip == "reset" else self.policy.renoise
        weights = self._lay(np.where(outcome.behind_flip, weight, 0.0))[..., None].to(self.states.dtype)
        place.write(self.states, torch.lerp(place.read(self.states), place.read(self.fresh_states), weights))
        if self.policy.on_flip == "reset":
            self.stats.discarded_passes += int(outcome.age[outcome.behind_flip].sum())
            self.front.forget_age(lanes, outcome.behind_flip)

    def _settle(self, lanes: Lanes, outcome: Outcome) -> None:
        self.stats.committed += int(np.count_nonzero(outcome.committed))
        self._recurrences += int(outcome.age[outcome.committed].sum())
        if self.policy.kv == "shared":
            return
        early = outcome.committed & (outcome.depth < self.policy.num_steps)
        if early.any():
            rows = np.nonzero(early)[0]
            self.cache.settle(
                self._upload(rows), self._upload(lanes.positions[early]), self._upload(outcome.depth[early])
            )

    def _fill(self, rows: Rows) -> None:
        super()._fill(rows)
        if self._fused is not None:
            self._fused.upload()

    def _keep_rows(self, rows: Rows) -> None:
        super()._keep_rows(rows)
        if self._fused is not None:
            self._fused.upload()
        if self._looks is not None:
            keep = self._upload(rows)
            self._looks = self._looks[0][keep], self._looks[1][keep]

    def _cache_depth(self, lanes: Lanes) -> Depth | None:
        """Which recurrence the next pass is, for the slots of a per-depth cache."""
        if self.policy.kv == "shared":
            return None
        used = lanes.depth[lanes.active]
        if (used == used[0]).all():
            return int(used[0])
        if not self.policy.compile and len(lanes.depth) == 1:
            return _flights(used)
        return self._lay(lanes.depth)

    def _record(
        self,
        number: int,
        lanes: Lanes,
        tokens: LaneInts,
        proposals: LaneInts | None,
        residual: Float[np.ndarray, "batch lanes"] | None,
        outcome: Outcome,
    ) -> None:
        assert self.tracer is not None
        now = time.perf_counter()
        shape = lanes.positions.shape
        self.tracer.record(
            TraceStep(
                step=number,
                seconds=now - self._clock,
                core_passes=self.stats.core_passes,
                positions=lanes.positions,
                tokens=tokens,
                proposals=np.full(shape, -1) if proposals is None else np.where(lanes.due, proposals, -1),
                depth=outcome.depth,
                age=outcome.age,
                residual=np.full(shape, np.nan) if residual is None else residual,
                flipped=outcome.flipped,
                committed=outcome.committed,
            )
        )
        self._clock += time.perf_counter() - now  # looking on is not decoding


def _together(steps: int) -> int:
    """Recurrences of lone lanes in one graph, so that graphs of one size do for all."""
    return next(n for n in range(MOST_TOGETHER, 0, -1) if steps % n == 0)


def _flights(depth: Int[np.ndarray, " lanes"]) -> tuple[Flight, ...]:
    """Cut lanes into as few runs as fall evenly."""
    falls, flights, begin = depth[:-1] - depth[1:], [], 0
    while begin < len(depth):
        other = np.nonzero(falls[begin:] != falls[begin])[0] if begin < len(falls) else [0]
        end = begin + 1 + int(other[0]) if len(other) else len(depth)
        fall = int(falls[begin]) if end - begin > 1 else 0
        first = int(depth[begin])
        flights.append(Flight(begin, end, range(first, first - fall * (end - begin), -fall) if fall else first))
        begin = end
    return tuple(flights)


def _deeper(depth: Depth | None, passes: int) -> Depth:
    """The depth after so many passes; a shared cache (None) has one slot for all."""
    if depth is None:
        return 0
    if isinstance(depth, tuple):
        return tuple(Flight(f.begin, f.end, _later(f.depth, passes)) for f in depth)
    return depth + passes


def _later(depth: int | range, passes: int) -> int | range:
    if isinstance(depth, int):
        return depth + passes
    return range(depth.start + passes, depth.stop + passes, depth.step)
