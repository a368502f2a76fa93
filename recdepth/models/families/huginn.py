"""Huginn-0125 and its siblings (model_type ``huginn_raven``, 2502.05171): sandwich blocks, linear injection."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from ..config import RecurrentDepthConfig
from ..layers import rope_table
from .shared import dtype_name, need, refuse, token_ids

FIXED: dict[str, Any] = {
    "norm_placement": "sandwich",
    "rope_style": "interleaved",
    "rope_llama3": None,
    "injection": "linear",
    "state_norm": "final",
    "exit_gate": False,
}
CAPABILITIES: dict[str, Any] = {"decodable_at_depth": True, "kv_sharing_safe": True}  # 2502.05171, section 6
IGNORED = ("freqs_cis",)  # the rotary table, which is computed instead

#: The keys of our settings.
KEYS = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_heads",
    "intermediate_size": "intermediate_size",
    "prelude_layers": "n_layers_in_prelude",
    "core_layers": "n_layers_in_recurrent_block",
    "coda_layers": "n_layers_in_coda",
}
_TOP = {
    "embedding.weight": "transformer.wte.weight",
    "injection.weight": "transformer.adapter.weight",
    "norm.weight": "transformer.ln_f.weight",
    "head.weight": "lm_head.weight",
}
_BLOCK = re.compile(r"(prelude|core|coda)(\.\d+\..+)")


def is_raven(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is Huginn's or a retrofitted Llama's, which share the model_type."""
    return config.get("model_type") == "huginn_raven"


def has_llama_blocks(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is a retrofitted Llama's: only these say how they rotate as Llamas do."""
    return "rope_theta" in config or "rope_parameters" in config


def sandwiches(names: Collection[str]) -> bool:
    """Whether the tensors have the norms behind attention and MLP, which a retrofitted Llama lacks."""
    return any(name.endswith(".norm_3.weight") for name in names)


def matches(config: dict[str, Any], names: Collection[str] | None) -> bool:
    """Whether a ``config.json`` with these tensors is of this family."""
    return is_raven(config) and (sandwiches(names) if names is not None else not has_llama_blocks(config))


def convert_config(config: dict[str, Any]) -> RecurrentDepthConfig:
    """Translate a Huginn configuration.

    Raises:
        ValueError: for a variant of the format that this family does not cover.
    """
    need(config, [*KEYS.values(), "vocab_size", "block_size"], "huginn")
    refuse(config, {"num_key_value_heads": config["n_heads"]}, "huginn")
    return RecurrentDepthConfig(
        **FIXED,
        **CAPABILITIES,
        **common_settings(config, "huginn"),
        max_position_embeddings=config["block_size"],
        rope_base=config.get("rope_base", 50_000),
        qk_bias=config.get("qk_bias", True),
    )


def common_settings(config: dict[str, Any], family: str) -> dict[str, Any]:
    """What Huginn and retrofitted Llamas have in common."""
    refuse(config, {"injection_type": "linear", "bias": False, "test_time_noise": 0}, family)
    refuse(config, {"head_dim": config["n_embd"] // config["n_heads"]}, family)
    init_values = config.get("init_values") or {}
    return {
        **{ours: config[theirs] for ours, theirs in KEYS.items()},
        **token_ids(config),
        "vocab_size": config.get("padded_vocab_size") or config["vocab_size"],
        "norm_eps": config.get("norm_eps", 1e-6),
        "tie_word_embeddings": config.get("tie_embeddings", True),
        "embedding_scale": init_values.get("embed_scale"),
        "state_std": init_values.get("std"),
        "mean_recurrence": config.get("mean_recurrence", 32),
        "backprop_depth": config.get("mean_backprop_depth", 8),
    }


def export_config(config: RecurrentDepthConfig) -> dict[str, Any]:
    """A ``config.json`` for ``raven_modeling_minimal.py``; block_size bounds the context."""
    return {
        **common_keys(config),
        "rope_base": config.rope_base,
        "auto_map": {
            "AutoConfig": "raven_config_minimal.RavenConfig",
            "AutoModel": "raven_modeling_minimal.RavenForCausalLM",
            "AutoModelForCausalLM": "raven_modeling_minimal.RavenForCausalLM",
        },
    }


def common_keys(config: RecurrentDepthConfig) -> dict[str, Any]:
    """Keys of both; no ``tie_word_embeddings``, which Huginn's configuration class sets by itself."""
    std = math.sqrt(2 / (5 * config.hidden_size))
    return {
        "model_type": "huginn_raven",
        "architectures": ["RavenForCausalLM"],
        **{theirs: getattr(config, ours) for ours, theirs in KEYS.items()},
        "n_layers": config.num_hidden_layers,
        "block_size": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "padded_vocab_size": config.vocab_size,
        "padding_multiple": 1,
        "tie_embeddings": config.tie_word_embeddings,
        "bias": False,
        "norm_eps": config.norm_eps,
        "qk_bias": config.qk_bias,
        "injection_type": "linear",
        "state_init": "like-init",
        "init_values": {
            "std": config.state_std,
            "out_proj": std / math.sqrt(2 * config.effective_depth),
            "embedding": std,
            "embed_scale": config.embedding_scale,
        },
        "mean_recurrence": config.mean_recurrence,
        "mean_backprop_depth": config.backprop_depth,
        **{name: value for name, value in token_ids(config).items() if value is not None},
        "torch_dtype": dtype_name(config),
    }


def export_problems(config: RecurrentDepthConfig) -> Iterator[str]:
    """What the format cannot store beside ``FIXED``."""
    if config.num_key_value_heads != config.num_attention_heads:
        yield f"num_key_value_heads={config.num_key_value_heads}: the format has num_attention_heads"


def names(ours: str) -> tuple[str, ...]:
    """The name of one of our tensors in this format."""
    if ours in _TOP:
        return (_TOP[ours],)
    block = _BLOCK.fullmatch(ours)
    assert block is not None, f"{ours} has no name in this format"
    group, rest = block.groups()
    group = "core_block" if group == "core" else group
    return (f"transformer.{group}{rest.replace('attn.qkv', 'attn.Wqkv')}",)


def extra_tensors(config: RecurrentDepthConfig) -> dict[str, Tensor]:
    """The rotary table, a stored buffer there: cosine and sine, [1, time, 1, head_dim / 2, 2]."""
    pairs = rope_table(config, torch.device("cpu"), torch.float32)[:, 2].unflatten(-1, (-1, 2))
    return {"freqs_cis": pairs[None, :, None]}
