"""The sampling engine: one wavefront of lanes per row, refined in parallel and committed from the front.

Geiping, Yang and Su 2025 (arXiv 2510.14961), with committed prefixes, per-position comparison and exact stops.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from recdepth.models import Depth, RecurrentDepthForCausalLM, Span
from recdepth.models.randomness import STEP_NOISE, truncated_normal

from .front import Front, LaneBools, LaneInts, Lanes, Outcome
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
    """Decode a batch of prompts. States, embeddings and keys lie in buffers by position, allocated once.

    Args:
        model: the model, in eval mode.
        policy: the sampler's settings.
        choose: from logits to tokens; its seed also seeds the states.
        prompts: token ids, one non-empty list per row; prompt and new tokens fit the context.
        streams: random-stream id of each row.
        max_new_tokens: at least 1.
        stop_tokens: ids that end a row.
        tracer: sees every step, or None.
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
        tracer: Tracer | None = None,
    ):
        self._began = time.perf_counter()  # buffers and noise are part of the prefill
        self.model, self.policy, self.choose, self.tracer = model, policy, choose, tracer
        self.front = Front(prompts, max_new_tokens, stop_tokens, policy)
        self.stats = SampleStats()
        self.index = np.arange(len(prompts))  # which prompt each remaining row serves
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self._device = model.device
        self._streams = torch.tensor(streams, device=self._device)
        self._capacity = self.front.capacity
        self._count_up = torch.arange(self._capacity + 1, device=self._device)
        batch = len(prompts)
        self.cache = model.new_cache(batch, self._capacity, policy.kv, policy.num_steps)
        shape = (batch, self._capacity + 1, model.config.hidden_size)  # one spare position for unused lanes
        self.embedded = torch.zeros(shape, dtype=model.dtype, device=self._device)  # e of the present tokens
        self.mixed = torch.zeros_like(self.embedded) if policy.momentum else self.embedded  # e as the core last saw it
        self.states = torch.empty_like(self.embedded)
        for begin in range(0, self._capacity + 1, 256):  # in parts: the draws need more memory than their result
            positions = self._count_up[begin : begin + 256].expand(batch, -1)
            part = self.embedded[:, begin : begin + 256]
            noise = model.initial_state(part, self._streams, positions, choose.seed, policy.init_scale)
            self.states[:, begin : begin + 256] = noise
        self.fresh_states = self.states.clone() if policy.on_flip != "keep" else self.states
        self._recurrences = 0

    @torch.inference_mode()
    def run(self) -> list[list[int]]:
        """Decode every row to its end; fills ``stats``.

        Returns:
            the new tokens of each prompt.
        """
        if self.tracer is not None:
            self.tracer.start([self.front.tokens[i, :n].tolist() for i, n in enumerate(self.front.prompt)])
        if self.policy.prefill:
            self._prefill()
        else:
            self.front.open_over_prompt()
        self._release_finished()
        self._clock = time.perf_counter()
        self.stats.prefill_seconds = self._clock - self._began
        step = 0
        while len(self.index):
            self.step(step)
            self._release_finished()
            step += 1
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
        tokens = self.front.tokens[np.arange(len(lanes.active))[:, None], lanes.positions]
        e = self._embed(lanes, tokens, place, span)
        before = place.read(self.states)
        s = self._recur(e, self._add_noise(before, lanes, place), lanes, span)
        proposals, residual = self._read_out(s, before, lanes, span)
        place.write(self.states, s)  # only now: before is a view of it
        outcome = self.front.advance(lanes, proposals, self._converged(residual))
        self._treat_flips(lanes, outcome, place)
        self._settle(lanes, outcome)
        if self.tracer is not None:
            self._record(number, lanes, tokens, proposals, residual, outcome)

    # ------------------------------------------------------------------------------------------------ parts of a step

    def _embed(self, lanes: Lanes, tokens: LaneInts, place: Place, span: Span) -> Tensor:
        """Prelude from the first changed token on, then momentum: ``e ← η·e_prev + (1−η)·e``."""
        if lanes.stale < lanes.width:
            part = place.part(lanes.stale, lanes.width)
            ids = self._upload(tokens[:, lanes.stale :])
            part_span = span if lanes.stale == 0 else self._span(part, span.length)
            part.write(self.embedded, self.model.embed(ids, self.cache, part_span))
        e = place.read(self.embedded)
        if not self.policy.momentum:
            return e
        weight = np.where(lanes.age == 0, 1.0, 1.0 - self.policy.momentum)  # a new lane has no previous embedding
        e = torch.lerp(place.read(self.mixed), e, self._upload(weight[..., None]).to(e.dtype))
        place.write(self.mixed, e)
        return e

    def _add_noise(self, s: Tensor, lanes: Lanes, place: Place) -> Tensor:
        """``s ← (1−β_a)·s + β_a·z`` with z keyed by (seed, row, position, age)."""
        if not self.policy.noise:
            return s
        config = self.model.config
        keys = (self._streams[:, None], place.positions, self._upload(lanes.age))
        z = truncated_normal(self.choose.seed, STEP_NOISE, *keys, count=config.hidden_size)
        z = z * (config.embedding_scale * (2 / (5 * config.hidden_size)) ** 0.5)
        beta = self._upload(self.policy.noise_weights(lanes.age)[..., None])
        return torch.lerp(s, z.to(s.dtype), beta.to(s.dtype))

    def _recur(self, e: Tensor, s: Tensor, lanes: Lanes, span: Span) -> Tensor:
        """Each row's own number of recurrences, on all of its lanes at once."""
        depth = self._cache_depth(lanes)
        open_rows = lanes.steps[lanes.active[:, 0]]
        fewest, most = int(open_rows.min()), int(open_rows.max())
        for k in range(fewest):
            s = self.model.recur(e, s, self.cache, span, _deeper(depth, k))
        for k in range(fewest, most):  # rows that have had theirs write nothing and keep their states
            going = lanes.active & (lanes.steps > k)[:, None]
            positions = self._upload(np.where(going, lanes.positions, -1))
            partial = self.model.span(positions, self.cache, length=span.length)
            at = _deeper(depth, k)
            at = at.clamp(max=self.policy.num_steps - 1) if isinstance(at, Tensor) else at
            s = torch.where(self._upload(going)[..., None], self.model.recur(e, s, self.cache, partial, at), s)
        self.stats.core_passes += most
        self.stats.token_passes += int((lanes.steps * lanes.active.sum(1)).sum())
        return s

    def _read_out(
        self, s: Tensor, before: Tensor, lanes: Lanes, span: Span
    ) -> tuple[LaneInts | None, Float[np.ndarray, "batch lanes"] | None]:
        """Proposals and exit scores, in one transfer; a single lane is read out only when it commits."""
        score = self.policy.exit.score(s, before) if self.policy.exit is not None else None
        residual = None
        if self.policy.max_wavefront == 1:
            residual = None if score is None else score.cpu().numpy()
            at_end = (lanes.depth + lanes.steps[:, None] >= self.policy.num_steps) | self._converged(residual)
            if not (at_end & lanes.active).any():
                return None, residual
            score = None
        logits = self.model.decode(s, self.cache, span)
        proposals = self.choose(logits, self._streams, span.positions + 1)
        self.stats.readouts += int(lanes.active.sum())
        if score is None:
            return proposals.cpu().numpy(), residual
        both = torch.stack([proposals.double(), score.double()]).cpu().numpy()
        return both[0].astype(np.int64), both[1]

    def _converged(self, residual: Float[np.ndarray, "batch lanes"] | None) -> LaneBools | np.bool:
        if residual is None or self.policy.exit is None:
            return np.False_
        return residual < self.policy.exit.threshold

    def _treat_flips(self, lanes: Lanes, outcome: Outcome, place: Place) -> None:
        """What becomes of the states behind a flip."""
        self.stats.flips += int(outcome.flipped.sum())
        if self.policy.on_flip == "keep" or not outcome.behind_flip.any():
            return
        weight = 1.0 if self.policy.on_flip == "reset" else self.policy.renoise
        weights = self._upload(np.where(outcome.behind_flip, weight, 0.0)[..., None]).to(self.states.dtype)
        place.write(self.states, torch.lerp(place.read(self.states), place.read(self.fresh_states), weights))
        if self.policy.on_flip == "reset":
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

    def _prefill(self) -> None:
        """All prompts in one parallel pass; commits the first new tokens."""
        front, steps = self.front, self.policy.prefill
        batch, longest = len(front.prompt), int(front.prompt.max())
        positions = np.arange(longest) - (longest - front.prompt)[:, None]  # padded on the left
        positions = np.where(positions >= 0, positions, -1)
        start = 0 if (front.prompt == longest).all() else None
        place = Place(start, self._row_index(batch), self._upload(positions))
        span = self._span(place, longest)
        ids = self._upload(front.tokens[np.arange(batch)[:, None], positions])
        e = self.model.embed(ids, self.cache, span)
        s = place.read(self.states)
        for depth in range(steps):
            s = self.model.recur(e, s, self.cache, span, depth)
        logits = self.model.decode(s, self.cache, span, logits_to_keep=1)
        first = self.choose(logits, self._streams, self._upload(front.prompt[:, None]))
        if self.policy.kv == "per_depth" and steps < self.policy.num_steps:
            rows, columns = np.nonzero(positions >= 0)
            where = self._upload(positions[rows, columns])
            self.cache.settle(self._upload(rows), where, torch.full_like(where, steps))
        self.stats.prefill_passes += steps
        front.open_after_prefill(first[:, 0].cpu().numpy())

    def _release_finished(self) -> None:
        """Collect finished rows; drop them from the batch when that halves it."""
        finished = self.front.finished
        for row in np.nonzero(finished)[0].tolist():
            self.tokens[self.index[row]] = self.front.new_tokens(row)
        going = np.nonzero(~finished)[0]
        if self.tracer is None and 0 < len(going) <= len(finished) // 2:
            keep = self._upload(going)
            self.front.keep_rows(going)
            self.index = self.index[going]
            self._streams = self._streams[keep]
            self.cache.keep_rows(keep)
            for name in ("embedded", "mixed", "states", "fresh_states"):
                setattr(self, name, getattr(self, name)[keep])
        elif not len(going):
            self.index = self.index[:0]

    def _locate(self, lanes: Lanes) -> tuple[Place, Span]:
        batch = len(lanes.active)
        if lanes.start is not None:
            positions = self._count_up[None, lanes.start : lanes.start + lanes.width].expand(batch, -1)
        else:
            positions = self._upload(lanes.positions)
        place = Place(lanes.start, self._row_index(batch), positions)
        return place, self._span(place, int(lanes.positions.max()) + 1)

    def _span(self, place: Place, length: int) -> Span:
        return self.model.span(place.positions, self.cache, start=place.start, length=length)

    def _row_index(self, batch: int) -> Tensor:
        return torch.arange(batch, device=self._device)[:, None]

    def _cache_depth(self, lanes: Lanes) -> Depth | None:
        """Which recurrence the next pass is, for the slots of a per-depth cache."""
        if self.policy.kv == "shared":
            return None
        used = lanes.depth[lanes.active]
        fall = used[:-1] - used[1:]
        if not fall.any():
            return int(used[0])
        if lanes.start is not None and len(lanes.depth) == 1 and (fall == fall[0]).all() and fall[0] > 0:
            return range(int(used[0]), int(used[-1]) - 1, -int(fall[0]))
        return self._upload(np.where(lanes.active, lanes.depth, 0))

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
        shape = lanes.positions.shape
        self.tracer.record(
            TraceStep(
                step=number,
                seconds=time.perf_counter() - self._clock,
                core_passes=self.stats.core_passes,
                positions=lanes.positions,
                tokens=tokens,
                proposals=np.full(shape, -1) if proposals is None else proposals,
                depth=outcome.depth,
                age=outcome.age,
                residual=np.full(shape, np.nan) if residual is None else residual,
                flipped=outcome.flipped,
                committed=outcome.committed,
            )
        )


def _deeper(depth: Depth | None, passes: int) -> Depth:
    """The depth after so many passes; a shared cache (None) has one slot for all."""
    if depth is None:
        return 0
    if isinstance(depth, range):
        return range(depth.start + passes, depth.stop + passes, depth.step)
    return depth + passes
