"""What several families' configurations have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..config import LLAMA3_KEYS, RecurrentDepthConfig


def need(config: dict[str, Any], keys: Iterable[str], family: str) -> None:
    """Raise ValueError naming all keys that are missing."""
    if missing := [key for key in keys if config.get(key) is None]:
        raise ValueError(f"{', '.join(missing)} missing, needed by the family {family}")


def refuse(config: dict[str, Any], expected: dict[str, Any], family: str) -> None:
    """Raise ValueError naming all keys that are there with another value than the one that is covered."""
    wrong = [
        f"{key}={config[key]!r} is not supported, only {value!r}"
        for key, value in expected.items()
        if config.get(key, value) != value
    ]
    if wrong:
        raise ValueError(f"a checkpoint of the family {family}: {'; '.join(wrong)}")


def token_ids(config: dict[str, Any] | RecurrentDepthConfig) -> dict[str, Any]:
    """Ids of the special tokens; of several end tokens the first."""
    read = config.get if isinstance(config, dict) else lambda name: getattr(config, name)
    ids = {name: read(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {name: value[0] if isinstance(value, list) else value for name, value in ids.items()}


def llama_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Our rotary settings from ``rope_theta`` and ``rope_scaling``, or from ``rope_parameters``, which holds both.

    Raises:
        ValueError: for a scaling other than Llama 3's.
    """
    parameters = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or parameters
    base = config.get("rope_theta") or parameters.get("rope_theta") or scaling.get("rope_theta")
    if base is None:
        raise ValueError("config.json needs rope_theta, the base of the rotary embedding")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return {"rope_style": "half", "rope_base": float(base), "rope_llama3": None}
    if kind != "llama3":
        raise ValueError(f"rope scaling of type {kind!r} is not supported; only 'llama3' is")
    need(scaling, LLAMA3_KEYS, "with llama3 rope scaling")
    return {"rope_style": "half", "rope_base": float(base), "rope_llama3": {k: scaling[k] for k in LLAMA3_KEYS}}


def rope_keys(config: RecurrentDepthConfig) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling``, as public implementations read them."""
    scaling = None if config.rope_llama3 is None else {"rope_type": "llama3", **config.rope_llama3}
    return {"rope_theta": config.rope_base, "rope_scaling": scaling}


def dtype_name(config: RecurrentDepthConfig) -> str:
    """The weights' dtype as a config.json says it."""
    return str(config.dtype or "float32").removeprefix("torch.")
