"""Pictures and tables of runs."""

from .comparison import plot_comparison, print_comparison, write_comparison
from .curves import plot_depth_loss, plot_training_curves
from .page import write_pictures, write_report
from .status import recorded
from .wavefront import WavefrontGrid, plot_wavefront

__all__ = [
    "WavefrontGrid",
    "plot_comparison",
    "plot_depth_loss",
    "plot_training_curves",
    "plot_wavefront",
    "print_comparison",
    "recorded",
    "write_comparison",
    "write_pictures",
    "write_report",
]
