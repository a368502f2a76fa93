"""The recurrent-depth language model: prelude, looped core, coda (Geiping et al. 2025, arXiv 2502.05171)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .cache import Cache, Depth, KVCache, KVPolicy, Span
from .compilation import compile_seams
from .config import RecurrentDepthConfig
from .generation import RecurrentGenerationMixin, streams_of
from .hf_cache import RecurrentCache, positions_of
from .layers import Attention, Block, GatedMLP, RMSNorm, rope_table
from .products import Linear
from .randomness import STATE, truncated_normal
from .refinement import RefinementMixin


@dataclass
class RecurrentDepthOutput(ModelOutput):
    """What ``forward`` returns.

    Attributes:
        loss: mean cross-entropy over labels that are not -100, or None.
        logits: [batch, time, vocab], float32.
        latents: [batch, time, dim], the final states as they enter the coda: after the norm, where there is one.
        past_key_values: the cache, where one was asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    latents: Tensor | None = None
    past_key_values: RecurrentCache | None = None


class RecurrentDepthForCausalLM(RefinementMixin, RecurrentGenerationMixin, PreTrainedModel):  # type: ignore[misc]
    """A language model whose core block is applied ``num_steps`` times.

    ``forward`` loops over four public seams, ``embed``, ``initial_state``, ``recur`` and ``decode``, which samplers and
    objectives use directly. Every ``positions`` argument is a tensor of logical positions [batch, time] (padding -1) or
    a :class:`Span` made from one by :meth:`span`, which saves recomputing what follows from the positions.
    """

    config_class = RecurrentDepthConfig
    config: RecurrentDepthConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _tied_weights_keys = {"head.weight": "embedding.weight"}  # noqa: RUF012 (as transformers declares it)
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    gradient_checkpointing = False  # set by transformers' gradient_checkpointing_enable
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config: RecurrentDepthConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.prelude = nn.ModuleList(Block(config) for _ in range(config.prelude_layers))
        self.injection = Linear(2 * config.hidden_size, config.hidden_size) if config.injection == "linear" else None
        self.core = nn.ModuleList(Block(config) for _ in range(config.core_layers))
        self.coda = nn.ModuleList(Block(config) for _ in range(config.coda_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = Linear(config.hidden_size, config.vocab_size)
        # of the states that have been normalised; trained where it comes from, not here
        self.exit_gate = nn.Linear(config.hidden_size, 1).requires_grad_(False) if config.exit_gate else None
        self._rope: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self.post_init()

    # ----------------------------------------------------------------------------------------------------- the seams

    def embed(
        self, input_ids: Int[Tensor, "batch time"], cache: Cache | None, positions: Tensor | Span
    ) -> Float[Tensor, "batch time dim"]:
        """The prelude: ``e = P(y)``."""
        span = self._as_span(positions, cache)
        x = self.embedding(input_ids) * self.config.embedding_scale
        for i, block in enumerate(self.prelude):
            x = block(x, span, cache, cache.prelude_slot(i) if cache is not None else 0)
        return x

    def initial_state(
        self,
        e: Float[Tensor, "batch time dim"],
        rows: Int[Tensor, " batch"] | None,
        positions: Int[Tensor, "batch time"],
        seed: int | None,
        scale: float = 1.0,
    ) -> Float[Tensor, "batch time dim"]:
        """Noise ``s_0``: normal with σ = sqrt(2/5)·scale, cut at ±3σ (σ after the √dim embedding scale).

        With a seed, a function of (seed, row, position) alone; with ``seed=None``, drawn from torch's generator. Zero
        for a model without injection, whose first recurrence starts from the embedding: see :meth:`recur`.

        Args:
            e: the embedded tokens, for shape, dtype and device.
            rows: random-stream ids of the rows (unused without a seed).
            positions: logical positions.
            seed: see above.
            scale: factor on σ; 0 gives the zero state.
        """
        std = scale * self.config.state_scale
        if std == 0 or self.injection is None:
            return torch.zeros_like(e)
        if seed is None:
            s = torch.empty_like(e, dtype=torch.float32)
            return nn.init.trunc_normal_(s, std=std, a=-3 * std, b=3 * std).to(e.dtype)
        assert rows is not None, "a seeded state needs the rows' stream ids"
        return (truncated_normal(seed, STATE, rows[:, None], positions, count=e.shape[-1]) * std).to(e.dtype)

    def recur(
        self,
        e: Float[Tensor, "batch time dim"],
        s: Float[Tensor, "batch time dim"],
        cache: Cache | None,
        positions: Tensor | Span,
        depth: Depth,
    ) -> Float[Tensor, "batch time dim"]:
        """One recurrence (core pass): ``s_t = R(e, s_{t-1})``.

        Without injection, a state that is zero has not begun: it starts from the embedding.

        Args:
            e: the embedded tokens.
            s: the states before the pass.
            cache: keys and values of earlier positions.
            positions: logical positions or their span.
            depth: recurrences these states have had before (selects the slots of a per-depth cache); see ``Depth``.
        """
        span = self._as_span(positions, cache)
        if self.injection is not None:
            x = self.injection(torch.cat([s, e], dim=-1))
        else:
            x = torch.where((s == 0).all(-1, keepdim=True), e, s)
        for i, block in enumerate(self.core):
            x = block(x, span, cache, cache.core_slot(i, depth) if cache is not None else 0)
        return self.norm(x) if self.config.state_norm == "every" else x

    def decode(
        self,
        s: Float[Tensor, "batch time dim"],
        cache: Cache | None,
        positions: Tensor | Span,
        logits_to_keep: int = 0,
    ) -> Float[Tensor, "batch kept vocab"]:
        """The coda: norm (by ``state_norm``), blocks (writing their KV), norm, head.

        Args:
            s: states as ``recur`` returns them.
            cache: keys and values of earlier positions.
            positions: logical positions or their span.
            logits_to_keep: logits of the last so many places only; 0 for all (as in transformers).

        Returns:
            logits, float32 (float64 for a float64 model).
        """
        span = self._as_span(positions, cache)
        x = self._read(s)
        for i, block in enumerate(self.coda):
            x = block(x, span, cache, cache.coda_slot(i) if cache is not None else 0)
        x = x[:, -logits_to_keep:] if logits_to_keep else x
        if len(self.coda) or self.config.state_norm != "every":  # else the last recurrence has normalised it
            x = self.norm(x)
        logits = self.head(x)
        return logits if logits.dtype == torch.float64 else logits.float()

    def span(
        self,
        positions: Int[Tensor, "batch time"],
        cache: Cache | None = None,
        start: int | None = None,
        length: int | None = None,
        padded: bool = True,
    ) -> Span:
        """Precompute what a pass needs to know of its positions.

        Args:
            positions: logical positions, -1 for padding.
            cache: the cache the pass will use, or None.
            start: first position, if the caller knows that every row holds ``start … start+T-1``.
            length: keys to attend to, at least the highest position + 1 (None reads it off the positions, which
                waits for the device).
            padded: False promises that no position is -1, in increasing order from 0 (no cache only).
        """
        time = positions.shape[1]
        device = positions.device
        if cache is None:
            causal, mask, length = not padded, None, time
            if padded:
                keys = positions[:, None, None, :]
                mask = (keys <= positions.clamp(min=0)[:, None, :, None]) & (keys >= 0)
                mask = mask | torch.eye(time, dtype=torch.bool, device=device)  # padding sees itself: no empty softmax
        else:
            if length is None:
                length = start + time if start is not None else int(positions.max()) + 1
            causal = start == 0 and length == time and time > 1
            alone = start is not None and time == 1 and length == start + 1
            mask = None
            if not (causal or alone):
                mask = torch.arange(length, device=device) <= positions.clamp(min=0)[:, None, :, None]
        table = self.rope_table(device)  # -1 reads the last angle: harmless
        rotary = table[positions] if start is None else table[None, start : start + time]
        return Span(positions, rotary[:, :, None], mask, causal, start, length)

    def rope_table(self, device: torch.device) -> Float[Tensor, "time kinds head_dim"]:
        """Rotary embeddings of the whole context, see :func:`~recdepth.models.layers.rope_table`."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        table = self._rope.get((device, dtype))
        if table is None or len(table) < self.config.max_position_embeddings:  # the context may have been raised
            with torch.inference_mode(False):  # a table made while sampling must serve training too
                table = self._rope[device, dtype] = rope_table(self.config, device, dtype)
        return table

    def new_cache(self, batch: int, capacity: int, kv: KVPolicy = "shared", num_steps: int = 1) -> KVCache:
        """A cache of this model's dtype and device; arguments as in :class:`KVCache`."""
        return KVCache(self.config, batch, capacity, kv, num_steps, dtype=self.dtype, device=self.device)

    def compile_seams(self) -> None:
        """Compile the seams for training (static shapes); see :func:`can_compile` for whether that can work."""
        compile_seams(self)

    # ---------------------------------------------------------------------------------------------------- the forward

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        num_steps: int | None = None,
        initial_state: Float[Tensor, "batch time dim"] | None = None,
        attention_mask: Int[Tensor, "batch time"] | None = None,
        labels: Int[Tensor, "batch time"] | None = None,
        seed: int | None = None,
        backprop_depth: int | None = None,
        checkpoint_recurrences: bool = False,
        past_key_values: RecurrentCache | None = None,
        use_cache: bool | None = None,
        kv: KVPolicy | None = None,
        rows: Int[Tensor, " batch"] | None = None,
        logits_to_keep: int = 0,
        inputs_embeds: None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> RecurrentDepthOutput:
        """Run all positions in parallel for ``num_steps`` recurrences.

        Args:
            input_ids: token ids; at most ``max_position_embeddings`` that are not padding.
            num_steps: recurrences; None takes the configuration's mean.
            initial_state: s_0; None draws noise.
            attention_mask: 1 for tokens, 0 for padding (either side); with a cache, of all places so far.
            labels: targets, shifted inside, -100 ignored.
            seed: seed of the noise; None draws from torch's generator.
            backprop_depth: gradients flow through this many last recurrences; None through all.
            checkpoint_recurrences: recompute recurrences when going back, as ``gradient_checkpointing_enable`` has it.
            past_key_values: keys and values of the places before ``input_ids``, which are added to it; no gradients.
            use_cache: start a cache where none is given (``past_key_values`` of the output).
            kv: of a cache that is started; None is ``per_depth``.
            rows: random-stream ids of the rows; None for 0 … batch-1.
            logits_to_keep: logits of the last so many places only; 0 for all.
            inputs_embeds, output_attentions, output_hidden_states: refused; here because libraries pass them on unset.

        Raises:
            ValueError: for no recurrence, more tokens than the context, or settings that exclude each other.
        """
        if inputs_embeds is not None or output_attentions or output_hidden_states:
            raise ValueError("inputs_embeds, output_attentions and output_hidden_states are not supported; drop them")
        if past_key_values is not None or use_cache:
            if labels is not None or backprop_depth is not None or checkpoint_recurrences:
                raise ValueError("labels, backprop_depth and checkpoint_recurrences are for training, without a cache")
            logits, states, past = self._forward_cached(
                input_ids, past_key_values, num_steps, initial_state, attention_mask, seed, rows, kv, logits_to_keep
            )
            return RecurrentDepthOutput(logits=logits, latents=self._read(states), past_key_values=past)
        if kv is not None:
            raise ValueError(f"kv={kv!r} is a choice of the cache; set use_cache=True")
        checkpointed = checkpoint_recurrences or (self.gradient_checkpointing and self.training)
        span, s = self._recur_whole(
            input_ids, num_steps, initial_state, attention_mask, seed, rows, backprop_depth, checkpointed
        )
        logits = self.decode(s, None, span, logits_to_keep if labels is None else 0)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return RecurrentDepthOutput(loss=loss, logits=logits, latents=self._read(s))

    def _recur_whole(
        self,
        input_ids: Tensor,
        num_steps: int | None,
        initial_state: Tensor | None,
        attention_mask: Tensor | None,
        seed: int | None,
        rows: Tensor | None,
        backprop_depth: int | None,
        checkpointed: bool,
    ) -> tuple[Span, Tensor]:
        """All recurrences of whole texts, without a cache; returns their span and un-normalised states."""
        num_steps = self.config.mean_recurrence if num_steps is None else num_steps
        batch, time = input_ids.shape
        self._check_size(num_steps, time if attention_mask is None else int(attention_mask.sum(-1).max()))
        span = self._whole_span(batch, time, attention_mask, input_ids.device)
        e = self.embed(input_ids, None, span)
        s = self._first_state(e, span, initial_state, rows, seed)
        without_grad = 0 if backprop_depth is None else max(0, num_steps - backprop_depth)
        with torch.no_grad():
            for depth in range(without_grad):
                s = self.recur(e, s, None, span, depth)
        if initial_state is None or without_grad:
            # like the states behind it, so that one compiled graph serves all recurrences
            s = s.detach().requires_grad_(torch.is_grad_enabled())
        recur = partial(checkpoint, self.recur, use_reentrant=False) if checkpointed else self.recur
        for depth in range(without_grad, num_steps):
            s = recur(e, s, None, span, depth)
        return span, s

    def _first_state(
        self, e: Tensor, span: Span, initial_state: Tensor | None, rows: Tensor | None, seed: int | None
    ) -> Tensor:
        """s_0: what is given, or noise."""
        if initial_state is not None:
            return initial_state
        return self.initial_state(e, streams_of(rows, len(e), e.device), span.positions, seed)

    # ------------------------------------------------------------------------------------------------------ the rest

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Linear)
        assert value.bias is None
        self.head = Linear(value.in_features, value.out_features)
        self.head.weight = value.weight
        if self.head.weight is not self.embedding.weight:
            self.head.lay_out()

    def _read(self, s: Tensor) -> Tensor:
        """States as they enter the coda."""
        return self.norm(s) if self.config.state_norm == "final" else s

    def _whole_span(self, batch: int, time: int, attention_mask: Tensor | None, device: torch.device) -> Span:
        """The span of whole texts, without a cache."""
        if attention_mask is not None:
            return self.span(positions_of(attention_mask))
        return self.span(torch.arange(time, device=device).expand(batch, time), start=0, padded=False)

    def _check_size(self, num_steps: int, tokens: int) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1")
        if tokens > self.config.max_position_embeddings:
            raise ValueError(
                f"{tokens} tokens exceed the context of max_position_embeddings={self.config.max_position_embeddings};"
                " shorten the input"
            )

    def _as_span(self, positions: Tensor | Span, cache: Cache | None) -> Span:
        return positions if isinstance(positions, Span) else self.span(positions, cache)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Scaled initialisation of 2502.05171, section 3.3: residual outputs shrink with the effective depth."""
        std = math.sqrt(2 / (5 * self.config.hidden_size))
        if isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)
            if isinstance(module, nn.Linear) and module.bias is not None:  # the exit gate's
                init.zeros_(module.bias)
        elif isinstance(module, (Attention, GatedMLP)):
            small = std / math.sqrt(2 * self.config.effective_depth)
            init.trunc_normal_(module.proj.weight, std=small, a=-3 * small, b=3 * small)
            if isinstance(module, Attention) and module.qk_bias is not None:
                init.zeros_(module.qk_bias)
