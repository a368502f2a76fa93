"""The parallel pass over whole rows that every term builds on, and the caches that let wavefronts read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from recdepth.models import Depth, RecurrentDepthForCausalLM, Slot, Span

KeysValues = tuple[Tensor, Tensor]


@dataclass
class Recorder:
    """A cache that stores nothing: one pass runs as without a cache, and its keys and values are noted layer by layer.

    Attributes:
        kept: (keys, values) [batch, head, time, head_dim], in the order of the layers.
    """

    kept: list[KeysValues] = field(default_factory=list)

    def update(self, slot: Slot, keys: Tensor, values: Tensor, span: Span) -> KeysValues:
        self.kept.append((keys, values))
        return keys, values

    def core_slot(self, layer: int, depth: Depth) -> Slot:
        return layer

    def prelude_slot(self, layer: int) -> int:
        return layer

    def coda_slot(self, layer: int) -> int:
        return layer


class WindowCache:
    """Shared KV, differentiable: what rows have committed, and behind it what the lanes of this very pass write.

    Every pass of a wavefront writes the keys of all of its lanes, so those of the pass before are never read again:
    nothing has to be kept, and gradients flow through both parts.

    Args:
        committed: (keys, values) [batch, head, time, head_dim] of every layer: prelude, core (of the last recurrence),
            coda.
        prelude_layers, core_layers: how many of them belong to which.
    """

    def __init__(self, committed: tuple[KeysValues, ...], prelude_layers: int, core_layers: int):
        self.committed = committed
        self.first_core, self.first_coda = prelude_layers, prelude_layers + core_layers

    def update(self, slot: Slot, keys: Tensor, values: Tensor, span: Span) -> KeysValues:
        """Returns the committed keys and values with those of the lanes behind them."""
        assert isinstance(slot, int), "a shared cache has one slot a layer"
        k, v = self.committed[slot]
        return torch.cat([k, keys], dim=2), torch.cat([v, values], dim=2)

    def core_slot(self, layer: int, depth: Depth) -> Slot:
        return self.first_core + layer

    def prelude_slot(self, layer: int) -> int:
        return layer

    def coda_slot(self, layer: int) -> int:
        return self.first_coda + layer


@dataclass(frozen=True)
class DeepPass:
    """All positions of a batch after the same number of recurrences.

    Attributes:
        depth: recurrences.
        embedded: e, the embedded tokens.
        states: the states after each recurrence that gradients flow through, the final one last (before the norm).
        logits: [batch, time, vocab].
        span: the positions.
        committed: shared KV as it stands after the pass, see :class:`WindowCache`.
        checkpoint_recurrences: whether recurrences are recomputed in the backward pass, in those built on this one too.
    """

    depth: int
    embedded: Float[Tensor, "batch time dim"]
    states: list[Float[Tensor, "batch time dim"]]
    logits: Float[Tensor, "batch time vocab"]
    span: Span
    committed: tuple[KeysValues, ...]
    checkpoint_recurrences: bool = False

    def cache(self, model: RecurrentDepthForCausalLM) -> WindowCache:
        """What a wavefront reads of it."""
        return WindowCache(self.committed, model.config.prelude_layers, model.config.core_layers)


def deep_pass(
    model: RecurrentDepthForCausalLM,
    input_ids: Int[Tensor, "batch time"],
    depth: int,
    backprop_depth: int,
    seed: int | None = None,
    checkpoint_recurrences: bool = False,
) -> DeepPass:
    """The model's ``forward``, bit for bit, that also keeps states, keys and values.

    Args:
        model: the model.
        input_ids: token ids.
        depth: recurrences.
        backprop_depth: gradients flow through this many last ones.
        seed: of the initial states; None draws from torch's generator.
        checkpoint_recurrences: recompute recurrences in the backward pass to save memory.
    """
    batch, time = input_ids.shape
    positions = torch.arange(time, device=input_ids.device).expand(batch, time)
    span = model.span(positions, start=0, padded=False)
    prelude, coda = Recorder(), Recorder()
    e = model.embed(input_ids, prelude, span)
    s = model.initial_state(e, torch.arange(batch, device=e.device), positions, seed)
    with_grad = min(backprop_depth, depth)
    with torch.no_grad():
        for done in range(depth - with_grad):
            s = model.recur(e, s, None, span, done)
    s = s.detach().requires_grad_(torch.is_grad_enabled())
    run = recompute if checkpoint_recurrences and torch.is_grad_enabled() else call
    states = []
    for done in range(depth - with_grad, depth - 1):
        s = run(model.recur, e, s, None, span, done)
        states.append(s)
    # the newest recurrence is the one that shared KV keeps
    s, *core = run(partial(_last_recurrence, model), e, s, span, depth - 1)
    states.append(s)
    logits = model.decode(s, coda, span)
    committed = (*prelude.kept, *zip(core[::2], core[1::2], strict=True), *coda.kept)
    return DeepPass(depth, e, states, logits, span, committed, checkpoint_recurrences)


def _last_recurrence(
    model: RecurrentDepthForCausalLM, e: Tensor, s: Tensor, span: Span, depth: int
) -> tuple[Tensor, ...]:
    """The states after a recurrence, then the keys and values of every core layer, in turn."""
    core = Recorder()
    s = model.recur(e, s, core, span, depth)
    return (s, *(tensor for pair in core.kept for tensor in pair))


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function; see :func:`recompute`."""
    return function(*args)


def recompute(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function whose intermediate results are not kept, but computed again in the backward pass."""
    return checkpoint(function, *args, use_reentrant=False)
