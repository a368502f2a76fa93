"""Recurrent-depth models: configuration, layers, cache and loading."""

from .cache import Cache, Depth, Flight, KVCache, KVPolicy, Slot, Span
from .compilation import Places, Seams, can_compile, compiled_capacity, compiled_width, sampling_seams
from .config import RecurrentDepthConfig
from .depth import sample_depth
from .hf_cache import RecurrentCache
from .loading import load_config, load_model, load_tokenizer
from .recurrent import RecurrentDepthForCausalLM, RecurrentDepthOutput

__all__ = [
    "Cache",
    "Depth",
    "Flight",
    "KVCache",
    "KVPolicy",
    "Places",
    "RecurrentCache",
    "RecurrentDepthConfig",
    "RecurrentDepthForCausalLM",
    "RecurrentDepthOutput",
    "Seams",
    "Slot",
    "Span",
    "can_compile",
    "compiled_capacity",
    "compiled_width",
    "load_config",
    "load_model",
    "load_tokenizer",
    "sample_depth",
    "sampling_seams",
]
