"""Ouro (ByteDance, 2510.25741): the whole stack is looped; no injection, an exit gate, a norm after every loop."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor

from ..config import RecurrentDepthConfig
from .shared import dtype_name, llama_rope, need, refuse, rope_keys, token_ids

FIXED: dict[str, Any] = {
    "norm_placement": "inner_sandwich",
    "rope_style": "half",
    "injection": "none",
    "state_norm": "every",
    "exit_gate": True,
    "qk_bias": False,
    "embedding_scale": 1.0,
    "prelude_layers": 0,
    "coda_layers": 0,
}
#: Every loop was trained to be read out; one slot per position for all loops was not (and fails in the prefill).
CAPABILITIES: dict[str, Any] = {"decodable_at_depth": True, "kv_sharing_safe": False}
IGNORED: tuple[str, ...] = ()

#: The keys of our settings.
_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "core_layers": "num_hidden_layers",
    "max_position_embeddings": "max_position_embeddings",
}
_TOP = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "exit_gate.weight": "model.early_exit_gate.weight",
    "exit_gate.bias": "model.early_exit_gate.bias",
    "head.weight": "lm_head.weight",
}
_BLOCK = re.compile(r"core\.(\d+)\.(.+)\.weight")
_PARTS = {
    "norm_1": ("input_layernorm",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.o_proj",),
    "norm_2": ("input_layernorm_2",),
    "norm_3": ("post_attention_layernorm",),
    "mlp.fc": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.proj": ("mlp.down_proj",),
    "norm_4": ("post_attention_layernorm_2",),
}


def matches(config: dict[str, Any], names: Collection[str] | None) -> bool:
    """Whether a ``config.json`` describes this family."""
    return config.get("model_type") == "ouro"


def convert_config(config: dict[str, Any]) -> RecurrentDepthConfig:
    """Translate an Ouro configuration.

    Raises:
        ValueError: for a variant of the format that this family does not cover.
    """
    need(config, _KEYS.values(), "ouro")
    refuse(config, {"hidden_act": "silu", "use_sliding_window": False}, "ouro")
    refuse(config, {"head_dim": config["hidden_size"] // config["num_attention_heads"]}, "ouro")
    if others := set(config.get("layer_types") or ()) - {"full_attention"}:
        raise ValueError(f"layer_types with {', '.join(sorted(others))} are not supported; only full_attention is")
    loops = config.get("total_ut_steps", 4)
    return RecurrentDepthConfig(
        **{**FIXED, **llama_rope(config)},
        **CAPABILITIES,
        **{ours: config[theirs] for ours, theirs in _KEYS.items()},
        **token_ids(config),
        num_key_value_heads=config.get("num_key_value_heads"),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        mean_recurrence=loops,
        backprop_depth=loops,
    )


def export_config(config: RecurrentDepthConfig) -> dict[str, Any]:
    """A ``config.json`` for ``modeling_ouro.py``; the exit threshold is the published one, at which nothing exits."""
    return {
        "model_type": "ouro",
        "architectures": ["OuroForCausalLM"],
        **{theirs: getattr(config, ours) for ours, theirs in _KEYS.items()},
        **rope_keys(config),
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "total_ut_steps": config.mean_recurrence,
        "early_exit_threshold": 1.0,
        "layer_types": ["full_attention"] * config.core_layers,
        "use_sliding_window": False,
        "sliding_window": None,
        **{name: value for name, value in token_ids(config).items() if value is not None},
        "torch_dtype": dtype_name(config),
        "auto_map": {
            "AutoConfig": "configuration_ouro.OuroConfig",
            "AutoModel": "modeling_ouro.OuroModel",
            "AutoModelForCausalLM": "modeling_ouro.OuroForCausalLM",
        },
    }


def export_problems(config: RecurrentDepthConfig) -> Iterable[str]:
    """None beside ``FIXED``."""
    return ()


def names(ours: str) -> tuple[str, ...]:
    """The names of the tensors that make one of ours: queries, keys and values are apart there, gate and up too."""
    if ours in _TOP:
        return (_TOP[ours],)
    block = _BLOCK.fullmatch(ours)
    assert block is not None, f"{ours} has no name in this format"
    layer, part = block.groups()
    return tuple(f"model.layers.{layer}.{name}.weight" for name in _PARTS[part])


def extra_tensors(config: RecurrentDepthConfig) -> dict[str, Tensor]:
    """None: the rotary table is computed."""
    return {}
