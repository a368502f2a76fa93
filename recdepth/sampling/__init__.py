"""Samplers for recurrent-depth models: one engine, and the policies that tell the samplers apart."""

from .exits import Exit, LatentDiff
from .policies import NOISE_SCHEDULES, Policy
from .presets import Adaptive, Autoregressive, DiffusionForcing, Exact, Sampler, Speculative
from .result import SampleResult, SampleStats
from .tokens import TokenChooser
from .trace import Trace, Tracer, TraceStep
from .wavefront import Wavefront

__all__ = [
    "NOISE_SCHEDULES",
    "Adaptive",
    "Autoregressive",
    "DiffusionForcing",
    "Exact",
    "Exit",
    "LatentDiff",
    "Policy",
    "SampleResult",
    "SampleStats",
    "Sampler",
    "Speculative",
    "TokenChooser",
    "Trace",
    "TraceStep",
    "Tracer",
    "Wavefront",
]
