"""Compiled graphs, called without what torch.compile does at a call: that takes as long as the work of some lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from .kernels import do_without_kernels, holds_kernels
from .products import PackedWeights, place_products


class DirectGraph:
    """A function of a model and tensors, compiled at its first call; later ones go straight to the compiler's code.

    The first call goes through ``torch.compile``, and is watched: which tensors reach the compiled code, and which of
    those that leave it are returned. Where all of them are the call's own tensors or the model's weights, later calls
    lay them out likewise. Where they are not (the function returns an argument, say), every call goes through
    ``torch.compile``. Nothing is checked at a call: the caller has one graph for all that could differ. Direct calls
    give the weights packed where products want them so.

    Args:
        run: ``run(model, settings, *groups)``, each group a sequence of tensors; returns None, a tensor, or a named
            tuple of tensors and Nones.
        options: of ``torch.compile``'s default backend.
        packed: the packed weights of the model that the calls will give, or None to do without.
    """

    def __init__(self, run: Callable[..., Any], options: dict[str, Any], packed: PackedWeights | None = None):
        # packed weights do not look as the compiler thinks
        self._options, self._packed = {"size_asserts": False} | options, packed
        self._packable: list[int] = []
        self._seen = self._holds_kernels = False
        self._watched: tuple[Callable[..., Any], Sequence[Any], Sequence[Any]] | None = None
        self._direct: Callable[..., Any] | None = None
        guards: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        this = ref(self)  # torch.compile keeps its backends and their code for good; a graph goes with its model

        def backend(graph: torch.fx.GraphModule, examples: list[Any], **_: Any) -> Callable[..., Any]:
            made = this()
            assert made is not None, "called by its own call"
            return made._make(graph, examples)

        self._compiled = torch.compile(run, dynamic=False, fullgraph=True, backend=backend, options=guards)

    def __call__(self, model: nn.Module, settings: Any, *groups: Sequence[Tensor]) -> Any:
        if self._direct is not None:
            return self._direct(groups)
        try:
            result = self._compiled(model, settings, *groups)
        except Exception as error:
            if not (self._holds_kernels and do_without_kernels(error)):
                raise
            result = self._compiled(model, settings, *groups)
        if self._watched is not None:
            made = self._packed, self._packable
            self._direct = _direct(*self._watched, result, model, list(chain(*groups)), *made)
            self._watched = None
        return result

    def _make(self, graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        self._packable = place_products(graph, self._packed is not None)
        self._holds_kernels = holds_kernels(graph)
        default: Any = torch._dynamo.lookup_backend("inductor")
        code, this = default(graph, examples, config_patches=self._options), ref(self)

        def watched(*given: Any) -> Any:
            left, made = code(*given), this()
            if made is not None and not made._seen:
                made._seen, made._watched = True, (code, given, left)
            return left

        return watched


def _direct(
    code: Callable[..., Any],
    given: Sequence[Any],
    left: Sequence[Any],
    result: Any,
    model: nn.Module,
    tensors: list[Tensor],
    packed: PackedWeights | None,
    packable: list[int],
) -> Callable[..., Any] | None:
    """The function that calls compiled code with a call's tensors; None where they do not tell what it takes."""
    weights = {
        id(x): (held, name) for m in model.modules() for held in (m._parameters, m._buffers) for name, x in held.items()
    }
    place = {id(x): i for i, x in enumerate(tensors)}
    if len(place) < len(tensors):  # one tensor twice: which of them the code takes cannot be told
        return None
    needed: list[tuple[dict[Any, Any], Any]] = []
    order = []
    for i, x in enumerate(given):
        if id(x) not in place:
            if id(x) not in weights:
                return None
            place[id(x)] = len(tensors) + len(needed)
            held = weights[id(x)]
            needed.append((packed.tensors, packed.add(*held)) if packed and i in packable else held)
        order.append(place[id(x)])
    give = _give(result, [id(x) for x in left])
    if give is None or len(order) < 2:
        return None
    pick = itemgetter(*order)

    def direct(groups: Sequence[Sequence[Tensor]]) -> Any:
        # weights by name: they may have been replaced
        return give(code(*pick([*chain(*groups), *[held[name] for held, name in needed]])))

    return direct


def _give(result: Any, left: list[int]) -> Callable[[Sequence[Any]], Any] | None:
    """From what compiled code returned to what the function returns; ``left`` are the identities of the former."""
    if result is None:
        return lambda _: None
    if isinstance(result, Tensor):
        return itemgetter(left.index(id(result))) if id(result) in left else None
    kind, parts = type(result), [None if x is None else id(x) for x in result]
    if any(x is not None and x not in left for x in parts):
        return None
    places = [None if x is None else left.index(x) for x in parts]
    return lambda out: kind(*[None if i is None else out[i] for i in places])
