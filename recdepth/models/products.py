"""Matrix products of the layers: laid out, and by whichever library, is the fastest on this machine."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def _intel() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return "GenuineIntel" in (cpuinfo.read_text() if cpuinfo.is_file() else platform.processor())


#: Multiply-adds from which oneDNN's product is the faster one: it lays the weight out anew at every call.
LARGE = 1_200_000
#: Whether wide float32 products go to oneDNN: MKL, PyTorch's usual choice, leaves AVX-512 unused on CPUs of others
#: than its maker (benchmarks/products.py measures both).
ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512" and not _intel()


class Linear(nn.Linear):
    """``y = x Wᵀ`` as :class:`torch.nn.Linear` without bias; libraries and layouts differ in the last bits.

    The weight is [out, in] as there, yet lies in memory as its transpose: a product of few rows, as sampling has them,
    takes half the time on some CPUs. Large products in float32 go to oneDNN where MKL does not use AVX-512, everything
    else to PyTorch's own choice.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)
        self.lay_out()

    def lay_out(self) -> None:
        """Let the weight lie in memory as its transpose, where it does not."""
        self.weight.data = self.weight.data.t().contiguous().t()

    def forward(self, input: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        if _suits_onednn(input, self.weight):
            return torch.ops.recdepth.product(input, self.weight)
        return F.linear(input, self.weight)


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        ONEDNN
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * weight.shape[0] >= LARGE
        and not torch.is_autocast_enabled("cpu")
    )


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x Wᵀ`` by the operator that PyTorch's compiler uses for constant weights; it takes any."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _fake(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    product = torch.ops.recdepth.product
    by_input = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
    by_weight = product(grad.flatten(0, -2).t(), x.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None
    return by_input, by_weight


# an operator of our own, so that the compiler calls it as it is, and differentiates through it
_library = torch.library.Library("recdepth", "DEF")
_library.define("product(Tensor x, Tensor weight) -> Tensor")
_library.impl("product", _product, "CPU")
torch.library.register_fake("recdepth::product", _fake, lib=_library)
torch.library.register_autograd("recdepth::product", _gradients, setup_context=_keep, lib=_library)


@cache
def call_without_python() -> None:
    """Let compiled graphs call the product from C++: an operator that is written in Python is called by Python.

    This is private to PyTorch's compiler; where it is missing, graphs compute the same, a little later.
    """
    try:
        from torch._inductor.ir import TensorBox
        from torch._inductor.lowering import register_lowering
        from torch._inductor.mkldnn_ir import LinearUnary
    except ImportError:
        return

    def product(x: TensorBox, weight: TensorBox) -> TensorBox:
        return TensorBox.create(LinearUnary.create(x, weight, None, "none", [], ""))

    # the overload by name: one that has been compiled before has a lowering already, which the packet would keep
    register_lowering(torch.ops.recdepth.product.default, type_promotion_kind=None)(product)
