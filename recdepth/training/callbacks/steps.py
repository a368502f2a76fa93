"""The step that metrics are logged at."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer


class StepAxis(Callback):
    """Keeps the logged step equal to the optimizer steps taken, also in a run that was resumed.

    Lightning counts one too many after a checkpoint that was saved when training ended: on a restart it adds the step
    under way at the time of saving, of which there was none.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
