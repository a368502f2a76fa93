"""Attention of few queries to the cache inside graphs compiled for a CPU, whose code is ours (attention.h).

torch's own kernels there are made for many queries: for one they take four times as long, most of it not spent on keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .kernels import Kernel


def attend_by_position(
    q: Float[Tensor, "batch heads time head_dim"],
    k: Float[Tensor, "rows kv_heads places head_dim"],
    v: Float[Tensor, "rows kv_heads places head_dim"],
    rows: Int[Tensor, "batch time"],
    positions: Int[Tensor, "batch time"],
) -> Float[Tensor, "batch time heads head_dim"]:
    """Attention of queries that each see the places of a row of keys up to their own, of padding (-1) the first alone.

    Args:
        q: the queries.
        k, v: keys and values by place; a head of them serves as many adjacent heads of queries.
        rows: the row of keys that each query sees.
        positions: the last place that it sees.
    """
    out: Tensor = torch.ops.recdepth.attention(q, k, v, rows, positions, _KERNEL.version)
    return out


def _plainly(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """The same in PyTorch's operators, with a copy of keys and values for each query."""
    batch, heads, time, _ = q.shape
    mask = torch.arange(k.shape[2], device=k.device) <= positions.clamp(min=0).flatten()[:, None]
    k, v = (x[rows.flatten()] for x in (k, v))
    q = q.transpose(1, 2).flatten(0, 1).unsqueeze(2)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], enable_gqa=heads != k.shape[1])
    return y.squeeze(2).unflatten(0, (batch, time))


def _shape(q: Sequence[Any], *_: Any) -> Sequence[Any]:
    batch, heads, time, dim = q
    return batch, time, heads, dim


def _call(type: str, out: Sequence[Any], q: Any, k: Any, v: Any, **_: Any) -> str:
    batch, time, heads, dim = out
    q_batch, q_head, q_time, _last = q.get_stride()
    numbers = [
        batch,
        heads,
        heads // k.get_size()[1],
        q_batch,
        q_time,
        q_head,
        *k.get_stride()[:3],
        *v.get_stride()[:3],
    ]
    return f"recdepth::attend<{type}, {dim}, {time}>(q, k, v, rows, positions, out, {{{', '.join(map(str, numbers))}}})"


_KERNEL = Kernel("attention", ("q", "k", "v", "rows", "positions"), _plainly, _shape, _call, ("rows", "positions"))
