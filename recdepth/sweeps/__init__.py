"""Multirun that loses nothing: job processes, status files, resuming, the summary at the end; and search by Optuna."""

from .callback import SweepRecords, finish
from .plan import placed, plan_of, write_plan

__all__ = ["SweepRecords", "finish", "placed", "plan_of", "write_plan"]
