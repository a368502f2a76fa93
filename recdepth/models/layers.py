"""The building blocks: RMSNorm, rotary attention, gated MLP, and the block of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .attention import attend_by_position
from .cache import Cache, Flight, Slot, Span
from .config import RecurrentDepthConfig
from .products import Linear


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned gain, computed in at least float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rope_table(
    config: RecurrentDepthConfig, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "time kinds head_dim"]:
    """Rotary embeddings (Su et al. 2021, arXiv 2104.09864) of the whole context.

    Returns:
        of each position the cosine and the signed sine of each coordinate; where adjacent ones turn together, also the
        cosine and sine of each pair, one after the other.
    """
    # float32 whatever the dtype: the angles of the public checkpoints
    halves = torch.arange(0, config.head_dim, 2, device=device).float()
    frequency = 1.0 / (config.rope_base ** (halves / config.head_dim))
    if config.rope_llama3 is not None:
        frequency = _stretched(frequency, **config.rope_llama3)
    angle = torch.outer(torch.arange(config.max_position_embeddings, device=device).float(), frequency)
    cos, sin = angle.cos(), angle.sin()
    if config.rope_style == "half":
        kinds = [torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]
    else:
        kinds = [torch.stack(pair, -1).flatten(-2) for pair in ((cos, cos), (-sin, sin), (cos, sin))]
    return torch.stack(kinds, dim=1).to(dtype)


def _stretched(
    frequency: Tensor,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: float,
) -> Tensor:
    """Llama 3's frequencies: waves longer than 1/low of the original context are stretched by the factor, those
    shorter than 1/high of it not at all, and those between in proportion (The Llama 3 Herd of Models, 2407.21783)."""
    turns = original_max_position_embeddings * frequency / (2 * math.pi)  # over the original context
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return kept * frequency + (1 - kept) * frequency / factor


def rotate_pairs(
    x: Float[Tensor, "*any head_dim"], rotary: Float[Tensor, "*any 3 head_dim"]
) -> Float[Tensor, "*any head_dim"]:
    """Turn the coordinates (0, 1), (2, 3), … of each head: a product of complex numbers.

    Each product of real ones is rounded, not fused as addcmul would: the arithmetic of the public implementations.
    """
    cos, sin, turn = rotary.unbind(-2)
    x = x.to(turn.dtype)
    if torch.compiler.is_compiling():  # compilers make no code for complex numbers
        return x * cos + x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * sin
    x, turn = (torch.view_as_complex(y.unflatten(-1, (-1, 2))) for y in (x, turn))
    return torch.view_as_real(x * turn).flatten(-2)


def rotate_halves(
    x: Float[Tensor, "*any head_dim"], rotary: Float[Tensor, "*any 2 head_dim"]
) -> Float[Tensor, "*any head_dim"]:
    """Turn the coordinates (0, n/2), (1, n/2 + 1), … of each head."""
    cos, sin = rotary.unbind(-2)
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class Attention(nn.Module):
    """Causal attention with fused projections, shared key/value heads where wanted, and learned query/key bias."""

    def __init__(self, config: RecurrentDepthConfig):
        super().__init__()
        assert config.num_key_value_heads is not None  # set by the configuration
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.rotate = rotate_halves if config.rope_style == "half" else rotate_pairs
        self.qkv = Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.head_dim)
        self.qk_bias = nn.Parameter(torch.zeros(2, 1, self.heads, self.head_dim)) if config.qk_bias else None
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Float[Tensor, "batch time dim"], span: Span, cache: Cache | None, slot: Slot
    ) -> Float[Tensor, "batch time dim"]:
        batch, time, _ = x.shape
        rotated = self.heads + self.kv_heads
        qkv = self.qkv(x).view(batch, time, rotated + self.kv_heads, self.head_dim)
        qk, v = qkv[:, :, :rotated], qkv[:, :, rotated:].transpose(1, 2)
        if self.qk_bias is not None:
            qk = qk + self.qk_bias.flatten(0, 2)
        qk = self.rotate(qk, span.rotary).to(qk.dtype).transpose(1, 2)
        q, k = qk.split([self.heads, self.kv_heads], dim=1)  # [batch, head, time, head_dim]
        if isinstance(slot, tuple):
            assert cache is not None
            y = torch.cat([self._flight(q, k, v, span, cache, flight) for flight in slot], dim=1)
        else:
            if cache is not None:
                k, v = cache.update(slot, k, v, span)
            y = attend(q, k, v, span, slot)
        return self.proj(y.reshape(batch, time, -1))

    def _flight(self, q: Tensor, k: Tensor, v: Tensor, span: Span, cache: Cache, flight: Flight) -> Tensor:
        lanes = slice(flight.begin, flight.end)
        part = span.part(flight.begin, flight.end)
        return attend(q[:, :, lanes], *cache.update(flight.depth, k[:, :, lanes], v[:, :, lanes], part), part)


def attend(
    q: Float[Tensor, "batch heads time head_dim"], k: Tensor, v: Tensor, span: Span, slot: Slot = 0
) -> Float[Tensor, "batch time heads head_dim"]:
    """Causal attention to keys and values that all lanes share, [batch, kv_heads, keys, head_dim], or that each lane
    has for itself, [batch, time, kv_heads, keys, head_dim], or, by position, in a slot of its own of all there are,
    [slots, batch, kv_heads, keys, head_dim]; a head of keys serves as many adjacent query heads."""
    grouped, packing = q.shape[1] != k.shape[-3], span.packing
    if span.by_position:
        rows = span.rows.expand(span.positions.shape)
        if k.dim() == 5:
            assert isinstance(slot, Tensor)
            rows, k, v = slot * k.shape[1] + rows, k.flatten(0, 1), v.flatten(0, 1)
        return attend_by_position(q, k, v, rows, span.positions)
    if k.dim() == 4:
        if packing is not None:
            q = packing.unpack(q.transpose(1, 2)).transpose(1, 2)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=span.mask, is_causal=span.causal, enable_gqa=grouped
        ).transpose(1, 2)
        return y if packing is None else packing.pack(y)
    batch, _, time, _ = q.shape
    mask = span.part(0, time).mask if span.causal else span.mask
    if torch.compiler.is_compiling():  # fused with the reading of the keys, which are not copied then
        assert mask is not None
        wide = torch.promote_types(q.dtype, torch.float32)
        q = q.transpose(1, 2).unsqueeze(3).to(wide) * q.shape[-1] ** -0.5
        if grouped:
            k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
        weights = (q * k).sum(-1).masked_fill(~mask.transpose(1, 2), -torch.inf).softmax(-1)
        return (weights.unsqueeze(-1) * v).sum(3).to(v.dtype)
    if mask is not None:
        mask = mask.expand(batch, -1, -1, -1).transpose(1, 2).flatten(0, 1).unsqueeze(2)  # [batch·time, 1, 1, keys]
    q = q.transpose(1, 2).flatten(0, 1).unsqueeze(2)  # [batch·time, heads, 1, head_dim]
    y = F.scaled_dot_product_attention(q, k.flatten(0, 1), v.flatten(0, 1), attn_mask=mask, enable_gqa=grouped)
    return y.squeeze(2).unflatten(0, (batch, time))


class GatedMLP(nn.Module):
    """``proj(silu(a) * b)`` with ``a, b`` the halves of one projection."""

    def __init__(self, config: RecurrentDepthConfig):
        super().__init__()
        assert config.intermediate_size is not None  # set by the configuration
        self.fc = Linear(config.hidden_size, 2 * config.intermediate_size)
        self.proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
        gate, up = self.fc(x).chunk(2, dim=-1)
        return self.proj(F.silu(gate) * up)


class Block(nn.Module):
    """Attention, then a gated MLP; ``norm_placement`` says where the norms are (2502.05171, section 3.2: sandwich).

    ``norm_1`` and ``norm_3`` are before attention and MLP, ``norm_2`` and ``norm_4`` behind them.
    """

    def __init__(self, config: RecurrentDepthConfig):
        super().__init__()
        behind = config.norm_placement != "pre"
        self.inner = config.norm_placement == "inner_sandwich"
        self.norm_1 = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config)
        self.norm_2 = RMSNorm(config.hidden_size, config.norm_eps) if behind else None
        self.norm_3 = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(config)
        self.norm_4 = RMSNorm(config.hidden_size, config.norm_eps) if behind else None

    def forward(
        self, x: Float[Tensor, "batch time dim"], span: Span, cache: Cache | None, slot: Slot
    ) -> Float[Tensor, "batch time dim"]:
        x = self._add(x, self.attn(self.norm_1(x), span, cache, slot), self.norm_2)
        return self._add(x, self.mlp(self.norm_3(x)), self.norm_4)

    def _add(self, x: Tensor, y: Tensor, norm: RMSNorm | None) -> Tensor:
        if norm is None:
            return x + y
        return x + norm(y) if self.inner else norm(x + y)
