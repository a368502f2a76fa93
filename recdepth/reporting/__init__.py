"""Pictures and tables of runs."""

from .comparison import plot_comparison, print_comparison, write_comparison
from .curves import plot_depth_loss, plot_training_curves, read_metrics
from .frontier import Frontier, plot_frontier
from .model_card import write_model_card
from .overview import read_overview, write_overview, write_sweep_report
from .page import write_pictures, write_report
from .status import Status, recorded
from .stream import Stream
from .sweep import Job, Sweep, read_sweep, write_csv
from .sweep_figures import pareto_front, plot_metric_by_key, plot_parallel, plot_pareto
from .sweep_summary import print_sweep, summarize
from .tuning import plot_tuning, print_tuning, sampler_yaml, write_tuning
from .wandb_run import WandbRun, wandb_run_of
from .wavefront import WavefrontGrid, plot_wavefront
from .wavefront_page import WavefrontBatch, wavefront_data, write_wavefront_page

__all__ = [
    "Frontier",
    "Job",
    "Status",
    "Stream",
    "Sweep",
    "WandbRun",
    "WavefrontBatch",
    "WavefrontGrid",
    "pareto_front",
    "plot_comparison",
    "plot_depth_loss",
    "plot_frontier",
    "plot_metric_by_key",
    "plot_parallel",
    "plot_pareto",
    "plot_training_curves",
    "plot_tuning",
    "plot_wavefront",
    "print_comparison",
    "print_sweep",
    "print_tuning",
    "read_metrics",
    "read_overview",
    "read_sweep",
    "recorded",
    "sampler_yaml",
    "summarize",
    "wandb_run_of",
    "wavefront_data",
    "write_comparison",
    "write_csv",
    "write_model_card",
    "write_overview",
    "write_pictures",
    "write_report",
    "write_sweep_report",
    "write_tuning",
    "write_wavefront_page",
]
