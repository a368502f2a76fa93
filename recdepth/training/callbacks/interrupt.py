"""Ctrl-C during training."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)


class StopOnCtrlC(Callback):
    """The first Ctrl-C stops after the step under way, so that what is saved is whole; a second one stops at once."""

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._asked = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.check()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.check()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check()  # asked for while the end of training was saved

    def check(self) -> None:
        """Stop here if that was asked for."""
        if self._asked:
            raise KeyboardInterrupt

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log.info("Stopping after this step (Ctrl-C again: at once) …")


def stop_if_asked(trainer: Trainer) -> None:
    """For long work inside other callbacks: stop here after a Ctrl-C, as between two batches."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StopOnCtrlC):
            callback.check()
