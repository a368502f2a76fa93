"""Lightning callbacks."""

from .checkpoint import Checkpoint
from .curriculum import Curriculum
from .depth_loss import DepthLoss
from .export import Export
from .interrupt import StopOnCtrlC
from .progress import Progress
from .sampler_evaluation import SamplerEvaluation
from .sampler_view import WavefrontView
from .steps import StepAxis
from .throughput import Throughput

__all__ = [
    "Checkpoint",
    "Curriculum",
    "DepthLoss",
    "Export",
    "Progress",
    "SamplerEvaluation",
    "StepAxis",
    "StopOnCtrlC",
    "Throughput",
    "WavefrontView",
]
