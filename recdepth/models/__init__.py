"""Recurrent-depth models: configuration, layers, cache and loading."""

from .cache import Buffers, Cache, Depth, Flight, KVCache, KVPolicy, Packing, Slot, Span
from .compilation import (
    WIDTHS,
    Places,
    Seams,
    attends_by_position,
    can_compile,
    compiled_capacity,
    compiled_width,
    sampling_seams,
)
from .config import RecurrentDepthConfig
from .depth import sample_depth
from .export import export_model
from .hf_cache import RecurrentCache
from .loading import load_config, load_model, load_tokenizer
from .recurrent import RecurrentDepthForCausalLM, RecurrentDepthOutput
from .retrofit import retrofit_config, retrofit_model

__all__ = [
    "WIDTHS",
    "Buffers",
    "Cache",
    "Depth",
    "Flight",
    "KVCache",
    "KVPolicy",
    "Packing",
    "Places",
    "RecurrentCache",
    "RecurrentDepthConfig",
    "RecurrentDepthForCausalLM",
    "RecurrentDepthOutput",
    "Seams",
    "Slot",
    "Span",
    "attends_by_position",
    "can_compile",
    "compiled_capacity",
    "compiled_width",
    "export_model",
    "load_config",
    "load_model",
    "load_tokenizer",
    "retrofit_config",
    "retrofit_model",
    "sample_depth",
    "sampling_seams",
]
