"""The key/value cache as transformers' generation knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache

from .cache import KVCache, KVPolicy, Span

if TYPE_CHECKING:
    from .recurrent import RecurrentDepthForCausalLM


class RecurrentCache(Cache):
    """A :class:`KVCache` behind the face that ``transformers.generate`` works with.

    transformers counts *places*, padding included; keys lie by logical position, so padding takes no room and is never
    attended to. Memory is allocated at the first pass and grows where ``capacity`` turns out too small.

    Args:
        num_steps: recurrences of every pass.
        kv: ``per_depth`` (what training computes; ``num_steps`` slots per core layer) or ``shared`` (one).
        capacity: places to allocate at once.

    Raises:
        ValueError: for an unknown ``kv``.
    """

    def __init__(self, num_steps: int, kv: KVPolicy = "per_depth", capacity: int = 0):
        super().__init__(layers=[])
        if kv not in ("shared", "per_depth"):
            raise ValueError(f"kv={kv!r} is unknown; take 'shared' or 'per_depth'")
        self.num_steps, self.kv, self.capacity = num_steps, kv, capacity
        self.store: KVCache | None = None
        self._seen = 0
        self._padded = False

    def open(
        self,
        model: RecurrentDepthForCausalLM,
        batch: int,
        time: int,
        attention_mask: Int[Tensor, "batch places"] | None,
    ) -> tuple[KVCache, Span]:
        """Make room for ``time`` more places of each row, and say where they are; :meth:`close` counts them in.

        Args:
            model: whose keys and values are kept.
            batch: rows.
            time: places of the pass that is to come.
            attention_mask: 1 for tokens and 0 for padding, of all places so far and of the new ones; None without
                padding.

        Raises:
            ValueError: for another number of rows than before, or a mask that does not cover all places.
        """
        before, after = self._seen, self._seen + time
        if self.store is not None and self.batch_size != batch:
            raise ValueError(f"past_key_values holds {self.batch_size} rows, input_ids {batch}; start with a new cache")
        if attention_mask is None and self._padded:
            raise ValueError(f"past_key_values may hold padding; pass an attention_mask of all {after} places")
        store = self._room(model, batch, after)
        if attention_mask is None:
            positions = torch.arange(before, after, device=model.device).expand(batch, time)
            span = model.span(positions, store, start=before)
        else:
            if attention_mask.shape != (batch, after):
                raise ValueError(
                    f"attention_mask has the shape {tuple(attention_mask.shape)}; with {before} places in"
                    f" past_key_values and {time} new ones it must be {(batch, after)}"
                )
            positions = positions_of(attention_mask)[:, before:]
            span = model.span(positions, store, length=after)
        return store, span

    def close(self, time: int, padded: bool) -> None:
        """The pass over so many places is done: they are in the cache; ``padded`` where a mask came with them."""
        self._seen += time
        self._padded = self._padded or padded

    def _room(self, model: RecurrentDepthForCausalLM, batch: int, places: int) -> KVCache:
        old = self.store
        if old is not None and old.capacity >= places:
            return old
        capacity = max(self.capacity, places, 2 * old.capacity if old is not None else 0)
        self.store = model.new_cache(batch, capacity, self.kv, self.num_steps)
        if old is not None:
            for new_tensor, old_tensor in ((self.store.keys, old.keys), (self.store.values, old.values)):
                new_tensor[..., : old.capacity, :] = old_tensor[..., : old.capacity, :]
        return self.store

    # ------------------------------------------------------------------------------------- what transformers asks of it

    def __repr__(self) -> str:
        return f"RecurrentCache(num_steps={self.num_steps}, kv={self.kv!r}, places={self._seen})"

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Places so far, padding included."""
        return self._seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: it grows."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._seen + query_length, 0

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first pass."""
        return -1 if self.store is None else self.store.keys.shape[1]

    def reset(self) -> None:
        """Forget everything."""
        self.store, self._seen, self._padded = None, 0, False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` places (0 or negative, as in transformers)."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove={tokens_to_remove} must be 0 or negative: the places to forget")
        self._seen = max(0, self._seen + tokens_to_remove)

    def reorder_cache(self, beam_idx: Int[Tensor, " rows"]) -> None:
        """Let row i go on from row ``beam_idx[i]``."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Int[Tensor, " rows"]) -> None:
        """Keep these rows, in this order."""
        if self.store is not None:
            self.store.keep_rows(indices.to(self.store.keys.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        if self.store is not None:
            self.batch_select_indices(torch.arange(self.batch_size).repeat_interleave(repeats))


def positions_of(attention_mask: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Logical positions: tokens are counted from 0, padding is -1."""
    return (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, -1)
