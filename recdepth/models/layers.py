"""Huginn's building blocks: RMSNorm, rotary attention, gated MLP and the sandwich block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

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
    head_dim: int, length: int, base: float, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, "time head_dim"], Float[Tensor, "time head_dim"]]:
    """Cosines and sign-alternating sines of interleaved rotary embeddings (Su et al. 2021, arXiv 2104.09864)."""
    # float32 whatever the dtype: the angles of the public checkpoints
    frequency = 1.0 / (base ** (torch.arange(0, head_dim, 2, device=device).float() / head_dim))
    angle = torch.outer(torch.arange(length, device=device).float(), frequency)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, cos], -1).flatten(-2).to(dtype), torch.stack([-sin, sin], -1).flatten(-2).to(dtype)


def rotate(x: Float[Tensor, "batch time heads head_dim"], span: Span) -> Float[Tensor, "batch time heads head_dim"]:
    """Rotate the pairs (0, 1), (2, 3), … of each head by the position's angles."""
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * span.cos, swapped, span.sin).to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head attention with fused projections and learned query/key bias."""

    def __init__(self, config: RecurrentDepthConfig):
        super().__init__()
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.qk_bias = nn.Parameter(torch.zeros(2, 1, self.heads, self.head_dim)) if config.qk_bias else None
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Float[Tensor, "batch time dim"], span: Span, cache: Cache | None, slot: Slot
    ) -> Float[Tensor, "batch time dim"]:
        batch, time, _ = x.shape
        qkv = self.qkv(x).view(batch, time, 3 * self.heads, self.head_dim)
        qk, v = qkv[:, :, : 2 * self.heads], qkv[:, :, 2 * self.heads :].transpose(1, 2)
        if self.qk_bias is not None:
            qk = qk + self.qk_bias.flatten(0, 2)
        q, k = rotate(qk, span).transpose(1, 2).chunk(2, dim=1)  # [batch, head, time, head_dim]
        if isinstance(slot, tuple):
            assert cache is not None
            y = torch.cat([self._flight(q, k, v, span, cache, flight) for flight in slot], dim=1)
        else:
            if cache is not None:
                k, v = cache.update(slot, k, v, span)
            y = attend(q, k, v, span)
        return self.proj(y.reshape(batch, time, -1))

    def _flight(self, q: Tensor, k: Tensor, v: Tensor, span: Span, cache: Cache, flight: Flight) -> Tensor:
        lanes = slice(flight.begin, flight.end)
        part = span.part(flight.begin, flight.end)
        return attend(q[:, :, lanes], *cache.update(flight.depth, k[:, :, lanes], v[:, :, lanes], part), part)


def attend(
    q: Float[Tensor, "batch heads time head_dim"], k: Tensor, v: Tensor, span: Span
) -> Float[Tensor, "batch time heads head_dim"]:
    """Causal attention to keys and values that all lanes share, [batch, heads, keys, head_dim], or that each lane has
    for itself, [batch, time, heads, keys, head_dim]."""
    if k.dim() == 4:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=span.mask, is_causal=span.causal).transpose(1, 2)
    batch, _, time, _ = q.shape
    mask = span.part(0, time).mask if span.causal else span.mask
    if torch.compiler.is_compiling():  # fused with the reading of the keys, which are not copied then
        assert mask is not None
        wide = torch.promote_types(q.dtype, torch.float32)
        q = q.transpose(1, 2).unsqueeze(3).to(wide) * q.shape[-1] ** -0.5
        weights = (q * k).sum(-1).masked_fill(~mask.transpose(1, 2), -torch.inf).softmax(-1)
        return (weights.unsqueeze(-1) * v).sum(3).to(v.dtype)
    if mask is not None:
        mask = mask.expand(batch, -1, -1, -1).transpose(1, 2).flatten(0, 1).unsqueeze(2)  # [batch·time, 1, 1, keys]
    q = q.transpose(1, 2).flatten(0, 1).unsqueeze(2)  # [batch·time, heads, 1, head_dim]
    y = F.scaled_dot_product_attention(q, k.flatten(0, 1), v.flatten(0, 1), attn_mask=mask)
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


class SandwichBlock(nn.Module):
    """``x = n2(x + attn(n1(x)))``, ``x = n4(x + mlp(n3(x)))`` (2502.05171, section 3.2)."""

    def __init__(self, config: RecurrentDepthConfig):
        super().__init__()
        self.norm_1 = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config)
        self.norm_2 = RMSNorm(config.hidden_size, config.norm_eps)
        self.norm_3 = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(config)
        self.norm_4 = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(
        self, x: Float[Tensor, "batch time dim"], span: Span, cache: Cache | None, slot: Slot
    ) -> Float[Tensor, "batch time dim"]:
        x = self.norm_2(x + self.attn(self.norm_1(x), span, cache, slot))
        return self.norm_4(x + self.mlp(self.norm_3(x)))
