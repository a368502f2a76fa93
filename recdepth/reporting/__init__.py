"""Pictures and tables of runs."""

from .comparison import plot_comparison, print_comparison, write_comparison
from .curves import plot_depth_loss, plot_training_curves
from .overview import read_overview, write_overview, write_sweep_report
from .page import write_pictures, write_report
from .status import recorded
from .stream import Stream
from .wandb_run import WandbRun, wandb_run_of
from .wavefront import WavefrontGrid, plot_wavefront
from .wavefront_page import WavefrontBatch, wavefront_data, write_wavefront_page

__all__ = [
    "Stream",
    "WandbRun",
    "WavefrontBatch",
    "WavefrontGrid",
    "plot_comparison",
    "plot_depth_loss",
    "plot_training_curves",
    "plot_wavefront",
    "print_comparison",
    "read_overview",
    "recorded",
    "wandb_run_of",
    "wavefront_data",
    "write_comparison",
    "write_overview",
    "write_pictures",
    "write_report",
    "write_sweep_report",
    "write_wavefront_page",
]
