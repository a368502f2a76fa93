"""Rows come and go: prompts, their prefill, and the buffers by position in which their lanes are refined."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from recdepth.models import (
    WIDTHS,
    KVCache,
    Places,
    RecurrentDepthForCausalLM,
    Seams,
    Span,
    attends_by_position,
    compiled_capacity,
    compiled_width,
    sampling_seams,
)
from recdepth.models.products import packed_products

from .front import Front, LaneBools, Lanes, Rows
from .policies import Policy
from .result import SampleStats
from .spare import take_cache
from .tokens import TokenChooser
from .trace import Tracer


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
            buffer[self.rows, self.positions] = value.to(buffer.dtype)  # slices cast by themselves: autocast


@dataclass(frozen=True)
class Request:
    """What is to be continued.

    Attributes:
        prompts: token ids, non-empty lists; prompt and new tokens fit the context.
        streams: random-stream id of each prompt.
        max_new_tokens: at least 1.
        stop_tokens: ids that end a continuation.
    """

    prompts: list[list[int]]
    streams: list[int]
    max_new_tokens: int
    stop_tokens: frozenset[int] = frozenset()


def refilled_rows(batch: int) -> int:
    """How many rows have to be free before they take new prompts: a prefill costs much."""
    return -(-batch // 4)


class Decoding(ABC):
    """Decode prompts, some rows at a time. States, embeddings and keys lie in buffers by position, allocated once.

    Args:
        model: the model, in eval mode.
        policy: the sampler's settings.
        choose: from logits to tokens; its seed also seeds the states.
        request: what is to be continued.
        batch_size: rows decoded together; a row that has finished serves the next prompt.
        tracer: sees every step, or None; with one, all prompts fit the batch.
    """

    def __init__(
        self,
        model: RecurrentDepthForCausalLM,
        policy: Policy,
        choose: TokenChooser,
        request: Request,
        batch_size: int,
        tracer: Tracer | None = None,
    ):
        began = time.perf_counter()  # buffers are part of the prefill
        self.model, self.policy, self.choose, self.tracer = model, policy, choose, tracer
        self.seams: Seams = sampling_seams(model) if policy.compile else model
        self.prompts, self.request = request.prompts, request
        self.stats = SampleStats()
        self.tokens: list[list[int]] = [[] for _ in self.prompts]
        self._device = model.device
        longest = max(map(len, self.prompts))
        self._longest = self._capacity = longest + request.max_new_tokens
        if policy.compile:
            self._capacity = compiled_capacity(self._longest)
        self._count_up = torch.arange(self._capacity + 1, device=self._device)
        batch = min(batch_size, len(self.prompts))
        self._count_rows = torch.arange(batch, device=self._device)[:, None]
        self.front = Front(batch, self._capacity, request.stop_tokens, policy)
        self.serves = np.full(batch, -1)  # which prompt each row serves; -1 for none
        self._alike_from = np.zeros(batch, dtype=np.int64)  # depth from which on a row's text keeps the same keys
        self._waiting = 0  # the next prompt that no row has served yet
        self._streams = torch.zeros(batch, dtype=torch.long, device=self._device)
        # long prefills are eager
        self._eager = not policy.compile or longest > WIDTHS[-1]
        unmasked = not self._eager and attends_by_position(self._device)
        self.cache = take_cache(model, batch, self._capacity, policy.kv, policy.num_steps, unmasked)
        self._small_cache: KVCache | None = None  # for prompts that come while other rows are at work
        shape = (batch, self._capacity + 1, model.config.hidden_size)  # one spare position for unused lanes
        self.embedded = torch.zeros(shape, dtype=model.dtype, device=self._device)  # e of the present tokens
        self.mixed = torch.zeros_like(self.embedded) if policy.momentum else self.embedded  # e as the core last saw it
        self.states = torch.zeros_like(self.embedded)
        self.fresh_states = torch.zeros_like(self.embedded) if policy.on_flip != "keep" else self.states
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
            began = time.perf_counter()
            self.tracer.start(self.prompts)
            self._clock += time.perf_counter() - began  # looking on is not decoding
        number = 0
        with packed_products(self.model) if self._eager else nullcontext():
            while self._admit():
                self.step(number)
                number += 1
        stats = self.stats
        stats.decode_seconds = time.perf_counter() - self._clock
        stats.new_tokens = sum(map(len, self.tokens))
        stats.recurrences_per_token = self._recurrences / max(stats.committed, 1)
        stats.tokens_per_second = stats.new_tokens / max(stats.prefill_seconds + stats.decode_seconds, 1e-9)
        return self.tokens

    @abstractmethod
    def step(self, number: int) -> None:
        """Refine the open lanes, and commit what is done."""

    # ------------------------------------------------------------------------------------------------ rows come and go

    def _admit(self) -> bool:
        """Collect finished rows and let them serve waiting prompts; without any, drop rows when that halves the batch.

        Returns:
            whether any row has work.
        """
        if not self.front.finished.any():  # all rows are at work
            return True
        while True:
            for row in np.nonzero(self.front.finished & (self.serves >= 0))[0].tolist():
                self.tokens[self.serves[row]] = self.front.new_tokens(row)
                self.serves[row] = -1
            free = np.nonzero(self.serves < 0)[0]
            waiting = len(self.prompts) - self._waiting
            at_once = refilled_rows(len(self.serves))
            if not waiting or len(free) < at_once:
                break
            if len(free) < len(self.serves):  # some of them wait for more
                free = free[: len(free) // at_once * at_once]
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
        self.serves[rows], self._alike_from[rows] = which, 0
        self.front.admit(rows, [self.prompts[i] for i in which], self.request.max_new_tokens)
        at = self._upload(rows)
        self._streams[at] = torch.tensor([self.request.streams[i] for i in which], device=self._device)
        for begin in range(0, self._longest, 256):  # in parts: the draws need more memory than their result
            end = min(begin + 256, self._longest)
            positions = self._count_up[begin:end].expand(len(rows), -1)
            like = self.states[: len(rows), begin:end]
            noise = self.model.initial_state(
                like, self._streams[at], positions, self.choose.seed, self.policy.init_scale
            )
            self.states[at, begin:end] = noise
            if self.policy.on_flip != "keep":
                self.fresh_states[at, begin:end] = noise
        if self._prefills:
            self._prefill(rows)
        else:
            self.front.open_over_prompt(rows)

    def _prefill(self, rows: Rows) -> None:
        """Read these rows' prompts in, all at once or a quarter of all rows at a time; commits the first new tokens."""
        batch, longest = len(self.front.prompt), int(self.front.prompt[rows].max())
        if len(rows) == batch:
            self._prefill_into(self.cache, rows)
            return
        at_once = refilled_rows(batch)
        if self._small_cache is None or len(self._small_cache.keys[0]) != at_once:
            self._small_cache = self.model.new_cache(at_once, self._capacity, self.policy.kv, self.policy.num_steps)
        for begin in range(0, len(rows), at_once):
            some = rows[begin : begin + at_once]
            self._prefill_into(self._small_cache, some)
            self.cache.put_rows(self._upload(some), self._small_cache, longest)

    def _prefill_into(self, cache: KVCache, rows: Rows) -> None:
        """These rows' prompts in one parallel pass, with a cache of as many rows, or more: the rest is padding."""
        front = self.front
        lengths = front.prompt[rows]
        longest = width = int(lengths.max())
        seams: Seams = self.model
        if self.policy.compile and longest <= WIDTHS[-1]:  # longer ones gain little, and differ a lot
            seams, width = self.seams, compiled_width(longest)
        positions = np.arange(width) - (width - lengths)[:, None]  # padded on the left
        positions = np.where(positions >= 0, positions, -1)
        count, padding = len(rows), cache.keys.shape[1] - len(rows)
        rows = np.pad(rows, (0, padding), mode="edge")
        positions = np.pad(positions, ((0, padding), (0, 0)), constant_values=-1)
        place = Place(None, self._upload(rows)[:, None], self._upload(positions))
        start = 0 if (positions >= 0).all() and seams is self.model else None
        span = seams.span(place.positions, cache, start=start, length=longest)
        e = seams.embed(self._upload(front.tokens[rows[:, None], positions]), cache, span)
        s, steps = self._deepen(e, place.read(self.states), seams, cache, span, positions >= 0)
        logits = seams.decode(s, cache, span, logits_to_keep=1)
        behind = self._upload(front.prompt[rows][:, None])
        first = self.choose(logits, self._streams[place.rows[:, 0]], behind)
        if self.policy.kv == "per_depth" and steps < self.policy.num_steps:
            row, column = np.nonzero(positions >= 0)
            cache.settle(self._upload(row), self._upload(positions[row, column]), steps)
        self._alike_from[rows] = steps
        self.stats.prefill_passes += steps
        front.open_after_prefill(rows[:count], first[:count, 0].cpu().numpy())

    def _deepen(
        self, e: Tensor, s: Tensor, seams: Seams, cache: KVCache, span: Span | Places, read: LaneBools
    ) -> tuple[Tensor, int]:
        """The recurrences of prompts; ``read`` are the places that hold a token.

        Returns:
            the states, and how many recurrences that took.
        """
        depth = 0
        while depth < self.policy.prefill:
            before, s = s, seams.recur(e, s, cache, span, depth)
            depth += 1
            if self._at_rest(s, before, read, depth):
                break
        return s, depth

    def _at_rest(self, s: Tensor, before: Tensor, read: LaneBools, depth: int) -> bool:
        """Whether further recurrences of a prompt would change nothing; the states before and after the last one."""
        return False

    def _keep_rows(self, rows: Rows) -> None:
        """Drop all other rows: they cost no more."""
        keep, self._small_cache = self._upload(rows), None  # no prompt waits any more
        self.front.keep_rows(rows)
        self.serves, self._alike_from = self.serves[rows], self._alike_from[rows]
        self._streams = self._streams[keep]
        self.cache.keep_rows(keep)
        self.embedded, self.states = self.embedded[keep], self.states[keep]
        self.mixed = self.mixed[keep] if self.policy.momentum else self.embedded
        self.fresh_states = self.fresh_states[keep] if self.policy.on_flip != "keep" else self.states

    def _locate(self, lanes: Lanes) -> tuple[Place, Span | Places]:
        batch = len(lanes.active)
        self.stats.widest = max(self.stats.widest, lanes.width)
        start = None if self.policy.compile else lanes.start
        if start is not None:
            positions = self._count_up[None, start : start + lanes.width].expand(batch, -1)
        else:
            positions = self._lay(lanes.positions, -1)
        place = Place(start, self._row_index(batch), positions)
        return place, self._span(place, lanes.end)

    def _span(self, place: Place, length: int) -> Span | Places:
        return self.seams.span(place.positions, self.cache, start=place.start, length=length)

    def _row_index(self, batch: int) -> Tensor:
        return self._count_rows[:batch]

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
