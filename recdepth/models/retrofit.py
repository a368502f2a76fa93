"""Make a pretrained decoder recurrent: some of its layers become the prelude, the looped core and the coda (McLeish et
al. 2025, arXiv 2511.07384).

The adapter starts with weight zero on the state and the identity on the embedding. So, before any training, the model
computes what the layers that were kept compute, whatever the number of recurrences; with all layers kept, what the
original computes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from .config import RecurrentDepthConfig
from .families.shared import llama_rope, need, refuse, token_ids
from .loading import is_gguf, need_gguf, parse_config, snapshot
from .recurrent import RecurrentDepthForCausalLM
from .weights import FLOATS, Weights, check_weights, fill, stored_dtype

#: Architectures whose layers are these blocks.
LLAMA_LIKE = ("llama", "mistral")
Layers = int | list[int] | None

_KEYS = {
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}
_PARTS = {
    "norm_1": ("input_layernorm",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.o_proj",),
    "norm_3": ("post_attention_layernorm",),
    "mlp.fc": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.proj": ("mlp.down_proj",),
}
_TOP = {
    "embedding.weight": ("model.embed_tokens.weight",),
    "norm.weight": ("model.norm.weight",),
    "head.weight": ("lm_head.weight",),
    "injection.weight": (),  # there is none in the original
}


def retrofit(base: str | Path, **settings: Any) -> RecurrentDepthForCausalLM:
    """A recurrent-depth model from a pretrained Llama-like decoder, ready to be fine-tuned; in ``eval`` mode.

    Args:
        base: a hub id, a folder with ``config.json`` and safetensors, or a GGUF file, which is dequantised to float32.
        settings: see :func:`retrofit_config`.

    Raises:
        ValueError: for a base that is not Llama-like or cannot be read, or layers that it does not have.
    """
    return retrofit_model(retrofit_config(str(base), **settings))


def retrofit_config(
    base: str,
    prelude_layers: int | list[int] = 4,
    core_layers: int | list[int] | None = None,
    coda_layers: int | list[int] = 4,
    max_position_embeddings: int | None = None,
    mean_recurrence: int = 4,
    backprop_depth: int = 4,
    vocab_size: int | None = None,
    **ids: int | None,
) -> RecurrentDepthConfig:
    """The configuration of a pretrained decoder made recurrent. Reads the base's configuration, not its weights.

    Args:
        base: see :func:`retrofit`.
        prelude_layers: the base's layers before the loop: its first so many, or a list of their numbers, from 0.
        core_layers: those inside the loop: all between prelude and coda (None), the last so many of these (what
            2511.07384 does: layers right behind the prelude are dropped), or a list.
        coda_layers: those behind the loop: its last so many, or a list.
        max_position_embeddings: the context, in tokens; None takes the base's.
        mean_recurrence, backprop_depth: see :class:`RecurrentDepthConfig`.
        vocab_size: token ids that are needed; there are as many as the base has.
        ids: ``bos_token_id``, ``eos_token_id``, ``pad_token_id``, instead of the base's.

    Raises:
        ValueError: naming the setting.
    """
    raw = base_config(base)
    layers = _layers(raw["num_hidden_layers"], prelude_layers, core_layers, coda_layers)
    if vocab_size is not None and vocab_size > raw["vocab_size"]:
        raise ValueError(
            f"base={base} has {raw['vocab_size']} tokens, the tokenizer {vocab_size}; take the base's own tokenizer"
        )
    return RecurrentDepthConfig(
        **{ours: raw[theirs] for ours, theirs in _KEYS.items()},
        **llama_rope(raw if "rope_parameters" in raw else {"rope_theta": 10_000.0, **raw}),  # transformers' default
        **{**token_ids(raw), **ids},
        vocab_size=raw["vocab_size"],
        num_key_value_heads=raw.get("num_key_value_heads"),
        norm_eps=raw["rms_norm_eps"],
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        prelude_layers=len(layers["prelude"]),
        core_layers=len(layers["core"]),
        coda_layers=len(layers["coda"]),
        max_position_embeddings=raw["max_position_embeddings"]
        if max_position_embeddings is None
        else max_position_embeddings,
        norm_placement="pre",
        state_norm="none",
        qk_bias=False,
        embedding_scale=1.0,
        mean_recurrence=mean_recurrence,
        backprop_depth=backprop_depth,
        retrofit={"base": base, "layers": layers},
    )


def retrofit_model(config: RecurrentDepthConfig) -> RecurrentDepthForCausalLM:
    """The model of a configuration from :func:`retrofit_config`, with the base's weights and dtype; ``eval`` mode.

    Raises:
        ValueError: when the base's weights cannot be read, or are not what its configuration says.
    """
    assert config.retrofit is not None
    base, layers = config.retrofit["base"], config.retrofit["layers"]
    tensors = _dequantised(base) if is_gguf(base) else Weights(snapshot(base))
    with torch.device("meta"):
        model = RecurrentDepthForCausalLM(config)
    form = _Llama(layers, tensors.shapes)
    check_weights(base, model, form, tensors)
    dtype = stored_dtype(tensors, form)
    fill(model, form, tensors, dtype, torch.device("cpu"))
    assert model.injection is not None
    width = config.hidden_size
    weight = torch.cat([torch.zeros(width, width), torch.eye(width)], dim=1).to(dtype)
    model.injection.weight = torch.nn.Parameter(weight)
    model.config.dtype = dtype
    return model.eval()


@functools.lru_cache(maxsize=8)
def base_config(base: str) -> dict[str, Any]:
    """A base's configuration as in its ``config.json``, when it is one that can be made recurrent.

    Raises:
        ValueError: when it is not.
    """
    try:
        raw = _raw_config(base)
    except (OSError, ValueError) as error:
        raise ValueError(f"base={base} cannot be read: {error}") from error
    if raw.get("model_type") not in LLAMA_LIKE:
        raise ValueError(
            f"base={base} is of model_type={raw.get('model_type')!r}; only Llama-like decoders"
            f" ({', '.join(LLAMA_LIKE)}) can be made recurrent"
        )
    keys = [*_KEYS.values(), "num_hidden_layers", "vocab_size", "max_position_embeddings", "rms_norm_eps"]
    need(raw, keys, raw["model_type"])
    head_dim = raw["hidden_size"] // raw["num_attention_heads"]
    plain = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "sliding_window": None}
    raw = {key: value for key, value in raw.items() if not (key == "head_dim" and value is None)}
    refuse(raw, {**plain, "head_dim": head_dim}, raw["model_type"])
    return raw


def _raw_config(base: str) -> dict[str, Any]:
    if not is_gguf(base):
        return parse_config(snapshot(base, ["config.json"]))
    need_gguf(base)
    path = Path(base)
    return AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()


def _layers(total: int, prelude: Layers, core: Layers, coda: Layers) -> dict[str, list[int]]:
    """The base's layers that each part gets."""
    for name, count in {"prelude": prelude, "coda": coda}.items():
        if isinstance(count, int) and count < 0:
            raise ValueError(f"{name}_layers={count} must be at least 0")
    first = list(range(prelude)) if isinstance(prelude, int) else list(prelude or [])
    last = list(range(total - coda, total)) if isinstance(coda, int) else list(coda or [])
    between = list(range(max(first, default=-1) + 1, min(last, default=total)))
    if isinstance(core, int):
        if not 1 <= core <= len(between):
            raise ValueError(f"core_layers={core} must lie between 1 and the {len(between)} between prelude and coda")
        between = between[-core:]
    elif core is not None:
        between = list(core)
    parts = {"prelude": first, "core": between, "coda": last}
    for name, numbers in parts.items():
        if wrong := [n for n in numbers if not 0 <= n < total]:
            given = {"prelude": prelude, "core": core, "coda": coda}[name]
            raise ValueError(f"{name}_layers={given}: the base has layers 0 … {total - 1}, and no {wrong[0]}")
    if not between:
        raise ValueError(f"prelude_layers={prelude} and coda_layers={coda} leave none of {total} layers for the core")
    return parts


class _Llama:
    """The names of a Llama's tensors for each of ours, given which layers are taken; a family of its own."""

    FIXED: Mapping[str, Any] = {}
    CAPABILITIES: Mapping[str, Any] = {}

    def __init__(self, layers: dict[str, list[int]], shapes: Mapping[str, Any]):
        self._layers = layers
        taken = {n for numbers in layers.values() for n in numbers}
        self.IGNORED = tuple(
            name
            for name in shapes
            if name.endswith("rotary_emb.inv_freq")
            or (name.startswith("model.layers.") and int(name.split(".")[2]) not in taken)
        )

    def names(self, ours: str) -> tuple[str, ...]:
        if ours in _TOP:
            return _TOP[ours]
        part, index, rest = ours.split(".", 2)
        number = self._layers[part][int(index)]
        return tuple(f"model.layers.{number}.{name}.weight" for name in _PARTS[rest.removesuffix(".weight")])


# ---------------------------------------------------------------------------------------------------------------- GGUF


class _Tensors:
    """Tensors in memory, read as :class:`Weights` are."""

    def __init__(self, tensors: dict[str, Tensor]):
        self._tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        stored = {dtype: name for name, dtype in FLOATS.items()}
        self.dtypes = {name: stored[tensor.dtype] for name, tensor in tensors.items()}

    def read(self, wanted: Mapping[str, tuple[str, ...]], place: Callable[[str, list[Tensor]], None]) -> None:
        """See :meth:`Weights.read`."""
        for key, names in wanted.items():
            place(key, [self._tensors[name] for name in names])


def _dequantised(base: str) -> _Tensors:
    path, config = Path(base), AutoConfig.for_model(**base_config(base))  # reading it again would take seconds
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, config=config, dtype=torch.float32)
    return _Tensors(model.state_dict())
