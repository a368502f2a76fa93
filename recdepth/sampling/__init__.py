"""Samplers for recurrent-depth models: one engine, and the policies that tell the samplers apart."""

from .base import Sampler
from .exits import EXITS, KL, ArgmaxStability, Cosine, EntropyDiff, Exit, LatentDiff
from .generation import SampledOutput, generate
from .policies import NOISE_SCHEDULES, Policy
from .presets import Adaptive, Autoregressive, DiffusionForcing, Exact, Speculative
from .registry import SAMPLERS, make_sampler
from .replay import LaneView, Replay
from .result import SampleResult, SampleStats
from .spare import forget_caches
from .support import capabilities
from .tokens import TokenChooser
from .trace import Trace, Tracer, Tracers, TraceStep
from .wavefront import Wavefront
from .width import auto_width, forget_widths

__all__ = [
    "EXITS",
    "KL",
    "NOISE_SCHEDULES",
    "SAMPLERS",
    "Adaptive",
    "ArgmaxStability",
    "Autoregressive",
    "Cosine",
    "DiffusionForcing",
    "EntropyDiff",
    "Exact",
    "Exit",
    "LaneView",
    "LatentDiff",
    "Policy",
    "Replay",
    "SampleResult",
    "SampleStats",
    "SampledOutput",
    "Sampler",
    "Speculative",
    "TokenChooser",
    "Trace",
    "TraceStep",
    "Tracer",
    "Tracers",
    "Wavefront",
    "auto_width",
    "capabilities",
    "forget_caches",
    "forget_widths",
    "generate",
    "make_sampler",
]
