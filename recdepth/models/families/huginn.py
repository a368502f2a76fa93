"""Huginn-0125 and its siblings (model_type ``huginn_raven``, 2502.05171): sandwich blocks, linear injection."""

from __future__ import annotations

import re
from typing import Any

from ..config import RecurrentDepthConfig

_TOP = {
    "transformer.wte.weight": "embedding.weight",
    "transformer.adapter.weight": "injection.weight",
    "transformer.ln_f.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
_GROUPS = {"prelude": "prelude", "core_block": "core", "coda": "coda"}
_BLOCK = re.compile(r"transformer\.(prelude|core_block|coda)\.(\d+)\.(.+)")


def matches(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` describes this family."""
    return config.get("model_type") == "huginn_raven"


def convert_config(config: dict[str, Any]) -> RecurrentDepthConfig:
    """Translate a Huginn configuration.

    Raises:
        ValueError: for a variant of the format that this family does not cover.
    """
    needed = ["n_embd", "n_heads", "intermediate_size", "vocab_size", "block_size"]
    needed += [f"n_layers_in_{part}" for part in ("prelude", "recurrent_block", "coda")]
    if missing := [key for key in needed if key not in config]:
        raise ValueError(f"a huginn_raven checkpoint's config.json needs {', '.join(missing)}")
    expected = {"injection_type": "linear", "bias": False}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key}={config[key]!r} in a huginn_raven checkpoint is not supported; only {value!r} is")
    if config.get("num_key_value_heads", config["n_heads"]) != config["n_heads"]:
        raise ValueError(
            f"num_key_value_heads={config['num_key_value_heads']} differs from n_heads={config['n_heads']}: this is a"
            " retrofitted Llama, not a Huginn; only Huginn's own blocks are supported"
        )
    init_values = config.get("init_values") or {}
    return RecurrentDepthConfig(
        vocab_size=config.get("padded_vocab_size") or config["vocab_size"],
        hidden_size=config["n_embd"],
        num_attention_heads=config["n_heads"],
        intermediate_size=config["intermediate_size"],
        prelude_layers=config["n_layers_in_prelude"],
        core_layers=config["n_layers_in_recurrent_block"],
        coda_layers=config["n_layers_in_coda"],
        max_position_embeddings=config["block_size"],
        rope_base=config.get("rope_base", 50_000),
        norm_eps=config.get("norm_eps", 1e-6),
        qk_bias=config.get("qk_bias", True),
        tie_word_embeddings=config.get("tie_embeddings", True),
        embedding_scale=init_values.get("embed_scale"),
        mean_recurrence=config.get("mean_recurrence", 32),
        backprop_depth=config.get("mean_backprop_depth", 8),
        bos_token_id=config.get("bos_token_id"),
        eos_token_id=config.get("eos_token_id"),
        pad_token_id=config.get("pad_token_id"),
    )


def rename(name: str) -> str | None:
    """Our name of a tensor; None for the stored rotary table, which is computed instead."""
    if name in _TOP or name == "freqs_cis":
        return _TOP.get(name)
    if block := _BLOCK.fullmatch(name):
        group, layer, rest = block.groups()
        return f"{_GROUPS[group]}.{layer}.{rest.replace('attn.Wqkv', 'attn.qkv')}"
    return name
