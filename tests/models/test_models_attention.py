"""Attention of few queries to cached keys, compiled, against its plain definition."""

import math

import pytest
import torch

from recdepth.models import can_compile
from recdepth.models.attention import attend_by_position
from recdepth.models.kernels import can_use_kernels

pytestmark = pytest.mark.skipif(not can_compile()[0], reason="needs a C++ compiler")

#: rows of keys, batch, time, heads, heads of keys, head_dim, places
SHAPES = [
    (1, 1, 1, 4, 4, 32, 21),
    (3, 3, 1, 2, 2, 16, 40),
    (2, 2, 5, 4, 2, 24, 70),
    (1, 1, 70, 2, 2, 64, 150),
    (4, 1, 23, 2, 1, 8, 33),
    (5, 2, 9, 3, 3, 80, 129),
]


def case(rows, batch, time, heads, kv_heads, dim, places, dtype):
    """Queries between others in memory, sorted by the row of keys that they see, and padding anywhere."""
    q = torch.randn(batch, time, heads + 1, dim, dtype=dtype)[:, :, :heads].transpose(1, 2)
    k, v = torch.randn(2, rows, kv_heads, places + 1, dim, dtype=dtype)
    which = torch.randint(rows, (batch, time)).sort().values
    return q, k[:, :, :places], v[:, :, :places], which, torch.randint(-1, places, (batch, time))


def plainly(q, k, v, rows, positions):
    """One query after the other, in float64."""
    batch, heads, time, dim = q.shape
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros(batch, time, heads, dim, dtype=torch.double)
    for b in range(batch):
        for t in range(time):
            seen = max(int(positions[b, t]), 0) + 1
            for head in range(heads):
                shared = head * k.shape[1] // heads
                keys, values = (x[rows[b, t], shared, :seen] for x in (k, v))
                out[b, t, head] = (keys @ q[b, head, t] / math.sqrt(dim)).softmax(0) @ values
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_attention_by_position_is_attention_to_the_keys_up_to_each_position(dtype, two_threads):
    assert can_use_kernels()
    torch.manual_seed(0)
    cases = [case(*shape, dtype) for shape in SHAPES]

    def every(*tensors):
        groups = [tensors[i : i + 5] for i in range(0, len(tensors), 5)]
        return [attend_by_position(*group) + group[0].transpose(1, 2) for group in groups]

    compiled = torch.compile(every, dynamic=False, fullgraph=True, options={"cpp_wrapper": True})
    with torch.inference_mode():
        for _ in range(2):
            given = [x for one in cases for x in one]
            for ours, theirs, one in zip(compiled(*given), every(*given), cases, strict=True):
                tolerance = {torch.float32: 2e-6, torch.float64: 1e-12}.get(dtype, 2e-2)
                for out in (ours, theirs):
                    assert out.dtype == dtype
                    expected = plainly(*one) + one[0].transpose(1, 2)
                    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
            cases = [case(*shape, dtype) for shape in SHAPES]  # other positions, the same graph


def test_what_is_written_between_two_looks_is_seen_by_the_second():
    torch.manual_seed(0)

    def chain(keys, values, x, weight, places, op):
        for lane in range(places.shape[1]):
            place = places[:, lane : lane + 1].contiguous()  # of a larger tensor: not at its begin
            new = (x @ weight).view(1, 1, 2, 16)
            keys[torch.arange(1)[:, None], :, place], values[torch.arange(1)[:, None], :, place] = new, 2 * new
            x = x + op(new.transpose(1, 2), keys[:, :, :40], values[:, :, :40], torch.zeros_like(place), place).flatten(
                2
            )
        return x

    given = torch.randn(2, 1, 2, 41, 16), torch.randn(1, 1, 32), torch.randn(32, 32) / 6, torch.tensor([[10, 11, 12]])
    compiled = torch.compile(chain, dynamic=False, fullgraph=True, options={"cpp_wrapper": True})
    with torch.inference_mode():
        found = compiled(*given[0].clone(), *given[1:], attend_by_position)
        torch.testing.assert_close(found, chain(*given[0].clone(), *given[1:], lambda *x: plainly(*x).float()))
