"""Training: wiring and logging only. The maths is in models, objectives and sampling."""

from .callbacks import (
    Curriculum,
    DepthLoss,
    Export,
    Progress,
    SamplerEvaluation,
    StopOnCtrlC,
    Throughput,
    WavefrontView,
)
from .comparison import Comparison
from .loggers import MetricsFile, wandb_logger
from .module import TrainingModule
from .optimizers import MuonAdamW, parameter_groups
from .schedules import Constant, Cosine, Schedule, WarmupStableDecay

__all__ = [
    "Comparison",
    "Constant",
    "Cosine",
    "Curriculum",
    "DepthLoss",
    "Export",
    "MetricsFile",
    "MuonAdamW",
    "Progress",
    "SamplerEvaluation",
    "Schedule",
    "StopOnCtrlC",
    "Throughput",
    "TrainingModule",
    "WarmupStableDecay",
    "WavefrontView",
    "parameter_groups",
    "wandb_logger",
]
