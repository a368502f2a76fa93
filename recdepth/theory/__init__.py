"""Closed forms for what samplers cost."""

from .cost_model import Cost, autoregressive_cost, speedup_limit, wavefront_cost

__all__ = ["Cost", "autoregressive_cost", "speedup_limit", "wavefront_cost"]
