"""The configuration of a recurrent-depth model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

#: What the settings of a kind can be.
CHOICES = {
    "rope_style": ("interleaved", "half"),
    "norm_placement": ("sandwich", "pre", "inner_sandwich"),
    "state_norm": ("final", "every", "none"),
    "injection": ("linear", "none"),
}
LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


class RecurrentDepthConfig(PreTrainedConfig):
    """Shape and training depth of a :class:`RecurrentDepthForCausalLM` (Geiping et al. 2025, arXiv 2502.05171).

    Args:
        vocab_size: number of token ids.
        hidden_size: width of the residual stream ("dim"), divisible by ``num_attention_heads`` into even heads.
        num_attention_heads: attention heads per block.
        num_key_value_heads: heads of keys and values, each shared by as many query heads; None for one each.
        intermediate_size: width of the gated MLP; None takes 8/3 of ``hidden_size``, rounded up to a multiple of 8.
        prelude_layers, core_layers, coda_layers: blocks before, inside and after the loop.
        max_position_embeddings: the context, in tokens.
        rope_base: base of the rotary embedding's wavelengths.
        rope_style: which coordinates turn together: ``interleaved``, (0, 1), (2, 3), …, or ``half``, (0, n/2), ….
        rope_llama3: Llama 3's stretching of long wavelengths (``factor``, ``low_freq_factor``, ``high_freq_factor``,
            ``original_max_position_embeddings``), or None.
        norm_placement: a block's norms around ``f``, attention or MLP: ``sandwich``, x ← n'(x + f(n(x))), ``pre``,
            x ← x + f(n(x)), or ``inner_sandwich``, x ← x + n'(f(n(x))).
        state_norm: where the state is normalised: ``final``, before the coda; ``every``, at the end of each recurrence;
            or ``none``. What enters the head is normalised in any case.
        injection: how the embedding enters a recurrence: ``linear``, by a learned map of (state, embedding), or
            ``none``: the state begins as the embedding, which the recurrences do not see again.
        norm_eps: epsilon of every RMSNorm.
        qk_bias: whether queries and keys have a learned bias.
        exit_gate: whether there is a learned exit gate on the states; its weights are kept, nothing here trains it.
        tie_word_embeddings: whether the head shares the embedding's weight.
        embedding_scale: factor on token embeddings (and on the initial state); None takes sqrt(hidden_size).
        state_std: σ of the initial state before that factor; None takes sqrt(2 / (5·hidden_size)).
        mean_recurrence: mean number of recurrences in training, and the default depth of ``forward``.
        backprop_depth: gradients flow through this many last recurrences.
        decodable_at_depth: whether states can be read out before the last recurrence (training depths varied).
        kv_sharing_safe: whether one key/value slot per position will do, whatever the recurrence.
        retrofit: the pretrained model that this was made from, and its layers (see :func:`retrofit_config`), or None.

    Raises:
        ValueError: naming every impossible setting at once.
    """

    model_type = "recurrent_depth"

    vocab_size: int = 256
    hidden_size: int = 128
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None
    prelude_layers: int = 1
    core_layers: int = 2
    coda_layers: int = 1
    max_position_embeddings: int = 512
    rope_base: float = 50_000.0
    rope_style: str = "interleaved"
    rope_llama3: dict[str, Any] | None = None
    norm_placement: str = "sandwich"
    state_norm: str = "final"
    injection: str = "linear"
    norm_eps: float = 1e-6
    qk_bias: bool = True
    exit_gate: bool = False
    tie_word_embeddings: bool = True
    embedding_scale: Any = None  # a float once made
    state_std: Any = None  # likewise
    mean_recurrence: int = 8
    backprop_depth: int = 4
    decodable_at_depth: bool = True
    kv_sharing_safe: bool = True
    retrofit: dict[str, Any] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if problems := self.problems():
            raise ValueError("impossible model settings:\n" + "\n".join(f"  - {p}" for p in problems))
        if self.intermediate_size is None:
            self.intermediate_size = math.ceil(self.hidden_size / 3) * 8
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.embedding_scale is None:
            self.embedding_scale = math.sqrt(self.hidden_size)
        if self.state_std is None:
            self.state_std = math.sqrt(2 / (5 * self.hidden_size))

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
        found += [
            f"{k}={getattr(self, k)!r} is unknown; take one of {', '.join(known)}"
            for k, known in CHOICES.items()
            if getattr(self, k) not in known
        ]
        found += list(self._stretch_problems())
        if found:
            return found
        return list(self._head_problems())

    def _stretch_problems(self) -> Iterator[str]:
        if self.rope_llama3 is None:
            return
        if set(self.rope_llama3) != set(LLAMA3_KEYS):
            yield f"rope_llama3={dict(self.rope_llama3)} must have {', '.join(LLAMA3_KEYS)} and no other key"
        elif wrong := [k for k in LLAMA3_KEYS if not self.rope_llama3[k] > 0]:
            yield f"rope_llama3.{wrong[0]}={self.rope_llama3[wrong[0]]} must be above 0"
        elif self.rope_llama3["high_freq_factor"] <= self.rope_llama3["low_freq_factor"]:
            yield (
                f"rope_llama3.high_freq_factor={self.rope_llama3['high_freq_factor']} must exceed low_freq_factor="
                f"{self.rope_llama3['low_freq_factor']}"
            )

    def _head_problems(self) -> Iterator[str]:
        kv_heads = self.num_key_value_heads
        if self.hidden_size % self.num_attention_heads:
            yield (
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads};"
                f" take hidden_size={self.num_attention_heads * (self.hidden_size // self.num_attention_heads + 1)}"
                " or another number of heads"
            )
        elif self.head_dim % 2:
            yield (
                f"heads of {self.head_dim} (hidden_size={self.hidden_size} / num_attention_heads="
                f"{self.num_attention_heads}) cannot be rotated in pairs; take an even head size"
            )
        if kv_heads is None or kv_heads == self.num_attention_heads:
            return
        if kv_heads < 1 or self.num_attention_heads % kv_heads:
            yield (
                f"num_key_value_heads={kv_heads} must divide num_attention_heads={self.num_attention_heads}, or be null"
            )
        elif self.qk_bias:
            yield (
                f"qk_bias=true needs as many key as query heads, not num_key_value_heads={kv_heads}; set qk_bias=false"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def state_scale(self) -> float:
        """σ of the initial state, and of noise mixed into states."""
        return self.embedding_scale * self.state_std

    @property
    def num_hidden_layers(self) -> int:
        """Blocks with weights of their own (the core counted once)."""
        return self.prelude_layers + self.core_layers + self.coda_layers

    @property
    def effective_depth(self) -> int:
        """Blocks that a token passes at the mean recurrence."""
        return self.prelude_layers + self.core_layers * self.mean_recurrence + self.coda_layers
