"""Operators of ours, with C++ code of ours (the headers beside this), in graphs that PyTorch compiles for a CPU."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_library = torch.library.Library("recdepth", "FRAGMENT")
_kernels: list[Kernel] = []
_refused: list[str] = []  # what torch's compiler said of our code; not the error, which keeps all it has seen


class Kernel:
    """An operator of some tensors and a string, the code's version; as ``torch.ops.recdepth.<name>``.

    Args:
        name: of the operator, and of the header beside this file.
        inputs: names of the tensors.
        plainly: the same in PyTorch's operators, for calls outside graphs.
        shape: the result's shape from theirs; it is dense, with the first one's dtype.
        call: the header's function and its arguments, from the dtype's name in C++, the result's shape and the inputs
            (with ``get_size`` and ``get_stride``); data is called as they are, and ``out``.
        dense: inputs that must be dense.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        plainly: Callable[..., Tensor],
        shape: Callable[..., Sequence[Any]],
        call: Callable[..., str],
        dense: Sequence[str],
    ):
        self.name, self.inputs, self.shape, self.call, self.dense = name, inputs, shape, call, dense
        headers = [Path(__file__).with_name(f"{header}.h") for header in ("vectors", name)]
        self.code = "\n".join(header.read_text(encoding="utf-8") for header in headers)
        # compiled graphs are kept on disk, and found by what they say: they say which code of ours they hold
        ours = self.code.encode() + b"".join(Path(file).read_bytes() for file in (__file__, call.__code__.co_filename))
        self.version = hashlib.sha256(ours).hexdigest()[:16]
        _library.define(f"{name}({', '.join(f'Tensor {x}' for x in inputs)}, str version) -> Tensor")
        _library.impl(name, lambda *given: plainly(*given[:-1]), "CPU")

        @torch.library.register_fake(f"recdepth::{name}", lib=_library)
        def fake(first: Tensor, *rest: Any) -> Tensor:
            return first.new_empty(shape(first.shape, *[x.shape for x in rest[:-1]]))

        _kernels.append(self)

    @property
    def operator(self) -> Any:
        return getattr(torch.ops.recdepth, self.name).default


def can_use_kernels() -> bool:
    """Whether compiled graphs can hold our code: PyTorch's compiler lets them, and has vectors for this CPU."""
    return not _refused and _made_known()


def holds_kernels(graph: torch.fx.GraphModule) -> bool:
    """Whether a graph, as it is before it is compiled, calls our operators."""
    ours = {kernel.operator.overloadpacket for kernel in _kernels}
    return any(getattr(node.target, "overloadpacket", node.target) in ours for node in graph.graph.nodes)


def do_without_kernels(error: Exception) -> bool:
    """From now on do without our code, if it may be why a graph could not be made.

    Returns:
        whether so: then the graph may be tried again.
    """
    from torch._dynamo.exc import BackendCompilerFailed

    if not isinstance(error, BackendCompilerFailed) or not can_use_kernels():
        return False
    from torch._inductor.lowering import lowerings

    for kernel in _kernels:  # graphs that ask for them all the same call PyTorch's operators
        lowerings.pop(kernel.operator, None)
    lines = str(error).splitlines()
    why = next((line for line in lines if "error: " in line), lines[0])  # a C++ compiler says much more
    _refused.append(why)
    log.warning("torch's compiler does not take recdepth's kernels, so sampling goes on without them, slower: %s", why)
    return True


@cache
def _made_known() -> bool:
    """Let PyTorch's compiler know our operators' code, by means that are private to it.

    Returns:
        whether they are there.
    """
    try:
        from torch._inductor.lowering import register_lowering  # isort: skip  # first: the others import it in a circle
        from torch._inductor.codegen.cpp_template import CppTemplate
        from torch._inductor.codegen.cpp_utils import DTYPE_TO_CPP
        from torch._inductor.cpu_vec_isa import pick_vec_isa
        from torch._inductor.ir import ExternKernel, FixedLayout, TemplateBuffer, TensorBox
    except ImportError:
        return False
    if "allow_epilogue_fusion" not in TemplateBuffer.__init__.__code__.co_names:  # older ones fuse what they like
        return False
    if not pick_vec_isa():
        return False

    class Template(CppTemplate):
        """A call of a kernel's function, with all sizes as constants."""

        def __init__(self, of: Kernel, nodes: list[Any], layout: FixedLayout):
            super().__init__(of.name, nodes, layout, num_threads=1)  # the function itself sees to them
            self.of = of

        def render(self, kernel: Any, template_buffer_node: Any = None, **_: Any) -> str:  # type: ignore[override]
            out = self.output_node if template_buffer_node is None else template_buffer_node
            nodes = dict(zip(self.of.inputs, self.input_nodes, strict=True))
            begin = kernel.def_kernel(inputs=nodes, outputs={"out": out})
            behind = "\n".join(
                f"  {name} += {offset};" for name, x in nodes.items() if (offset := x.get_layout().offset)
            )
            call = self.of.call(DTYPE_TO_CPP[self.layout.dtype], self.layout.size, **nodes)
            return f'{self.header().getvalue()}\n{self.of.code}\nextern "C" {begin}\n{{\n{behind}\n  {call};\n}}\n'

    def lowering(of: Kernel) -> Callable[..., Any]:
        def lower(*given: Any) -> TensorBox:
            nodes = []
            for name, x in zip(of.inputs, given[:-1], strict=True):
                node = ExternKernel.realize_input(x)
                nodes.append(ExternKernel.require_contiguous(node) if name in of.dense else node)
                nodes[-1].freeze_layout()
            first, shape = given[0], of.shape(*[x.get_size() for x in given[:-1]])
            layout = FixedLayout(first.get_device_or_error(), first.get_dtype(), list(shape))
            out: Any = Template(of, nodes, layout).generate().output_node()
            out.data.data.allow_epilogue_fusion = False  # our code knows of nothing behind it
            return out

        return lower

    for kernel in _kernels:
        register_lowering(kernel.operator, type_promotion_kind=None)(lowering(kernel))
    return True
