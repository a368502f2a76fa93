"""Pictures and tables of runs."""

from .comparison import plot_comparison, print_comparison, write_comparison
from .curves import plot_depth_loss, plot_training_curves
from .frontier import Frontier, plot_frontier
from .page import write_report
from .wavefront import WavefrontGrid, plot_wavefront

__all__ = [
    "Frontier",
    "WavefrontGrid",
    "plot_comparison",
    "plot_depth_loss",
    "plot_frontier",
    "plot_training_curves",
    "plot_wavefront",
    "print_comparison",
    "write_comparison",
    "write_report",
]
