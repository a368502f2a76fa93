"""Closed forms for what samplers cost, and for the memory of training."""

from .cost_model import Cost, autoregressive_cost, speedup_limit, wavefront_cost
from .memory import TrainingMemory, training_memory, weights

__all__ = [
    "Cost",
    "TrainingMemory",
    "autoregressive_cost",
    "speedup_limit",
    "training_memory",
    "wavefront_cost",
    "weights",
]
