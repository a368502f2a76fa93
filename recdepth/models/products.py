"""Matrix products of the layers: weights laid out as few rows want them, and who multiplies while sampling on a CPU.

In compiled graphs that is code of ours (product.h); for many rows in bfloat16, and outside graphs where there is much
to do, oneDNN with packed weights; else PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .cpu import is_intel
from .kernels import Kernel, can_use_kernels

#: Products in float32 that are faster with packed weights, though their call takes longer: those of weights of so many
#: numbers, from so many multiply-adds on. PyTorch's own (MKL) are as fast as a CPU of Intel is, and less so on others.
PACKED_FROM = [(1 << 17, 500_000), (0, 5_000_000)]
if is_intel() and torch.backends.mkl.is_available():
    PACKED_FROM = [(1 << 21, 10_000_000)]
#: Rows up to which a product in bfloat16 is ours inside graphs.
OURS_UP_TO = 16
#: Models of more bytes are not packed: it takes a second copy.
PACKED_UP_TO = 2 << 30


class Linear(nn.Linear):
    """``y = x Wᵀ`` as :class:`torch.nn.Linear` without bias; layouts differ in the last bits.

    The weight is [out, in] as there, yet lies in memory as its transpose: a product of few rows, as sampling has them,
    takes half the time on some CPUs (benchmarks/products.py measures it). Large products of samplers take a packed
    copy: see :func:`packed_products`.
    """

    packed: Tensor | None = None
    packed_from = 0  # multiply-adds

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)
        self.lay_out()

    def lay_out(self) -> None:
        """Let the weight lie in memory as its transpose, where it does not."""
        self.weight.data = self.weight.data.t().contiguous().t()

    def forward(self, input: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        weight, packed = self.weight, self.packed
        if torch.compiler.is_compiling() or packed is None or input.numel() * len(weight) < self.packed_from:
            return F.linear(input, weight)
        if torch.is_grad_enabled():  # another thread samples meanwhile: packed weights have no gradients
            return F.linear(input, weight)
        return _product(input, packed)


def _packed_from(weight: Tensor) -> int | None:
    """Multiply-adds from which products with a weight take a packed copy; None where that never is the faster way."""
    if not _packable(weight):
        return None
    if weight.dtype == torch.bfloat16:
        return 0
    return next((work for numbers, work in PACKED_FROM if weight.numel() >= numbers), None)


class PackedWeights:
    """Weights as oneDNN wants them, one copy for all products and graphs of a model.

    :meth:`refresh` keeps up with changes, however they came about.

    Attributes:
        tensors: the packed weights by key: (name of the parameter, identity of the module's dictionary of them).
    """

    def __init__(self) -> None:
        self.tensors: dict[tuple[str, int], Tensor] = {}
        self._sources: dict[tuple[str, int], tuple[dict[str, Any], Any]] = {}

    def add(self, held: dict[str, Any], name: str) -> tuple[str, int]:
        """Pack a module's weight, if it is not; returns its key."""
        key = name, id(held)  # held is kept, so that its identity stays its own
        if key not in self.tensors:
            self._pack(key, held)
        return key

    def refresh(self) -> None:
        """Pack what has been replaced or changed in place since."""
        for key, (held, state) in self._sources.items():
            if _state(held[key[0]]) != state:
                self._pack(key, held)

    def _pack(self, key: tuple[str, int], held: dict[str, Any]) -> None:
        weight = held[key[0]]
        self._sources[key] = held, _state(weight)
        self.tensors.pop(key, None)
        if _packable(weight):  # it may have been moved, or its dtype changed: such products are others
            dense = weight.detach().contiguous()  # a transposed one would take up to ten times as long
            self.tensors[key] = torch.ops.mkldnn._reorder_linear_weight(dense, 64)


def _packable(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and _packs(weight.dtype)


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs such weights on this CPU: many have no bfloat16."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _state(weight: Tensor) -> tuple[int, torch.dtype, int]:
    """What tells that a weight is as it was: a sum over its bits, as not all that writes to weights counts versions up.

    (Fused optimizers do not, nor do writes to ``weight.data``, as when adapters are merged.)
    """
    x = weight.detach()
    dense = x if x.is_contiguous() else x.t()
    words = dense.is_contiguous() and dense.shape[-1] * dense.element_size() % 8 == 0
    if words and dense.data_ptr() % 8 == 0 and dense.storage_offset() * dense.element_size() % 8 == 0:
        return weight.data_ptr(), weight.dtype, int(dense.view(torch.int64).sum())  # as fast as memory is
    return weight.data_ptr(), weight.dtype, int(torch.hash_tensor(x).view(torch.int64))


_packed: WeakKeyDictionary[nn.Module, PackedWeights] = WeakKeyDictionary()


def packed_weights(model: nn.Module) -> PackedWeights:
    """A model's packed weights, as its weights are now; kept as long as the model."""
    packed = _packed.setdefault(model, PackedWeights())
    packed.refresh()
    return packed


def may_pack(model: nn.Module) -> bool:
    """Whether there is oneDNN, no autocast, and a second copy of the weights is no burden."""
    able = torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")
    return able and sum(x.nbytes for x in model.parameters()) <= PACKED_UP_TO


@contextmanager
def packed_products(model: nn.Module) -> Iterator[None]:
    """Let the large products of a model take packed weights meanwhile, outside compiled graphs and without gradients.

    The weights must not change meanwhile.
    """
    able = may_pack(model)
    layers = {m: _packed_from(m.weight) for m in model.modules() if able and isinstance(m, Linear)}
    weights = packed_weights(model)
    try:
        for layer, least in layers.items():
            if least is not None:
                layer.packed_from, layer.packed = least, weights.tensors[weights.add(layer._parameters, "weight")]
        yield
    finally:
        for layer in layers:
            layer.packed = None


def place_products(graph: torch.fx.GraphModule, pack: bool) -> list[int]:
    """Let a compiled graph's products be ours, or take packed weights, where that is faster.

    Returns:
        places, among the graph's inputs, of the weights that may be given packed from then on.
    """
    if torch.is_autocast_enabled("cpu"):  # which chooses dtypes by product
        return []
    packed = []
    for place, weight in enumerate(graph.graph.find_nodes(op="placeholder")):
        products = [user for user in weight.users if _multiplies(user, weight)]
        if not products:
            continue
        example = _example(weight)
        rows = max(math.prod(_example(product.args[0]).shape[:-1]) for product in products)
        alone = len(products) == len(weight.users)
        many = example.dtype == torch.bfloat16 and rows > OURS_UP_TO and _packs(example.dtype)
        if many and alone and pack and _can_pack():
            packed.append(place)
            target: tuple[Any, ...] = torch.ops.recdepth.packed_product.default, ()
        elif not many and example.dtype in _OURS and _lies(example) and can_use_kernels():
            target = torch.ops.recdepth.product.default, (_KERNEL.version,)
        else:
            continue
        for user in products:
            user.target, user.args, user.kwargs = target[0], (user.args[0], weight, *target[1]), {}
    graph.recompile()
    return packed


def _multiplies(node: torch.fx.Node, weight: torch.fx.Node) -> bool:
    """Whether a node is a product with this weight on a CPU, and nothing else."""
    if node.target not in (F.linear, torch._C._nn.linear) or len(node.args) < 2 or node.args[1] is not weight:
        return False
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    x, w = map(_example, node.args[:2])
    return bias is None and x.device.type == "cpu" and x.dtype == w.dtype


def _example(node: Any) -> Tensor:
    example: Tensor = node.meta["example_value"]
    return example


def multiply(x: Float[Tensor, "*rows in"], weight: Float[Tensor, "out in"]) -> Float[Tensor, "*rows out"]:
    """``y = x Wᵀ``, inside graphs compiled for a CPU by our own code; the weight, or its transpose, is contiguous."""
    out: Tensor = torch.ops.recdepth.product(x, weight, _KERNEL.version)
    return out


def _lies(weight: Tensor) -> bool:
    """Whether our code knows how a weight lies in memory."""
    return weight.is_contiguous() or weight.t().is_contiguous()


def _product_call(type: str, out: Sequence[Any], x: Any, weight: Any) -> str:
    *rows, columns = out
    inner = x.get_size()[-1]
    function = "product" if list(weight.get_stride()) == [1, columns] else "product_plain"
    return f"recdepth::{function}<{type}, {math.prod(rows)}>(x, weight, out, {inner}, {columns})"


_OURS = torch.float32, torch.float64, torch.bfloat16, torch.float16
_KERNEL = Kernel("product", ("x", "weight"), F.linear, lambda x, weight: (*x[:-1], weight[0]), _product_call, ("x",))


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _fake(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


# an operator of our own: the compiler takes oneDNN's with weights that never change alone
_library = torch.library.Library("recdepth", "FRAGMENT")
_library.define("packed_product(Tensor x, Tensor weight) -> Tensor")
_library.impl("packed_product", _product, "CPU")
torch.library.register_fake("recdepth::packed_product", _fake, lib=_library)


@cache
def _can_pack() -> bool:
    """Let compiled graphs call the product from C++, by means that are private to PyTorch's compiler.

    Returns:
        whether they are there, and oneDNN; without, products stay as they are.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        from torch._inductor.ir import FixedLayout, TensorBox
        from torch._inductor.lowering import register_lowering
        from torch._inductor.mkldnn_ir import LinearUnary, _create_output_node
    except ImportError:
        return False

    def product(x: TensorBox, weight: TensorBox) -> TensorBox:
        rows = LinearUnary.require_contiguous(LinearUnary.realize_input(x))
        shape = [*x.get_size()[:-1], weight.get_size()[0]]
        layout = FixedLayout(x.get_device_or_error(), x.get_dtype(), shape)
        # the weight as it comes: what it really looks like is not known here
        made = LinearUnary(layout, [rows, LinearUnary.realize_input(weight)], [None, "none", [-1], ""])
        return TensorBox.create(_create_output_node(made))

    register_lowering(torch.ops.recdepth.packed_product.default, type_promotion_kind=None)(product)
    return True
