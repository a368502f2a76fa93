"""Counter-based random numbers: every draw is a function of its key alone, in tensor ops on any device.

The key of a state's noise is (seed, row, position, stream); so a draw does not depend on the batch, the wavefront,
the order or the sampler. The mixing function is SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB

# streams: what a draw is for
STATE, STEP_NOISE, TOKEN = 1, 2, 3


def _mix(x: Tensor) -> Tensor:
    """In place: samplers draw many numbers before they begin."""
    # the masks make the arithmetic right shift of int64 a logical one
    x.bitwise_xor_((x >> 30).bitwise_and_(0x3FFFFFFFF)).mul_(_MIX_1)
    x.bitwise_xor_((x >> 27).bitwise_and_(0x1FFFFFFFFF)).mul_(_MIX_2)
    return x.bitwise_xor_((x >> 31).bitwise_and_(0x1FFFFFFFF))


def uniform(seed: int, stream: int, *keys: Tensor, count: int) -> Float[Tensor, "... count"]:
    """Draw ``count`` numbers in the open interval (0, 1) for every element of the (broadcast) keys.

    Args:
        seed: any Python integer (its low 64 bits count).
        stream: one of ``STATE``, ``STEP_NOISE``, ``TOKEN``.
        keys: integer tensors that broadcast together, e.g. rows [B, 1] and positions [B, T].
        count: draws per element.

    Returns:
        float64, shape of the keys with ``count`` behind; 53 bits of resolution.
    """
    device = keys[0].device
    start = (seed + stream * 0x1000193) & 0xFFFFFFFFFFFFFFFF
    state = _mix(torch.tensor(start - (1 << 64) if start >= 1 << 63 else start, device=device) + _GOLDEN)
    for key in keys:
        state = _mix(state * 3 + _GOLDEN + key)
    channel = torch.arange(1, count + 1, device=device) * _GOLDEN
    bits = _mix(state[..., None] + channel)
    return (bits >> 11).bitwise_and_(0x1FFFFFFFFFFFFF).double().add_(0.5).mul_(1.0 / (1 << 53))


# Computed in float64 and rounded to float32: a last bit of erfinv or log that depends on the shape of the call (as it
# does with vector instructions) is rounded away, so that the draws depend on their key alone.


def truncated_normal(seed: int, stream: int, *keys: Tensor, count: int) -> Float[Tensor, "... count"]:
    """Standard normal draws cut at ±3, by inversion; arguments as in :func:`uniform`."""
    edge = math.erf(3 / math.sqrt(2))
    centred = uniform(seed, stream, *keys, count=count).mul_(2).sub_(1)
    return centred.mul_(edge).erfinv_().mul_(math.sqrt(2)).float()


def gumbel(seed: int, stream: int, *keys: Tensor, count: int) -> Float[Tensor, "... count"]:
    """Standard Gumbel draws, so that ``argmax(logits + gumbel)`` samples the softmax (see :func:`uniform`)."""
    return uniform(seed, stream, *keys, count=count).log_().neg_().log_().neg_().float()
