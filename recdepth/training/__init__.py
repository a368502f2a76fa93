"""Training: wiring and logging only. The maths is in models, objectives and sampling."""

from .callbacks import (
    Checkpoint,
    Curriculum,
    DepthLoss,
    Export,
    Progress,
    SamplerEvaluation,
    StepAxis,
    StopOnCtrlC,
    Throughput,
    WavefrontView,
)
from .comparison import Comparison
from .loggers import MetricsFile, wandb_logger
from .lora import Lora, has_adapters, without_adapters
from .module import TrainingModule
from .optimizers import MuonAdamW, parameter_groups
from .schedules import Constant, Cosine, Schedule, WarmupStableDecay
from .wandb_runs import KeepWandbRun, wandb_run_of_checkpoint

__all__ = [
    "Checkpoint",
    "Comparison",
    "Constant",
    "Cosine",
    "Curriculum",
    "DepthLoss",
    "Export",
    "KeepWandbRun",
    "Lora",
    "MetricsFile",
    "MuonAdamW",
    "Progress",
    "SamplerEvaluation",
    "Schedule",
    "StepAxis",
    "StopOnCtrlC",
    "Throughput",
    "TrainingModule",
    "WarmupStableDecay",
    "WavefrontView",
    "has_adapters",
    "parameter_groups",
    "wandb_logger",
    "wandb_run_of_checkpoint",
    "without_adapters",
]
