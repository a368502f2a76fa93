"""Samplers on tasks: accuracy with intervals, agreement, and speed at equal accuracy."""

from .calibrate import CalibrationLook, ExitCalibration, calibrate_exit
from .compare import compare, comparison_samplers
from .evaluate import Evaluation, agreement, evaluate
from .held_out import HeldOut, Prompt, Score
from .intervals import Interval, mean_interval, median_interval, paired_difference, wilson_interval
from .speed import Timings, machine_stamp, time_in_turn
from .traced import Traced, autoregressive_baseline, trace_call
from .tune import FinalCheck, Search, Tuner, Tuning
from .tune_bench import Decoding, ModelBench, TuneLog
from .view import SamplerView

__all__ = [
    "CalibrationLook",
    "Decoding",
    "Evaluation",
    "ExitCalibration",
    "FinalCheck",
    "HeldOut",
    "Interval",
    "ModelBench",
    "Prompt",
    "SamplerView",
    "Score",
    "Search",
    "Timings",
    "Traced",
    "TuneLog",
    "Tuner",
    "Tuning",
    "agreement",
    "autoregressive_baseline",
    "calibrate_exit",
    "compare",
    "comparison_samplers",
    "evaluate",
    "machine_stamp",
    "mean_interval",
    "median_interval",
    "paired_difference",
    "time_in_turn",
    "trace_call",
    "wilson_interval",
]
