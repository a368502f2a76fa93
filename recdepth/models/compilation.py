"""torch.compile for the model's seams, where the machine can: for training, and for sampling."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .cache import Buffers, Cache, Depth, KVCache, Packing, Span
from .direct import DirectGraph
from .kernels import can_use_kernels
from .makeup import Makeup
from .products import PackedWeights, may_pack, packed_weights
from .refinement import Pick

if TYPE_CHECKING:
    from .recurrent import RecurrentDepthForCausalLM


def can_compile(device: torch.device | str = "cpu") -> tuple[bool, str]:
    """Whether torch.compile can work here; if not, the reason in one sentence."""
    if torch.device(device).type == "cpu":
        candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
        if not any(_on_path(name, os.environ.get("PATH")) for name in candidates):
            return False, f"no C++ compiler ({' or '.join(candidates)}) is on the PATH: running eagerly, slower"
    return True, ""


@functools.cache
def _on_path(name: str, path: str | None) -> bool:
    """Whether there is such a program; samplers ask at every call."""
    return shutil.which(name, path=path) is not None


def compile_seams(model: nn.Module) -> None:
    """Compile ``embed``, ``recur`` and ``decode`` in place (static shapes: one graph per input shape)."""
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    for name in ("embed", "recur", "decode"):
        setattr(model, name, torch.compile(getattr(model, name), dynamic=False))


# --------------------------------------------------------------------------------------------------------- for sampling

#: Widths that are compiled; beyond the last, multiples of 64. A pass takes the next one up, the rest is padding.
WIDTHS = (1, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
#: Numbers of keys that are compiled, and capacities of the caches: multiples of this.
KEYS = 64

_seams: WeakKeyDictionary[nn.Module, CompiledSeams] = WeakKeyDictionary()


def compiled_width(lanes: int) -> int:
    """The width that is compiled for so many lanes."""
    return next((w for w in WIDTHS if w >= lanes), -(-lanes // 64) * 64)


def compiled_capacity(positions: int) -> int:
    """The cache's capacity that is compiled for so many positions."""
    return -(-positions // KEYS) * KEYS


def attends_by_position(device: torch.device) -> bool:
    """Whether attention in graphs finds out by itself which keys there are: one graph serves any number of them."""
    return device.type == "cpu" and can_use_kernels()


class Seams(Protocol):
    """What a sampler asks of a model, or of its compiled twin."""

    @property
    def span(self) -> Callable[..., Span | Places]: ...

    @property
    def embed(self) -> Callable[..., Tensor]: ...

    @property
    def recur(self) -> Callable[..., Tensor]: ...

    @property
    def decode(self) -> Callable[..., Tensor]: ...

    @property
    def draft(self) -> Callable[..., Tensor]: ...


class Step(Protocol):
    """What a graph does that is a sampler's own; equal ones do the same."""

    @property
    def name(self) -> str:
        """What profiles show."""
        ...

    def __call__(
        self, model: RecurrentDepthForCausalLM, cache: Cache, span: Callable[..., Span], *inputs: Tensor
    ) -> Any:
        """Do it; ``span`` makes one of positions, and of a packing where lanes are packed."""
        ...


@dataclass(frozen=True)
class Places:
    """Positions of a compiled pass, padded to its width with -1, and the number of keys it looks at."""

    positions: Int[Tensor, "batch time"]
    length: int
    causal: bool = False  # the positions are 0 to length - 1, those at the end replaced by padding
    by_position: bool = False  # as a span's; the length is the cache's capacity then

    @functools.cached_property
    def kind(self) -> tuple[torch.Size, int, bool]:
        """What a graph has to be made for."""
        return self.positions.shape, self.length, self.causal

    def part(self, begin: int, end: int) -> Places:
        """Some of the places, with the same keys."""
        return Places(self.positions[:, begin:end].contiguous(), self.length, by_position=self.by_position)


def sampling_seams(model: RecurrentDepthForCausalLM) -> CompiledSeams:
    """A model's seams, compiled for sampling, as its weights are now; one set per model, kept as long as the model has
    the modules that they were made for."""
    seams = _seams.get(model)
    if seams is None or not seams.made_for.holds(model):
        seams = _seams[model] = CompiledSeams(model)
    packed_weights(model)  # refreshes them
    return seams


class CompiledSeams:
    """``embed``, ``recur`` and ``decode`` of a model on static shapes, one graph per width and number of keys.

    The positions are a tensor, so one graph serves every place of a wavefront; lanes beyond the wavefront's width have
    position -1. With one depth for all lanes a graph gets that depth's keys as views; with a depth per lane it reads
    each lane's keys where they lie, inside the attention kernel. They are not replayed as CUDA graphs on a GPU: those
    want inputs at fixed addresses, and every recurrence writes other slots.

    Args:
        model: not kept alive by this.
    """

    def __init__(self, model: RecurrentDepthForCausalLM):
        self._model = ref(model)
        self.made_for = Makeup(model)
        self._graphs: dict[tuple[Any, ...], tuple[Callable[..., Any], Any, Tensor]] = {}
        self._packed = packed_weights(model) if may_pack(model) else None

    def span(self, positions: Tensor, cache: KVCache, start: int | None = None, length: int | None = None) -> Places:
        """As the model's; the number of keys is rounded up to one that is compiled."""
        assert length is not None, "reading the length off the positions would wait for the device"
        assert cache.capacity % KEYS == 0, "a compiled pass takes a cache of compiled_capacity"
        positions, time = positions.contiguous(), positions.shape[1]
        if attends_by_position(cache.keys.device):
            return Places(positions, cache.capacity, by_position=True)
        if start == 0 and 1 < time <= cache.capacity:  # the queries are the keys, and padding comes last
            return Places(positions, time, causal=True)
        return Places(positions, compiled_capacity(length))

    def embed(self, ids: Int[Tensor, "batch time"], cache: KVCache, places: Places) -> Float[Tensor, "batch time dim"]:
        return self._call(_graph("embed"), (ids,), cache, places, cache.slots("embed"))

    def recur(
        self,
        e: Float[Tensor, "batch time dim"],
        s: Float[Tensor, "batch time dim"],
        cache: KVCache,
        places: Places,
        depth: Depth,
        steps: int = 1,
    ) -> Float[Tensor, "batch time dim"]:
        """As the model's, or so many of them, one after the other from one depth on, in one graph."""
        if isinstance(depth, Tensor):
            assert steps == 1, "lanes at depths of their own get one recurrence at a time"
            graph = _graph("recur", own_depths=cache.first_slots)
            return self._call(graph, (e, s, depth), cache, places, ([cache.keys], [cache.values]))
        assert isinstance(depth, int), "a compiled pass takes one depth, or a tensor"
        graph = _graph("recur", steps=steps, apart=cache.kv == "per_depth")
        return self._call(graph, (e, s), cache, places, cache.slots("recur", depth, steps))

    def decode(
        self, s: Float[Tensor, "batch time dim"], cache: KVCache, places: Places, logits_to_keep: int = 0
    ) -> Float[Tensor, "batch kept vocab"]:
        return self._call(_graph("decode", keep=logits_to_keep), (s,), cache, places, cache.slots("decode"))

    def step(self, step: Step, inputs: tuple[Tensor, ...], cache: KVCache, length: int) -> Any:
        """A sampler's own step, in one graph, with so many keys. Tensors that it writes to are changed in place; their
        shapes, dtypes and strides follow from the step and the cache."""
        assert cache.kv == "shared", "a step's graph has one slot a layer"
        by_position = attends_by_position(cache.keys.device)
        length = cache.capacity if by_position else length
        key = step, length, cache.kind
        run, settings, table = self._graphs.get(key) or self._add(
            key, _run_step, (step, length, by_position), [step.name, *cache.kind[0][:1], length], cache
        )
        return run(self._model(), settings, (table, *inputs), *cache.slots("refine"))

    def draft(
        self,
        ids: Int[Tensor, "batch 1"],
        buffers: Buffers,
        cache: KVCache,
        places: Places,
        steps: int,
        pick: Pick,
        noise: Float[Tensor, "batch time vocab"] | None = None,
    ) -> Int[Tensor, "batch time"]:
        """As the model's, in one graph."""
        graph = _graph("draft", steps=steps, apart=cache.kv == "per_depth", given=buffers.given, pick=pick)
        inputs = (ids, *buffers.tensors, *([] if noise is None else [noise]))
        return self._call(graph, inputs, cache, places, cache.slots("refine", 0, steps))

    def _call(self, graph: _Graph, inputs: tuple[Tensor, ...], cache: KVCache, places: Places, stores: Any) -> Any:
        model = self._model()
        assert model is not None
        key = graph, places.kind, cache.kind
        run, settings, table = self._graphs.get(key) or self._add(
            key,
            _run,
            (graph, places.length, places.causal, places.by_position),
            [*graph.name, *places.positions.shape, places.length],
            cache,
        )
        # a graph is found by shapes alone, so strides must follow from them
        inputs = (table, places.positions, *[x.contiguous() for x in inputs])
        return run(model, settings, inputs, *stores)

    def _add(self, key: Any, run: Callable[..., Any], settings: Any, name: list[Any], cache: KVCache) -> Any:
        """Make a graph, and the rotary table that it reads."""
        model, (_, device, _) = self._model(), cache.kind
        assert model is not None
        assert isinstance(run, FunctionType)
        graph = _compiled(run, "_".join(map(str, name)), device, self._packed)
        self._graphs[key] = graph, settings, model.rope_table(device)
        return self._graphs[key]


@dataclass(frozen=True, eq=False)
class _Graph:
    """What a graph does, apart from shapes; made by :func:`_graph`, so that equal ones are the same object.

    Attributes:
        seam: embed, recur, decode, or draft (all three).
        keep: of ``decode``: logits of the last so many places only; 0 for all.
        steps, apart: of ``recur`` and ``draft``: recurrences, and whether they have slots of their own.
        given: of ``draft``: whether there are mixed embeddings and initial states.
        pick: of ``draft``: what picks the tokens.
        own_depths: of ``recur`` with a depth per lane: each core layer's slot of depth 0.
    """

    seam: str
    keep: int = 0
    steps: int = 1
    apart: bool = False
    given: tuple[bool, ...] = ()
    pick: Callable[..., Tensor] | None = None
    own_depths: tuple[int, ...] = ()

    @property
    def name(self) -> list[Any]:
        """What profiles show, apart from shapes."""
        own = ["own"] * bool(self.own_depths)
        return [self.seam, *["keep"] * bool(self.keep), *own, *[self.steps] * (self.steps > 1)]


_graph = functools.cache(_Graph)


def _compiled(run: FunctionType, name: str, device: torch.device, packed: PackedWeights | None) -> Callable[..., Any]:
    """A graph of its own: the caller looks it up by everything that could differ, so nothing is checked at a call."""
    code = run.__code__.replace(co_name=name)  # graphs are kept by code object
    # a graph's calls take as long as the work of one lane, from Python
    options = {"cpp_wrapper": True} if device.type == "cpu" else {}
    return DirectGraph(FunctionType(code, run.__globals__, name, run.__defaults__, run.__closure__), options, packed)


def _run(
    model: RecurrentDepthForCausalLM,
    settings: tuple[_Graph, int, bool, bool],
    inputs: tuple[Tensor, ...],
    keys: list[Tensor],
    values: list[Tensor],
) -> Any:
    """One seam, or all, on tensors alone, the rotary table and positions first: all else is a constant of the graph."""
    graph, length, causal, by_position = settings
    table, positions, *more = inputs
    span = _span(table, length, by_position, positions, causal=causal)
    kind: Any = type(model)  # not the instance: its seams may be compiled for training
    if graph.own_depths:
        e, s, depth = more
        return kind.recur(model, e, s, _LaneSlots(keys[0], values[0], graph.own_depths), span, depth)
    if graph.seam == "embed":
        return kind.embed(model, *more, _SomeSlots(keys, values), span)
    core = len(model.core)
    if graph.seam == "recur":
        cache = _SomeSlots(keys, values, core=core if graph.apart else 0)
        e, s = more
        for step in range(graph.steps):
            s = kind.recur(model, e, s, cache, span, step)
        return s
    if graph.seam == "decode":
        return kind.decode(model, *more, _SomeSlots(keys, values), span, graph.keep)
    ids, states, embedded, *more = more
    mixed, initial = (more.pop(0) if given else None for given in graph.given)
    prelude = len(model.prelude)
    first_coda = prelude + core * (graph.steps if graph.apart else 1)
    cache = _SomeSlots(keys, values, first_core=prelude, core=core if graph.apart else 0, first_coda=first_coda)
    buffers = Buffers(states, embedded, mixed, initial)
    noise = more[0] if more else None
    return kind.draft(model, ids, buffers, cache, span, graph.steps, graph.pick, noise)


def _run_step(
    model: RecurrentDepthForCausalLM,
    settings: tuple[Step, int, bool],
    inputs: tuple[Tensor, ...],
    keys: list[Tensor],
    values: list[Tensor],
) -> Any:
    """A sampler's own step on tensors alone, the rotary table first, with shared keys."""
    step, length, by_position = settings
    prelude = len(model.prelude)
    cache = _SomeSlots(keys, values, first_core=prelude, first_coda=prelude + len(model.core))
    return step(model, cache, functools.partial(_span, inputs[0], length, by_position), *inputs[1:])


def _span(
    table: Tensor,
    length: int,
    by_position: bool,
    positions: Tensor,
    packing: Packing | None = None,
    causal: bool = False,
) -> Span:
    """The span of these positions inside a graph, with so many keys."""
    rotary = table[positions][:, :, None]
    if by_position:
        return Span(positions, rotary, None, False, None, length, packing, by_position=True)
    queries = positions if packing is None else packing.unpack(positions)
    keys = torch.arange(length, device=positions.device)
    mask = None if causal else keys <= queries.clamp(min=0)[:, None, :, None]
    return Span(positions, rotary, mask, causal, None, length, packing)


class _SomeSlots:
    """A cache of the slots that one graph uses, a pair of tensors each: those of one seam, or of a whole draft."""

    def __init__(
        self, keys: list[Tensor], values: list[Tensor], first_core: int = 0, core: int = 0, first_coda: int = 0
    ):
        self.keys, self.values = keys, values
        self._first_core, self._core, self._first_coda = first_core, core, first_coda

    def prelude_slot(self, layer: int) -> int:
        return layer

    def core_slot(self, layer: int, depth: Any) -> int:
        return self._first_core + depth * self._core + layer

    def coda_slot(self, layer: int) -> int:
        return self._first_coda + layer

    def update(self, slot: Any, keys: Tensor, values: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        rows, k, v = span.rows, self.keys[slot], self.values[slot]
        k[rows, :, span.positions] = keys.transpose(1, 2).to(k.dtype)  # autocast has dtypes of its own
        v[rows, :, span.positions] = values.transpose(1, 2).to(v.dtype)
        return k[:, :, : span.length], v[:, :, : span.length]


class _LaneSlots:
    """The whole cache, for lanes at depths of their own."""

    def __init__(self, keys: Tensor, values: Tensor, first_slots: tuple[int, ...]):
        self.keys, self.values, self.first_slots = keys, values, first_slots

    def core_slot(self, layer: int, depth: Any) -> Any:
        return self.first_slots[layer] - depth

    def update(self, slot: Tensor, keys: Tensor, values: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
        self.keys[slot, rows, :, span.positions] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[slot, rows, :, span.positions] = values.transpose(1, 2).to(self.values.dtype)
        if span.by_position:
            return self.keys, self.values
        return self.keys[slot, rows, :, : span.length], self.values[slot, rows, :, : span.length]
