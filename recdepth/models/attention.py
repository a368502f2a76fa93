"""Attention inside compiled graphs on a CPU: an operator of few queries on the cache, whose code is ours (attention.h).

torch's own kernels there are made for many queries: for one they take four times as long, most of it not spent on keys.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_CODE = Path(__file__).with_suffix(".h").read_text(encoding="utf-8")
#: PyTorch keeps compiled graphs on disk, found by what they say: they say which code of ours they hold.
_VERSION = hashlib.sha256(_CODE.encode() + Path(__file__).read_bytes()).hexdigest()[:16]


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
    out: Tensor = torch.ops.recdepth.attend(q, k, v, rows, positions, _VERSION)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor, version: str) -> Tensor:
    """The same in PyTorch's operators, with a copy of keys and values for each query."""
    batch, _, time, _ = q.shape
    mask = torch.arange(k.shape[2], device=k.device) <= positions.clamp(min=0)[..., None]
    k, v = (x[rows.flatten()] for x in (k, v))
    q = q.transpose(1, 2).flatten(0, 1).unsqueeze(2)
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask.flatten(0, 1)[:, None, None], enable_gqa=q.shape[1] != k.shape[1]
    )
    return y.squeeze(2).unflatten(0, (batch, time))


def _fake(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor, version: str) -> Tensor:
    batch, heads, time, dim = q.shape
    return q.new_empty(batch, time, heads, dim)


_library = torch.library.Library("recdepth", "FRAGMENT")
_library.define("attend(Tensor q, Tensor k, Tensor v, Tensor rows, Tensor positions, str version) -> Tensor")
_library.impl("attend", _attend, "CPU")
torch.library.register_fake("recdepth::attend", _fake, lib=_library)


@cache
def can_attend_by_position() -> bool:
    """Let compiled graphs on a CPU hold our code, by means that are private to PyTorch's compiler.

    Returns:
        whether they are there; without, attention is PyTorch's.
    """
    try:
        from torch._inductor.lowering import register_lowering  # isort: skip  # first: the others import it in a circle
        from torch._inductor.codegen.cpp_template import CppTemplate
        from torch._inductor.codegen.cpp_utils import DTYPE_TO_CPP
        from torch._inductor.ir import ExternKernel, FixedLayout, TemplateBuffer, TensorBox
    except ImportError:
        return False
    if "allow_epilogue_fusion" not in TemplateBuffer.__init__.__code__.co_names:  # older ones fuse what they like
        return False

    class Template(CppTemplate):  # type: ignore[misc]
        """The operator's call of :file:`attention.h`, with sizes and strides as constants."""

        def render(self, kernel: Any, template_buffer_node: Any = None, **_: Any) -> str:
            out = self.output_node if template_buffer_node is None else template_buffer_node
            q, k, v, *_ = self.input_nodes
            names = "q", "k", "v", "rows", "positions"
            inputs = dict(zip(names, self.input_nodes, strict=True))
            begin = kernel.def_kernel(inputs=inputs, outputs={"out": out})
            batch, heads, time, dim = q.get_size()
            q_batch, q_head, q_time, _ = q.get_stride()
            k_row, k_head, k_time, _ = k.get_stride()
            v_row, v_head, v_time, _ = v.get_stride()
            shape = (batch, time, heads, heads // k.get_size()[1])
            shape += (q_batch, q_time, q_head, k_row, k_head, k_time, v_row, v_head, v_time)
            at = [f"{name} + {node.get_layout().offset}" for name, node in inputs.items()]
            numbers, type = ", ".join(map(str, shape)), DTYPE_TO_CPP[q.get_dtype()]
            call = f"recdepth::attend<{type}, {dim}>({', '.join(at)}, out, {{{numbers}}});"
            return f'{self.header().getvalue()}\n{_CODE}\nextern "C" {begin}\n{{\n  {call}\n}}\n'

    def attend(q: TensorBox, k: TensorBox, v: TensorBox, rows: TensorBox, positions: TensorBox, _: str) -> TensorBox:
        inputs = [ExternKernel.realize_input(x) for x in (q, k, v)]
        inputs += [ExternKernel.require_contiguous(ExternKernel.realize_input(x)) for x in (rows, positions)]
        for x in inputs:
            x.freeze_layout()
        batch, heads, time, dim = q.get_size()
        layout = FixedLayout(q.get_device_or_error(), q.get_dtype(), [batch, time, heads, dim])
        out: TensorBox = Template("attend", inputs, layout, 1).generate().output_node()
        out.data.data.allow_epilogue_fusion = False  # our code knows of nothing behind it
        return out

    register_lowering(torch.ops.recdepth.attend.default, type_promotion_kind=None)(attend)
    return True
