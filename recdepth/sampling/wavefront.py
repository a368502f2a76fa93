"""The sampling engine: one wavefront of lanes per row, refined in parallel and committed from the front.

Geiping, Yang and Su 2025 (arXiv 2510.14961), with committed prefixes, per-position comparison and exact stops.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recdepth.models import (
    WIDTHS,
    Buffers,
    Depth,
    Flight,
    Places,
    RecurrentDepthForCausalLM,
    Seams,
    Span,
    compiled_capacity,
    compiled_width,
    sampling_seams,
)
from recdepth.models.randomness import STEP_NOISE, truncated_normal

from .exits import scores_states
from .front import Front, LaneBools, LaneInts, Lanes, Outcome, Rows
from .policies import Policy
from .result import SampleStats
from .tokens import TokenChooser
from .trace import Tracer, TraceStep


@dataclass(frozen=True)
class Place:
    """Where lanes live in buffers by position: a slice that all rows share, or an index per lane."""

    start: int | None
    rows: Tensor
    positions: Tensor

    def part(self, begin: int, end: int) -> Place:
        """Some of the lanes."""
        start = None if self.start is None else self.start + begin
        return Place(start, self.rows, self.positions[:, begin:end])

    def read(self, buffer: Float[Tensor, "batch position dim"]) -> Float[Tensor, "batch lanes dim"]:
        if self.start is not None:
            return buffer[:, self.start : self.start + self.positions.shape[1]]
        return buffer[self.rows, self.positions]

    def write(self, buffer: Float[Tensor, "batch position dim"], value: Float[Tensor, "batch lanes dim"]) -> None:
        if self.start is not None:
            buffer[:, self.start : self.start + self.positions.shape[1]] = value
        else:
            buffer[self.rows, self.positions] = value


class Wavefront:
    """Decode prompts, some rows at a time. States, embeddings and keys lie in buffers by position, allocated once.

    Args:
        model: the model, in eval mode.
        policy: the sampler's settings.
        choose: from logits to tokens; its seed also seeds the states.
        prompts: token ids, non-empty lists; prompt and new tokens fit the context.
        streams: random-stream id of each prompt.
        max_new_tokens: at least 1.
        stop_tokens: ids that end a continuation.
        batch_size: rows decoded together; a row that has finished serves the next prompt.
        tracer: sees every step, or None; with one, all prompts fit the batch.
    """

    def __init__(
        self,
        model: RecurrentDepthForCausalLM,
        policy: Policy,
        choose: TokenChooser,
        prompts: list[list[int]],
        streams: list[int],
        max_new_tokens: int,
        stop_tokens: set[int],
        batch_size: int,
        tracer: Tracer | None = None,
    ):
        began = time.perf_counter()  # buffers are part of the prefill
        self.model, self.policy, self.choose, self.tracer = model, policy, choose, tracer
        self.seams: Seams = sampling_seams(model) if policy.compile else model
        self.prompts, self.streams, self.max_new_tokens = prompts, streams, max_new_tokens
        self.stats = SampleStats()
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self._device = model.device
        self._capacity = max(map(len, prompts)) + max_new_tokens
        if policy.compile:
            self._capacity = compiled_capacity(self._capacity)
        self._count_up = torch.arange(self._capacity + 1, device=self._device)
        batch = min(batch_size, len(prompts))
        self._count_rows = torch.arange(batch, device=self._device)[:, None]
        self.front = Front(batch, self._capacity, stop_tokens, policy)
        self.serves = np.full(batch, -1)  # which prompt each row serves; -1 for none
        self._waiting = 0  # the next prompt that no row has served yet
        self._streams = torch.zeros(batch, dtype=torch.long, device=self._device)
        self.cache = model.new_cache(batch, self._capacity, policy.kv, policy.num_steps)
        shape = (batch, self._capacity + 1, model.config.hidden_size)  # one spare position for unused lanes
        self.embedded = torch.zeros(shape, dtype=model.dtype, device=self._device)  # e of the present tokens
        self.mixed = torch.zeros_like(self.embedded) if policy.momentum else self.embedded  # e as the core last saw it
        self.states = torch.zeros_like(self.embedded)
        self.fresh_states = torch.zeros_like(self.embedded) if policy.on_flip != "keep" else self.states
        most = max(policy.max_wavefront, 0 if policy.prefill else max(map(len, prompts)))
        self._ring = min(most, self._capacity)  # most lanes of a row
        self._never = torch.tensor(torch.inf, device=self._device)  # the score at a look that has not been
        self._looks: tuple[Tensor, Tensor] | None = None  # exit criteria on logits: features and scores
        self._recurrences = 0
        self._clock = time.perf_counter()
        self.stats.prefill_seconds = self._clock - began

    @torch.inference_mode()
    def run(self) -> list[list[int]]:
        """Decode every prompt to its end; fills ``stats``.

        Returns:
            the new tokens of each prompt.
        """
        if self.tracer is not None:
            self.tracer.start(self.prompts)
        number = 0
        while self._admit():
            self.step(number)
            number += 1
        stats = self.stats
        stats.decode_seconds = time.perf_counter() - self._clock
        stats.new_tokens = sum(map(len, self.tokens))
        stats.recurrences_per_token = self._recurrences / max(stats.committed, 1)
        stats.tokens_per_second = stats.new_tokens / max(stats.prefill_seconds + stats.decode_seconds, 1e-9)
        return self.tokens

    def step(self, number: int) -> None:
        """One step: embed, mix, add noise, recur, read out, commit, extend."""
        lanes = self.front.lanes()
        place, span = self._locate(lanes)
        tokens = self.front.input_tokens(lanes)
        refine = self._refine_at_once if self._fits_one_graph(lanes) else self._refine
        proposals, residual = refine(lanes, tokens, place, span)
        outcome = self.front.advance(lanes, proposals, self._converged(residual))
        self._treat_flips(lanes, outcome, place)
        self._settle(lanes, outcome)
        if self.tracer is not None:
            self._record(number, lanes, tokens, proposals, residual, outcome)

    # ------------------------------------------------------------------------------------------------ parts of a step

    def _refine(
        self, lanes: Lanes, tokens: LaneInts, place: Place, span: Span | Places
    ) -> tuple[LaneInts | None, Float[np.ndarray, "batch lanes"] | None]:
        """Embed, mix, add noise, recur, read out, one seam after the other."""
        e = self._embed(lanes, tokens, place, span)
        before = place.read(self.states)
        s = self._recur(e, self._add_noise(before, lanes, place), lanes, span)
        proposals, residual = self._read_out(s, before, lanes, place, span)
        place.write(self.states, s)  # only now: before is a view of it
        return proposals, residual

    def _fits_one_graph(self, lanes: Lanes) -> bool:
        """Whether a step is short and the same for all lanes: it is compiled as a whole then."""
        policy, exit = self.policy, self.policy.exit
        return (
            policy.compile
            and policy.kv == "shared"
            and policy.inner_steps <= 2
            and not policy.noise
            and (self._ring > 1 and not exit.reads_logits if exit else bool((lanes.due | ~lanes.active).all()))
            and bool((lanes.steps[lanes.active[:, 0]] == lanes.steps.max()).all())
        )

    def _refine_at_once(
        self, lanes: Lanes, tokens: LaneInts, place: Place, span: Span | Places
    ) -> tuple[LaneInts, Float[np.ndarray, "batch lanes"] | None]:
        """As :meth:`_refine`, in one graph."""
        exit, steps = self.policy.exit, int(lanes.steps.max())
        width = place.positions.shape[1]
        stale = compiled_width(max(width - lanes.stale, 1))
        logits, score = self.seams.refine(
            self._lay(tokens)[:, width - stale :],
            self._buffers(),
            self.cache,
            span,
            steps=steps,
            weight=self._embedding_weights(lanes) if self.policy.momentum else None,
            score=scores_states(type(exit)) if exit else None,
        )
        self.stats.core_passes += steps
        self.stats.token_passes += steps * int(lanes.active.sum())
        self.stats.readouts += int(lanes.active.sum())
        return self._download(self.choose(logits, self._streams, span.positions + 1), score, lanes.width)

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
        depth = self._cache_depth(lanes)
        open_rows = lanes.steps[lanes.active[:, 0]]
        fewest, most = int(open_rows.min()), int(open_rows.max())
        for k in range(fewest):
            s = self.seams.recur(e, s, self.cache, span, _deeper(depth, k))
        for k in range(fewest, most):  # rows that have had theirs write nothing and keep their states
            going = lanes.active & (lanes.steps > k)[:, None]
            positions = self._lay(np.where(going, lanes.positions, -1), -1)
            partial = self.seams.span(positions, self.cache, length=span.length)
            at = _deeper(depth, k)
            at = at.clamp(max=self.policy.num_steps - 1) if isinstance(at, Tensor) else at
            s = torch.where(self._lay(going)[..., None], self.seams.recur(e, s, self.cache, partial, at), s)
        self.stats.core_passes += most
        self.stats.token_passes += int((lanes.steps * lanes.active.sum(1)).sum())
        return s

    def _read_out(
        self, s: Tensor, before: Tensor, lanes: Lanes, place: Place, span: Span | Places
    ) -> tuple[LaneInts | None, Float[np.ndarray, "batch lanes"] | None]:
        """Proposals of the lanes that are due, and exit scores, in one transfer."""
        exit = self.policy.exit
        if exit is None:
            return self._proposals(s, lanes, place, span), None
        if exit.reads_logits:
            logits = self.seams.decode(s, self.cache, span)
            score = self._compare_looks(exit.feature(s, logits), lanes, place)
        else:
            score = exit.score(exit.feature(s, None), exit.feature(before, None), self._never)
            if self._ring == 1:  # a lone lane is read out only when it commits
                residual = score.cpu().numpy()
                at_end = (lanes.depth + lanes.steps[:, None] >= self.policy.num_steps) | self._converged(residual)
                if not (at_end & lanes.active).any():
                    return None, residual
                return self._proposals(s, lanes, place, span), residual
            logits = self.seams.decode(s, self.cache, span)
        self.stats.readouts += int(lanes.active.sum())
        return self._download(self.choose(logits, self._streams, span.positions + 1), score, lanes.width)

    def _download(
        self, proposals: Tensor, score: Tensor | None, width: int
    ) -> tuple[LaneInts, Float[np.ndarray, "batch lanes"] | None]:
        """Bring both over in one transfer, without the padding."""
        if score is None or proposals.device.type == "cpu":
            return proposals.cpu().numpy()[:, :width], None if score is None else score.numpy()[:, :width]
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
        self.stats.flips += int(outcome.flipped.sum())
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
        self.stats.committed += int(outcome.committed.sum())
        self._recurrences += int(outcome.age[outcome.committed].sum())
        early = outcome.committed & (outcome.depth < self.policy.num_steps)
        if self.policy.kv == "per_depth" and early.any():
            rows = np.nonzero(early)[0]
            self.cache.settle(
                self._upload(rows), self._upload(lanes.positions[early]), self._upload(outcome.depth[early])
            )

    # -------------------------------------------------------------------------------------------------- around a step

    def _admit(self) -> bool:
        """Collect finished rows and let them serve waiting prompts; without any, drop rows when that halves the batch.

        Returns:
            whether any row has work.
        """
        while True:
            for row in np.nonzero(self.front.finished & (self.serves >= 0))[0].tolist():
                self.tokens[self.serves[row]] = self.front.new_tokens(row)
                self.serves[row] = -1
            free = np.nonzero(self.serves < 0)[0]
            waiting = len(self.prompts) - self._waiting
            if not waiting or len(free) < len(self.serves) / 4:  # a prefill costs much: for several rows at once
                break
            began = time.perf_counter()
            self._fill(free[:waiting])
            seconds = time.perf_counter() - began
            self.stats.prefill_seconds += seconds
            self._clock += seconds
        going = np.nonzero(self.serves >= 0)[0]
        if not waiting and self.tracer is None and 0 < len(going) <= len(free):
            self._keep_rows(going)
        return bool(len(going))

    @property
    def _prefills(self) -> bool:
        return bool(self.policy.prefill)

    def _fill(self, rows: Rows) -> None:
        """Let these rows serve the next prompts."""
        which = range(self._waiting, self._waiting + len(rows))
        self._waiting += len(rows)
        self.serves[rows] = which
        self.front.admit(rows, [self.prompts[i] for i in which], self.max_new_tokens)
        at = self._upload(rows)
        self._streams[at] = torch.tensor([self.streams[i] for i in which], device=self._device)
        for begin in range(0, self._capacity + 1, 256):  # in parts: the draws need more memory than their result
            positions = self._count_up[begin : begin + 256].expand(len(rows), -1)
            part = self.states[at, begin : begin + 256]
            noise = self.model.initial_state(
                part, self._streams[at], positions, self.choose.seed, self.policy.init_scale
            )
            self.states[at, begin : begin + 256] = noise
        if self.policy.on_flip != "keep":
            self.fresh_states[at] = self.states[at]
        if self._prefills:
            self._prefill(rows)
        else:
            self.front.open_over_prompt(rows)

    def _prefill(self, rows: Rows) -> None:
        """These rows' prompts in one parallel pass; commits the first new tokens."""
        front, steps = self.front, self.policy.prefill
        lengths = front.prompt[rows]
        longest = width = int(lengths.max())
        everyone = len(rows) == len(front.prompt)
        seams: Seams = self.model
        if everyone and self.policy.compile and longest <= WIDTHS[-1]:  # longer ones gain little, and differ a lot
            seams, width = self.seams, compiled_width(longest)
        positions = np.arange(width) - (width - lengths)[:, None]  # padded on the left
        positions = np.where(positions >= 0, positions, -1)
        start = 0 if everyone and (lengths == width).all() and seams is self.model else None
        cache = self.cache if everyone else self.cache.at_rows(self._upload(rows))
        place = Place(start, self._upload(rows)[:, None], self._upload(positions))
        span = seams.span(place.positions, self.cache, start=start, length=longest)
        e = seams.embed(self._upload(front.tokens[rows[:, None], positions]), cache, span)
        s = place.read(self.states)
        for depth in range(steps):
            s = seams.recur(e, s, cache, span, depth)
        logits = seams.decode(s, cache, span, logits_to_keep=1)
        first = self.choose(logits, self._streams[place.rows[:, 0]], self._upload(lengths[:, None]))
        if self.policy.kv == "per_depth" and steps < self.policy.num_steps:
            row, column = np.nonzero(positions >= 0)
            where = self._upload(positions[row, column])
            self.cache.settle(self._upload(rows[row]), where, torch.full_like(where, steps))
        self.stats.prefill_passes += steps
        front.open_after_prefill(rows, first[:, 0].cpu().numpy())

    def _keep_rows(self, rows: Rows) -> None:
        """Drop all other rows: they cost no more."""
        keep = self._upload(rows)
        self.front.keep_rows(rows)
        self.serves = self.serves[rows]
        self._streams = self._streams[keep]
        self.cache.keep_rows(keep)
        self.embedded, self.states = self.embedded[keep], self.states[keep]
        self.mixed = self.mixed[keep] if self.policy.momentum else self.embedded
        self.fresh_states = self.fresh_states[keep] if self.policy.on_flip != "keep" else self.states
        if self._looks is not None:
            self._looks = self._looks[0][keep], self._looks[1][keep]

    def _locate(self, lanes: Lanes) -> tuple[Place, Span | Places]:
        batch = len(lanes.active)
        self.stats.widest = max(self.stats.widest, lanes.width)
        start = None if self.policy.compile else lanes.start
        if start is not None:
            positions = self._count_up[None, start : start + lanes.width].expand(batch, -1)
        else:
            positions = self._lay(lanes.positions, -1)
        place = Place(start, self._row_index(batch), positions)
        return place, self._span(place, int(lanes.positions.max()) + 1)

    def _span(self, place: Place, length: int) -> Span | Places:
        return self.seams.span(place.positions, self.cache, start=place.start, length=length)

    def _buffers(self) -> Buffers:
        return Buffers(self.states, self.embedded, self.mixed if self.policy.momentum else None)

    def _row_index(self, batch: int) -> Tensor:
        return self._count_rows[:batch]

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

    def _lay(self, array: np.ndarray, fill: int = 0) -> Tensor:
        """Upload what belongs to lanes, [batch, lanes], padded to the width that is compiled."""
        rows, width = array.shape
        if self.policy.compile and (wide := compiled_width(width)) > width:
            padded = np.full((rows, wide), fill, dtype=array.dtype)
            padded[:, :width] = array
            array = padded
        return self._upload(array)

    def _upload(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)

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
