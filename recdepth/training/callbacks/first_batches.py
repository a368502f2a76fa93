"""A look at the first validation batches."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning import Callback, LightningModule, Trainer

from ..module import Batch, TrainingModule
from ..seams import eager_seams


class FirstBatches(Callback):
    """Looks at the first batches of every validation, eagerly and without gradients.

    Args:
        batches: how many.
    """

    def __init__(self, batches: int):
        self.batches = batches

    @abstractmethod
    def look(self, module: TrainingModule, batch: Batch) -> None:
        """See one batch."""

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if batch_idx < self.batches:
            with trainer.precision_plugin.val_step_context(), eager_seams(pl_module.model):
                self.look(pl_module, batch)
