"""Positions of a pass, and the preallocated key/value cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .config import RecurrentDepthConfig

KVPolicy = Literal["shared", "per_depth"]


@dataclass(frozen=True)
class Flight:
    """Adjacent lanes ``begin … end-1`` at one depth (int), or at depths that fall evenly from lane to lane (range)."""

    begin: int
    end: int
    depth: int | range


#: Recurrences that states have had before a pass: the same for all; one row's lanes as flights, together all of them
#: (read and written without copying the cache); or one per lane in any order [batch, time] (a copy per lane).
Depth = int | tuple[Flight, ...] | Int[Tensor, "batch time"]
#: Where the cache keeps a layer: as many kinds as there are of depth.
Slot = Depth | range


@dataclass(frozen=True)
class Packing:
    """Lanes of several rows, as places of one: products cost what there is to do, however ragged the rows are.

    Attributes:
        rows, columns: [1, places], the row of each place, and which lane of it that is.
        used: [1, places], False for padding, whose row and lane are any.
        places: [batch, width], the place of each lane; any for one that is closed.
    """

    rows: Int[Tensor, "1 places"]
    columns: Int[Tensor, "1 places"]
    used: Bool[Tensor, "1 places"]
    places: Int[Tensor, "batch width"]

    @classmethod
    def of(cls, lanes: Int[Tensor, " batch"], width: int, places: int) -> Packing:
        """Pack the first lanes of each row, so many of at most ``width``; ``places`` is at least their sum."""
        row, column = (torch.arange(n, device=lanes.device) for n in (len(lanes), width))
        place = torch.arange(places, device=lanes.device)
        begin = (lanes * (row < row[:, None])).sum(1)
        rows = ((place[:, None] >= begin + lanes).sum(1)).clamp(max=len(lanes) - 1)
        columns = (place - begin[rows]).clamp(max=width - 1)
        used = place < lanes.sum()
        return cls(rows[None], columns[None], used[None], (begin[:, None] + column).clamp(max=places - 1))

    def unpack(self, x: Float[Tensor, "1 places ..."]) -> Float[Tensor, "batch width ..."]:
        """Lanes by row."""
        return x[0][self.places]

    def pack(self, x: Float[Tensor, "batch width ..."]) -> Float[Tensor, "1 places ..."]:
        """Lanes by place."""
        return x[self.rows, self.columns]


@dataclass(frozen=True)
class Span:
    """The positions of one pass with all that follows from them, computed once and used by every layer.

    Attributes:
        positions: logical positions; -1 is padding (not counted, never attended to).
        rotary: cosines and sines of the positions, as the model's ``rope_table`` has them.
        mask: which keys each query sees; None when ``causal`` says it all, or when every query sees every key.
        causal: the queries are exactly the keys, in order.
        start: first position, where every row holds ``start … start+T-1``; None otherwise.
        length: number of keys, i.e. the highest position + 1 (with a cache) or T (without).
        packing: where the places are lanes of several rows: batch is 1 then, but for the mask's, whose queries are the
            unpacked lanes.
        by_position: there is no mask, as attention itself sees to it that every query sees the keys up to its own.
    """

    positions: Int[Tensor, "batch time"]
    rotary: Float[Tensor, "rows time 1 kinds head_dim"]
    mask: Bool[Tensor, "batch 1 time keys"] | None
    causal: bool
    start: int | None
    length: int
    packing: Packing | None = None
    by_position: bool = False

    @property
    def rows(self) -> Int[Tensor, "batch time"]:
        """The row of each place; broadcasts to that shape."""
        if self.packing is not None:
            return self.packing.rows
        return torch.arange(len(self.positions), device=self.positions.device)[:, None]

    def part(self, begin: int, end: int) -> Span:
        """Some of the places, adjacent ones; of a span with a start, keys behind the last of them are left out."""
        assert self.packing is None, "packed lanes stay together"
        positions, rotary = self.positions[:, begin:end], self.rotary[:, begin:end]
        if self.by_position:
            return Span(positions, rotary, None, False, None, self.length, by_position=True)
        if self.start is None:
            assert self.mask is not None
            return Span(positions, rotary, self.mask[:, :, begin:end], False, None, self.length)
        length, mask = self.start + end, None
        if end - begin > 1:
            keys = torch.arange(length, device=positions.device)
            mask = self.mask[:, :, begin:end, :length] if self.mask is not None else keys <= positions[:, None, :, None]
        return Span(positions, rotary, mask, False, self.start + begin, length)

    def tail(self, begin: int) -> Span:
        """The places from one on, with the same keys."""
        if begin == 0:
            return self
        assert self.packing is None, "packed lanes stay together"
        positions, rotary = self.positions[:, begin:], self.rotary[:, begin:]
        mask = None if self.mask is None else self.mask[:, :, begin:]
        if self.causal:
            mask = torch.arange(self.length, device=positions.device) <= positions[:, None, :, None]
        start = None if self.start is None else self.start + begin
        return replace(self, positions=positions, rotary=rotary, mask=mask, causal=False, start=start)


class Cache(Protocol):
    """What attention asks of a cache; training wavefronts bring a differentiable one."""

    def update(self, slot: Slot, keys: Tensor, values: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Store the keys and values ([batch, head, time, head_dim]) of a span; return all that it may attend to.

        That is [batch, head, keys, head_dim], or [batch, time, head, keys, head_dim] where each query has its own.
        """
        ...

    def core_slot(self, layer: int, depth: Depth) -> Slot:
        """The slot of a core layer at recurrence ``depth``."""
        ...

    def prelude_slot(self, layer: int) -> int:
        """The slot of a prelude layer."""
        ...

    def coda_slot(self, layer: int) -> int:
        """The slot of a coda layer."""
        ...


class KVCache:
    """Preallocated keys and values, ``[slot, batch, head, time, head_dim]``, written in place by position.

    Heads are those of keys and values. A slot is a prelude layer, a core layer (``kv="shared"``: the newest recurrence
    overwrites) or a core layer and recurrence (``kv="per_depth"``), or a coda layer. Forgetting positions needs no
    copy: a span reads up to its own length. One spare position at the end swallows the writes of padding (position -1).

    Args:
        config: the model's shape.
        batch: rows.
        capacity: positions per row.
        kv: ``"shared"`` or ``"per_depth"``.
        num_steps: recurrences that ``per_depth`` keeps apart; ``shared`` has one slot however many there are.
    """

    def __init__(
        self,
        config: RecurrentDepthConfig,
        batch: int,
        capacity: int,
        kv: KVPolicy = "shared",
        num_steps: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        if kv not in ("shared", "per_depth"):
            raise ValueError(f"kv={kv!r} is unknown; take 'shared' or 'per_depth'")
        self.kv = kv
        self.capacity = capacity
        self._prelude = config.prelude_layers
        self._core = config.core_layers
        self._depths = num_steps if kv == "per_depth" else 1
        slots = config.prelude_layers + config.core_layers * self._depths + config.coda_layers
        heads = config.num_key_value_heads or config.num_attention_heads
        shape = (slots, batch, heads, capacity + 1, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self._views: dict[tuple[str, int, int], tuple[list[Tensor], list[Tensor]]] = {}

    def is_for(
        self, batch: int, capacity: int, kv: KVPolicy, num_steps: int, dtype: torch.dtype, device: torch.device
    ) -> bool:
        """Whether a cache of the same model, made by these arguments, would be like this one."""
        wanted = batch, capacity, kv, num_steps if kv == "per_depth" else 1, dtype, device
        return wanted == (self.keys.shape[1], self.capacity, self.kv, self._depths, self.keys.dtype, self.keys.device)

    def clear(self) -> None:
        """Forget all: as new."""
        with torch.inference_mode():  # rows may have been dropped in it
            self.keys.zero_()
            self.values.zero_()

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.keys.nbytes + self.values.nbytes

    @cached_property
    def kind(self) -> tuple[torch.Size, torch.device, torch.dtype]:
        """Shape of a slot, device and dtype."""
        return self.keys.shape[1:], self.keys.device, self.keys.dtype

    def prelude_slot(self, layer: int) -> int:
        return layer

    def core_slot(self, layer: int, depth: Depth) -> Slot:
        if self.kv == "shared":
            return self._prelude + layer
        # deepest first: along a wavefront depths fall, so slots rise, and a stride can follow them
        last = self._prelude + (layer + 1) * self._depths - 1
        if isinstance(depth, Tensor):
            return last - depth
        if isinstance(depth, tuple):
            return tuple(Flight(f.begin, f.end, self._slots(last, f.depth)) for f in depth)
        self._check_depth(depth)
        return last - depth

    def _slots(self, last: int, depth: int | range) -> int | range:
        self._check_depth(depth if isinstance(depth, int) else depth[0])
        if isinstance(depth, int):
            return last - depth
        return range(last - depth.start, last - depth.stop, -depth.step)

    def _check_depth(self, depth: int) -> None:
        if depth >= self._depths:
            raise ValueError(f"recurrence {depth + 1} needs a cache with num_steps={depth + 1}, not {self._depths}")

    def coda_slot(self, layer: int) -> int:
        return self._prelude + self._core * self._depths + layer

    def update(self, slot: Slot, keys: Tensor, values: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Write a span in place and return all keys and values up to its length.

        Args:
            slot: see ``prelude_slot``, ``core_slot``, ``coda_slot``; of a tuple, one flight's.
            keys, values: [batch, head, time, head_dim].
            span: where they belong.

        Returns:
            views [batch, head, keys, head_dim]; for one slot per lane [batch, time, head, keys, head_dim], views where
            the slots are a range, else copies.
        """
        assert not isinstance(slot, tuple), "attention updates flight by flight"
        keys, values = keys.to(self.keys.dtype), values.to(self.values.dtype)  # autocast has dtypes of its own
        if isinstance(slot, range):
            return (
                self._staircase(self.keys, slot, keys, span),
                self._staircase(self.values, slot, values, span),
            )
        if isinstance(slot, Tensor):
            rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
            self.keys[slot, rows, :, span.positions] = keys.transpose(1, 2)
            self.values[slot, rows, :, span.positions] = values.transpose(1, 2)
            return self.keys[..., : span.length, :][slot, rows], self.values[..., : span.length, :][slot, rows]
        k, v = self.keys[slot], self.values[slot]
        if span.start is not None:
            end = span.start + keys.shape[2]
            k[:, :, span.start : end] = keys
            v[:, :, span.start : end] = values
        else:
            rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
            k[rows, :, span.positions] = keys.transpose(1, 2)
            v[rows, :, span.positions] = values.transpose(1, 2)
        return k[:, :, : span.length], v[:, :, : span.length]

    @property
    def first_slots(self) -> tuple[int, ...]:
        """Each core layer's slot of depth 0; that of depth d lies d before it."""
        return tuple(self._prelude + (layer + 1) * self._depths - 1 for layer in range(self._core))

    def slots(self, seam: str, depth: int = 0, steps: int = 1) -> tuple[list[Tensor], list[Tensor]]:
        """The keys and the values that a seam (embed, recur, decode) uses, a view per layer.

        Those of some recurrences from ``depth`` on are in this order (one's, where they share it); ``refine`` uses
        those of an embedding, of recurrences, and of a read-out.
        """
        several = range(depth, depth + steps) if self.kv == "per_depth" else range(1)
        key = seam, several.start, len(several)
        if key not in self._views:
            if seam == "refine" or len(several) > 1:
                parts = [self.slots("recur", d) for d in several]
                if seam == "refine":
                    parts = [self.slots("embed"), *parts, self.slots("decode")]
                keys, values = (list(chain(*of_parts)) for of_parts in zip(*parts, strict=True))
            else:
                first, count, step = {
                    "embed": (0, self._prelude, 1),
                    "recur": (self._prelude + self._depths - 1 - key[1], self._core, self._depths),
                    "decode": (self.coda_slot(0), len(self.keys) - self.coda_slot(0), 1),
                }[seam]
                slots = range(first, first + count * step, step)
                keys, values = [self.keys[i] for i in slots], [self.values[i] for i in slots]
            self._views[key] = keys, values
        return self._views[key]

    def settle(self, rows: Tensor | slice, positions: Tensor | slice, depth: Tensor | int) -> None:
        """Let the slots that positions never wrote read as their deepest one (``per_depth`` only).

        Args:
            rows, positions: [n], positions that get no further recurrences.
            depth: recurrences they got (at least 1): [n], or one number for all. With one number, rows and positions
                may be slices.
        """
        if self.kv == "shared":
            return
        first = self._prelude
        for store in (self.keys, self.values):
            core = store[first : first + self._core * self._depths].unflatten(0, (self._core, self._depths))
            last = self._depths - 1  # slots run from the deepest to the shallowest
            if isinstance(depth, int):
                deeper = self._depths - depth
                for layer in core:
                    layer[:deeper, rows, :, positions] = layer[deeper : deeper + 1, rows, :, positions]
                continue
            assert isinstance(rows, Tensor), "depths of their own want indices"
            assert isinstance(positions, Tensor), "depths of their own want indices"
            source = torch.arange(self._depths, device=depth.device).maximum(last + 1 - depth[:, None])  # [n, depths]
            at = (source, rows[:, None], slice(None), positions[:, None])
            for layer in core:
                layer[:, rows, :, positions] = layer[at]

    def _staircase(self, store: Tensor, slots: range, new: Tensor, span: Span) -> Tensor:
        """Write lane j into slot j of the range, and view each lane's own slot up to the span's length."""
        assert span.start is not None, "a range of depths is for adjacent lanes"
        assert new.shape[0] == 1, "a range of depths is for one row"
        _, _, heads, _, dim = store.shape
        slot_step, _, head_step, time_step, _ = store.stride()
        lanes, lane_step, first = len(slots), slots.step * slot_step, slots.start * slot_step
        diagonal = (lanes, heads, dim), (lane_step + time_step, head_step, 1)
        store.as_strided(*diagonal, first + span.start * time_step).copy_(new[0].transpose(0, 1))
        shape = (1, lanes, heads, span.length, dim)
        return store.as_strided(shape, (0, lane_step, head_step, time_step, 1), first)

    def put_rows(self, rows: Int[Tensor, " some"], other: KVCache, length: int) -> None:
        """Copy the first positions of another cache's first rows into these."""
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            mine[:, rows, :, :length] = theirs[:, : len(rows), :, :length]

    def keep_rows(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop all rows but these (finished rows stop costing)."""
        self.keys = self.keys.index_select(1, rows)
        self.values = self.values.index_select(1, rows)
        self._views.clear()
        self.__dict__.pop("kind", None)


@dataclass(frozen=True)
class Buffers:
    """What a model's ``refine`` and ``draft`` work on, [batch, position, dim] each.

    Attributes:
        states: the lanes' states.
        embedded: embeddings of their present tokens.
        mixed: embeddings as the core last saw them, with momentum; None without.
        initial: states to begin with instead of ``states``, or None.
    """

    states: Tensor
    embedded: Tensor
    mixed: Tensor | None = None
    initial: Tensor | None = None

    @property
    def given(self) -> tuple[bool, bool]:
        """Whether there are mixed embeddings, and initial states."""
        return self.mixed is not None, self.initial is not None

    @property
    def tensors(self) -> list[Tensor]:
        """Those there are, in their order."""
        return [x for x in (self.states, self.embedded, self.mixed, self.initial) if x is not None]
