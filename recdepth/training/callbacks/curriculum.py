"""Raising the difficulty as the model learns."""

from __future__ import annotations

import logging
from typing import Any

from lightning import Callback, LightningModule, Trainer

from recdepth.evaluation import HeldOut, evaluate
from recdepth.sampling import Sampler

from ..module import TrainingModule
from ..ranges import at_least_one
from ..seams import eager_seams
from .interrupt import stop_if_asked
from .throughput import not_training

log = logging.getLogger(__name__)


class Curriculum(Callback):
    """Raises the task's level, and the mean depth with it, whenever enough answers at the present level are right.

    Logs ``curriculum/level`` and ``curriculum/accuracy``. The level and the mean depth are part of the checkpoint.

    Args:
        sampler: answers the held-out prompts.
        threshold: accuracy that is enough.
        every_n_steps: optimizer steps between two looks.
        items: held-out prompts, of the present level.
        recurrence_per_level: added to the mean depth with every level.
        max_recurrence: the mean depth goes no higher.

    Raises:
        ValueError: for values out of range, or data without levels.
    """

    def __init__(
        self,
        sampler: Sampler,
        threshold: float = 0.9,
        every_n_steps: int = 100,
        items: int = 32,
        recurrence_per_level: float = 0.0,
        max_recurrence: float = 32.0,
    ):
        at_least_one(every_n_steps=every_n_steps, items=items)
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold} must be above 0 and at most 1")
        if recurrence_per_level < 0:
            raise ValueError(f"recurrence_per_level={recurrence_per_level} must be at least 0")
        self.sampler = sampler
        self.threshold = threshold
        self.every_n_steps = every_n_steps
        self.items = items
        self.recurrence_per_level = recurrence_per_level
        self.max_recurrence = max_recurrence
        self._mean: float | None = None
        self._looked_at = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(getattr(trainer.datamodule, "task", None), "level"):  # type: ignore[attr-defined]
            raise ValueError("callbacks.curriculum needs a task with levels; take data=pointer_chase, or leave it out")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._mean = pl_module.mean_recurrence if self._mean is None else self._mean
        pl_module.set_mean_recurrence(self._mean)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if step == self._looked_at or step % self.every_n_steps:
            return
        self._looked_at = step
        data = trainer.datamodule  # type: ignore[attr-defined]
        with not_training(trainer), eager_seams(pl_module.model):
            accuracy = evaluate(
                self.sampler,
                pl_module.model,
                HeldOut.of(data, self.items, "validation"),
                batch_size=self.items,
                seed=pl_module.seed,
                on_batch=lambda _: stop_if_asked(trainer),
            ).accuracy
        if accuracy >= self.threshold and data.level < data.max_level:
            data.level += 1
            assert self._mean is not None
            self._mean = min(self._mean + self.recurrence_per_level, max(self.max_recurrence, self._mean))
            pl_module.set_mean_recurrence(self._mean)
            log.info(f"Step {step}: accuracy {accuracy:.0%}, on to level {data.level}, mean depth {self._mean:g}")
        metrics = {"curriculum/level": float(data.level), "curriculum/accuracy": accuracy}
        pl_module.log_dict(metrics, logger=False)  # the module's own logging follows log_every_n_steps
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def state_dict(self) -> dict[str, Any]:
        return {"mean_recurrence": self._mean, "looked_at": self._looked_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._mean, self._looked_at = state_dict["mean_recurrence"], state_dict["looked_at"]
