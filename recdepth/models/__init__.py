"""Recurrent-depth models: configuration, layers, cache and loading."""

from .cache import Cache, Depth, Flight, KVCache, KVPolicy, Slot, Span
from .compilation import can_compile
from .config import RecurrentDepthConfig
from .depth import sample_depth
from .loading import load_model, load_tokenizer
from .recurrent import RecurrentDepthForCausalLM, RecurrentDepthOutput

__all__ = [
    "Cache",
    "Depth",
    "Flight",
    "KVCache",
    "KVPolicy",
    "RecurrentDepthConfig",
    "RecurrentDepthForCausalLM",
    "RecurrentDepthOutput",
    "Slot",
    "Span",
    "can_compile",
    "load_model",
    "load_tokenizer",
    "sample_depth",
]
