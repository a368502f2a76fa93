"""The configuration of a recurrent-depth model."""

from __future__ import annotations

import math
from typing import Any

from transformers import PreTrainedConfig


class RecurrentDepthConfig(PreTrainedConfig):
    """Shape and training depth of a :class:`RecurrentDepthForCausalLM` (Geiping et al. 2025, arXiv 2502.05171).

    Args:
        vocab_size: number of token ids.
        hidden_size: width of the residual stream ("dim"), divisible by ``num_attention_heads`` into even heads.
        num_attention_heads: attention heads per block.
        intermediate_size: width of the gated MLP; None takes 8/3 of ``hidden_size``, rounded up to a multiple of 8.
        prelude_layers, core_layers, coda_layers: blocks before, inside and after the loop.
        max_position_embeddings: the context, in tokens.
        rope_base: base of the rotary embedding's wavelengths.
        norm_eps: epsilon of every RMSNorm.
        qk_bias: whether queries and keys have a learned bias.
        tie_word_embeddings: whether the head shares the embedding's weight.
        embedding_scale: factor on token embeddings (and on the initial state); None takes sqrt(hidden_size).
        mean_recurrence: mean number of recurrences in training, and the default depth of ``forward``.
        backprop_depth: gradients flow through this many last recurrences.

    Raises:
        ValueError: naming every impossible setting at once.
    """

    model_type = "recurrent_depth"

    vocab_size: int = 256
    hidden_size: int = 128
    num_attention_heads: int = 4
    intermediate_size: int | None = None
    prelude_layers: int = 1
    core_layers: int = 2
    coda_layers: int = 1
    max_position_embeddings: int = 512
    rope_base: float = 50_000.0
    norm_eps: float = 1e-6
    qk_bias: bool = True
    tie_word_embeddings: bool = True
    embedding_scale: Any = None  # a float once made
    mean_recurrence: int = 8
    backprop_depth: int = 4
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if problems := self.problems():
            raise ValueError("impossible model settings:\n" + "\n".join(f"  - {p}" for p in problems))
        if self.intermediate_size is None:
            self.intermediate_size = math.ceil(self.hidden_size / 3) * 8
        if self.embedding_scale is None:
            self.embedding_scale = math.sqrt(self.hidden_size)

    def problems(self) -> list[str]:
        """Every setting that cannot work, one sentence each with key, value and remedy."""
        least_one = ["vocab_size", "hidden_size", "num_attention_heads", "core_layers"]
        least_one += ["max_position_embeddings", "mean_recurrence", "backprop_depth"]
        found = [f"{k}={getattr(self, k)} must be at least 1" for k in least_one if getattr(self, k) < 1]
        found += [
            f"{k}={getattr(self, k)} must be at least 0"
            for k in ("prelude_layers", "coda_layers")
            if getattr(self, k) < 0
        ]
        if self.intermediate_size is not None and self.intermediate_size < 1:
            found.append(f"intermediate_size={self.intermediate_size} must be at least 1, or null")
        found += [
            f"{k}={getattr(self, k)} must be above 0" for k in ("norm_eps", "rope_base") if not getattr(self, k) > 0
        ]
        if found:
            return found
        if self.hidden_size % self.num_attention_heads:
            found.append(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads};"
                f" take hidden_size={self.num_attention_heads * (self.hidden_size // self.num_attention_heads + 1)}"
                " or another number of heads"
            )
        elif self.head_dim % 2:
            found.append(
                f"heads of {self.head_dim} (hidden_size={self.hidden_size} / num_attention_heads="
                f"{self.num_attention_heads}) cannot be rotated in pairs; take an even head size"
            )
        return found

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_hidden_layers(self) -> int:
        """Blocks with weights of their own (the core counted once)."""
        return self.prelude_layers + self.core_layers + self.coda_layers

    @property
    def effective_depth(self) -> int:
        """Blocks that a token passes at the mean recurrence."""
        return self.prelude_layers + self.core_layers * self.mean_recurrence + self.coda_layers
