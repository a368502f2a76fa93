"""Rotary embeddings: the same turn by complex numbers, by real ones, and by definition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recdepth.models import RecurrentDepthConfig
from recdepth.models.layers import rope_table, rotate_halves, rotate_pairs

ROTATIONS = {"interleaved": rotate_pairs, "half": rotate_halves}


def pairs_of(style, dim):
    return [(2 * i, 2 * i + 1) if style == "interleaved" else (i, i + dim // 2) for i in range(dim // 2)]


@pytest.mark.parametrize("style", ROTATIONS)
@given(
    heads=st.integers(1, 3),
    half=st.integers(1, 5),
    time=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_rotations_are_turns_by_the_angle_of_each_position(style, heads, half, time, dtype, seed):
    config = RecurrentDepthConfig(
        vocab_size=9, hidden_size=2 * half * heads, num_attention_heads=heads, rope_style=style, rope_base=50.0
    )
    table = rope_table(config, torch.device("cpu"), dtype)
    wide = torch.randn(2, time, heads + 1, 2 * half, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    x, rotary = wide[:, :, 1:], table[None, :time, None]  # a part, as queries and keys are
    turned = ROTATIONS[style](x, rotary)
    for i, (a, b) in enumerate(pairs_of(style, 2 * half)):
        for place in range(time):
            angle = place * 50.0 ** (-i / half)
            cos, sin = math.cos(angle), math.sin(angle)
            first, second = x[:, place, :, a], x[:, place, :, b]
            close = {"rtol": 1e-4, "atol": 1e-5}  # angles are float32
            torch.testing.assert_close(turned[:, place, :, a], first * cos - second * sin, **close)
            torch.testing.assert_close(turned[:, place, :, b], first * sin + second * cos, **close)


@pytest.mark.parametrize("style", ROTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_compilers_get_the_same_in_real_numbers_and_so_do_gradients(style, dtype):
    config = RecurrentDepthConfig(vocab_size=9, hidden_size=48, num_attention_heads=3, rope_style=style)
    table = rope_table(config, torch.device("cpu"), torch.promote_types(dtype, torch.float32))
    rotary, rotate = table[None, :7, None], ROTATIONS[style]
    compiled = torch.compile(rotate, backend="eager", fullgraph=True)
    x = torch.randn(2, 7, 3, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn_like(x)
    results = []
    for function in (rotate, compiled):
        y = function(x, rotary)
        (gradient,) = torch.autograd.grad(y, x, weight.to(y.dtype))
        results.append((y, gradient))
    (eager, eager_gradient), (graph, graph_gradient) = results
    assert eager.dtype == table.dtype
    torch.testing.assert_close(eager, graph)
    torch.testing.assert_close(eager_gradient, graph_gradient)
