"""Pictures and tables of runs."""

from .comparison import plot_comparison, print_comparison, write_comparison
from .curves import plot_depth_loss, plot_training_curves
from .page import write_report
from .tuning import plot_tuning, print_tuning, sampler_yaml, write_tuning
from .wavefront import WavefrontGrid, plot_wavefront

__all__ = [
    "WavefrontGrid",
    "plot_comparison",
    "plot_depth_loss",
    "plot_training_curves",
    "plot_tuning",
    "plot_wavefront",
    "print_comparison",
    "print_tuning",
    "sampler_yaml",
    "write_comparison",
    "write_report",
    "write_tuning",
]
