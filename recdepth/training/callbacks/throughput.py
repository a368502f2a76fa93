"""Training speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs ``train/tokens_per_second``: token positions trained on per second, without validation and curriculum."""

    def __init__(self) -> None:
        self._tokens = 0
        self._since = time.monotonic()
        self._paused = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tokens, self._since = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._tokens += batch["input_ids"].numel() * trainer.world_size
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (trainer.fit_loop.total_batch_idx + 1) % every:  # batch_idx is of the epoch
            return
        now = time.monotonic()
        pl_module.log("train/tokens_per_second", self._tokens / max(now - self._since, 1e-9))
        self._tokens, self._since = 0, now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.leave_out(time.monotonic() - self._paused)

    def leave_out(self, seconds: float) -> None:
        """Do not count so much of the time since the last number."""
        self._since += seconds


@contextmanager
def not_training(trainer: Trainer) -> Iterator[None]:
    """For long work inside other callbacks: its time does not count as training."""
    began = time.monotonic()
    yield
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Throughput):
            callback.leave_out(time.monotonic() - began)
