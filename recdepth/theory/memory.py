"""How much memory a training step takes, from shapes alone.

Counted are the weights, their gradients, what AdamW keeps, what the forward pass keeps for the backward pass (block by
block, recurrence by recurrence), and the logits. Not counted: the allocator's losses, buffers of the kernels, CUDA
itself (about 0.5 GiB), and whatever else lives on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recdepth.models import RecurrentDepthConfig

GIB = 2**30


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step by what they are for.

    Attributes:
        weights: all weights, adapters included.
        gradients: of what is trained.
        optimizer: AdamW's two moments of what is trained.
        prelude, recurrences, coda: kept by the forward pass for the backward pass.
        logits: the head's output with its log-probabilities, or these with their gradients.
        working: gradients inside one block and, where recurrences are computed again, one of these.
        trained: how many numbers are trained.
    """

    weights: int
    gradients: int
    optimizer: int
    prelude: int
    recurrences: int
    coda: int
    logits: int
    working: int
    trained: int

    @property
    def kept(self) -> int:
        """What the forward pass leaves for the backward pass, without the logits."""
        return self.prelude + self.recurrences + self.coda

    @property
    def peak(self) -> int:
        """The largest sum at one time: at the logits, at the last recurrence going backward, or at AdamW's step.

        Going backward, gradients of weights are taken to be all there while everything but the coda is kept still: a
        little too much, where all weights are trained.
        """
        backward = self.gradients + self.prelude + self.recurrences + self.working
        update = 2 * self.gradients  # with as much again for what AdamW computes over all weights at once
        return self.weights + self.optimizer + max(self.kept + self.logits, backward, update)


@dataclass(frozen=True)
class _Step:
    """What the parts of a step depend on."""

    config: RecurrentDepthConfig
    size: int  # bytes of a number in the passes
    lora_rank: int  # 0: all weights are trained
    lora_size: int  # bytes of a number in adapters
    fused_norms: bool

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of the residual stream, of the MLP, and of keys or values."""
        c = self.config
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        assert c.intermediate_size is not None
        return c.hidden_size, c.intermediate_size, heads * c.head_dim

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a block's products."""
        dim, inner, kv = self.widths
        return [(dim, dim + 2 * kv), (dim, dim), (dim, 2 * inner), (inner, dim)]

    def product_input(self, width: int, kept_anyway: bool = False) -> int:
        """What a product keeps of its input, per position: nothing where its weight is frozen and has no adapter."""
        own = 0 if kept_anyway else self.size * width
        if not self.lora_rank:
            return own
        if self.lora_size != self.size:  # the adapter works on a copy in its own dtype
            own = self.lora_size * width
        return own + self.lora_size * self.lora_rank

    def norm(self) -> int:
        """What a norm keeps, per position: its input and the inverse norm, which is float32."""
        dim = self.widths[0]
        if self.fused_norms:
            return self.size * dim + 4
        wide = max(self.size, 4)
        return wide * dim * (1 if self.lora_rank else 2) + wide  # input in float32; what the gain is multiplied with

    def block(self) -> int:
        """What a block keeps, per position."""
        dim, inner, kv = self.widths
        kept = _norms(self.config) * self.norm()
        kept += self.size * (dim + 2 * kv)  # queries, keys and values in one, of which the values are a view
        kept += self.size * (dim + kv) + self.size * dim + 4 * self.config.num_attention_heads  # rotated; attention
        kept += self.size * 3 * inner  # both halves of the gate, and its activation
        same = self.size == (self.lora_size if self.lora_rank else self.size)
        kept += self.product_input(dim) + self.product_input(dim, kept_anyway=same) + self.product_input(dim)
        return kept + self.product_input(inner)

    def gradients(self) -> int:
        """What the backward pass of a block holds at once, per position."""
        dim, inner, _ = self.widths
        return self.size * (2 * dim + 3 * inner)

    def recurrence(self) -> int:
        """What a recurrence keeps, per position."""
        injected = getattr(self.config, "injection", "linear") == "linear"
        return self.config.core_layers * self.block() + (self.product_input(2 * self.widths[0]) if injected else 0)


def training_memory(
    config: RecurrentDepthConfig,
    batch_size: int,
    length: int,
    *,
    weight_bytes: int = 4,
    compute_bytes: int | None = None,
    backprop_depth: int | None = None,
    checkpoint_recurrences: bool = False,
    lora_rank: int = 0,
    lora_bytes: int = 4,
    fused_norms: bool = True,
) -> TrainingMemory:
    """Memory of a step of next-token training with AdamW.

    Args:
        config: the model's shape.
        batch_size, length: rows of so many tokens, each step (and each accumulation).
        weight_bytes: of a weight: 4 for float32, 2 for bfloat16.
        compute_bytes: of a number in the passes; None: as the weights. Where it is less (``bf16-mixed``), a copy of the
            weights is kept for the passes.
        backprop_depth: recurrences that gradients flow through; None takes the configuration's.
        checkpoint_recurrences: whether those are recomputed in the backward pass.
        lora_rank: of adapters on every product but the head, which are trained instead of the weights; 0 trains these.
        lora_bytes: of a number in the adapters, their gradients and moments.
        fused_norms: whether a norm is one kernel, as on CUDA, or several, as on the CPU.
    """
    step = _Step(config, compute_bytes or weight_bytes, lora_rank, lora_bytes, fused_norms)
    places, depth = batch_size * length, backprop_depth or config.backprop_depth
    total = weights(config)
    adapters = lora_rank * sum(a + b for a, b in _products(step)) if lora_rank else 0
    trained, trained_bytes = (adapters, lora_bytes) if lora_rank else (total, weight_bytes)
    dim = config.hidden_size
    copies = total * step.size if step.size < weight_bytes else 0
    recurrence = places * step.recurrence()
    head = 0 if lora_rank else places * step.size * dim
    return TrainingMemory(
        weights=total * weight_bytes + copies + adapters * lora_bytes,
        gradients=trained * trained_bytes,
        optimizer=2 * trained * trained_bytes,
        prelude=places * (config.prelude_layers * step.block() + (step.size * dim if checkpoint_recurrences else 0)),
        recurrences=depth * (places * step.size * dim if checkpoint_recurrences else recurrence),
        coda=places * config.coda_layers * step.block() + 2 * places * step.norm() + head,
        logits=places * config.vocab_size * 4 * (3 if batch_size > 1 else 2),
        working=(recurrence if checkpoint_recurrences else 0) + places * step.gradients(),
        trained=trained,
    )


def weights(config: RecurrentDepthConfig) -> int:
    """How many numbers a model has."""
    step = _Step(config, 1, 0, 1, True)
    dim = config.hidden_size
    vectors = (_norms(config) * dim + (2 * dim if config.qk_bias else 0)) * config.num_hidden_layers + dim
    tables = config.vocab_size * dim * (1 if config.tie_word_embeddings else 2)
    gate = dim + 1 if getattr(config, "exit_gate", False) else 0
    return sum(a * b for a, b in _products(step)) + vectors + tables + gate


def _norms(config: RecurrentDepthConfig) -> int:
    """Norms of a block."""
    return 2 if getattr(config, "norm_placement", "sandwich") == "pre" else 4


def _products(step: _Step) -> list[tuple[int, int]]:
    """(inputs, outputs) of every product but the head."""
    dim = step.widths[0]
    injected = getattr(step.config, "injection", "linear") == "linear"
    return step.linear * step.config.num_hidden_layers + ([(2 * dim, dim)] if injected else [])
