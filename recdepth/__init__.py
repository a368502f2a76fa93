"""Train, fine-tune and sample recurrent-depth (looped) language models."""

from transformers import AutoConfig, AutoModelForCausalLM

from . import models, sampling
from .models import RecurrentDepthConfig, RecurrentDepthForCausalLM, export_model, load_model, load_tokenizer
from .models.generation import register_samplers
from .models.retrofit import retrofit

AutoConfig.register(RecurrentDepthConfig.model_type, RecurrentDepthConfig)
AutoModelForCausalLM.register(RecurrentDepthConfig, RecurrentDepthForCausalLM)
register_samplers(sampling.generate)

__version__ = "0.1.0"
__all__ = [
    "RecurrentDepthConfig",
    "RecurrentDepthForCausalLM",
    "export_model",
    "load_model",
    "load_tokenizer",
    "models",
    "retrofit",
    "sampling",
]
