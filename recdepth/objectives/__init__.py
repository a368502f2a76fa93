"""Training objectives: ``(model, batch, progress) -> Loss``."""

from .base import Loss, Objective
from .deep import DeepPass, WindowCache, deep_pass
from .lanes import IndependentDepths, SingleLanes, Staircase
from .next_token import NextToken
from .terms import Consistency, Contraction, DepthConsistency, DraftExposure, StateNoise, Term, WavefrontLoss
from .wave import Plan, WaveRun
from .weighted import Weighted

__all__ = [
    "Consistency",
    "Contraction",
    "DeepPass",
    "DepthConsistency",
    "DraftExposure",
    "IndependentDepths",
    "Loss",
    "NextToken",
    "Objective",
    "Plan",
    "SingleLanes",
    "Staircase",
    "StateNoise",
    "Term",
    "WaveRun",
    "WavefrontLoss",
    "Weighted",
    "WindowCache",
    "deep_pass",
]
