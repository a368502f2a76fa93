"""Pictures and tables of runs."""

from .comparison import plot_comparison, print_comparison, write_comparison
from .curves import plot_depth_loss, plot_training_curves, read_metrics
from .page import write_report
from .sweep import Job, JobStatus, Sweep, read_sweep, write_csv
from .sweep_figures import pareto_front, plot_metric_by_key, plot_parallel, plot_pareto
from .sweep_summary import print_sweep, summarize
from .wavefront import WavefrontGrid, plot_wavefront

__all__ = [
    "Job",
    "JobStatus",
    "Sweep",
    "WavefrontGrid",
    "pareto_front",
    "plot_comparison",
    "plot_depth_loss",
    "plot_metric_by_key",
    "plot_parallel",
    "plot_pareto",
    "plot_training_curves",
    "plot_wavefront",
    "print_comparison",
    "print_sweep",
    "read_metrics",
    "read_sweep",
    "summarize",
    "write_comparison",
    "write_csv",
    "write_report",
]
