"""Retrofitted Llamas (2511.07384): Huginn's model_type and tensor names around Llama's blocks.

Against Huginn: pre-norm blocks with two norms, rotation of halves by ``rope_theta`` (not ``rope_base``, a leftover),
shared key/value heads, no norm after the recurrence, mostly no embedding scale and an untied head.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor

from ..config import RecurrentDepthConfig
from . import huginn
from .shared import llama_rope, need, rope_keys

FIXED: dict[str, Any] = {
    "norm_placement": "pre",
    "rope_style": "half",
    "injection": "linear",
    "state_norm": "none",
    "exit_gate": False,
    "qk_bias": False,
}
CAPABILITIES: dict[str, Any] = {"decodable_at_depth": True, "kv_sharing_safe": True}
IGNORED = ("rotary_emb.inv_freq", "rotary_emb.original_inv_freq")


def matches(config: dict[str, Any], names: Collection[str] | None) -> bool:
    """Whether a ``config.json`` with these tensors is of this family."""
    return huginn.is_raven(config) and not huginn.matches(config, names)


def convert_config(config: dict[str, Any]) -> RecurrentDepthConfig:
    """Translate the configuration of a retrofitted Llama.

    Raises:
        ValueError: for a variant of the format that this family does not cover.
    """
    need(config, [*huginn.KEYS.values(), "vocab_size", "max_position_embeddings"], "raven_llama")
    if config.get("qk_bias", True):
        raise ValueError("a checkpoint of the family raven_llama: qk_bias=true is not supported, only false")
    return RecurrentDepthConfig(
        **{**FIXED, **llama_rope(config)},
        **CAPABILITIES,
        **huginn.common_settings(config, "raven_llama"),
        num_key_value_heads=config.get("num_key_value_heads"),
        max_position_embeddings=config["max_position_embeddings"],
    )


def export_config(config: RecurrentDepthConfig) -> dict[str, Any]:
    """A ``config.json`` for ``raven_modeling_minimal_llama.py``."""
    return {
        **huginn.common_keys(config),
        **rope_keys(config),
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "auto_map": {
            "AutoConfig": "raven_config_minimal.RavenConfig",
            "AutoModel": "raven_modeling_minimal_llama.RavenForCausalLM",
            "AutoModelForCausalLM": "raven_modeling_minimal_llama.RavenForCausalLM",
        },
    }


def export_problems(config: RecurrentDepthConfig) -> Iterable[str]:
    """None beside ``FIXED``."""
    return ()


def names(ours: str) -> tuple[str, ...]:
    """The name of one of our tensors in this format: the norm before the MLP is its second."""
    return huginn.names(ours.replace(".norm_3.", ".norm_2."))


def extra_tensors(config: RecurrentDepthConfig) -> dict[str, Tensor]:
    """None: the rotary table is computed."""
    return {}
