"""Validation loss as a function of depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ..module import TrainingModule
from ..ranges import at_least_one
from ..seams import eager_seams


class DepthLoss(Callback):
    """Logs ``val/loss_depth_{d}``: the loss on the first validation batches after exactly ``d`` recurrences.

    The noise of the initial state is fixed, so the numbers of one run and of runs with one seed are comparable.

    Args:
        depths: recurrences; the mean depth r̄ and 2·r̄ are added.
        batches: validation batches used.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(self, depths: Sequence[int] = (1, 2, 4, 8), batches: int = 4):
        at_least_one(depths=min(depths, default=1), batches=batches)
        self.depths = tuple(depths)
        self.batches = batches
        self._sums: dict[int, Tensor] = {}
        self._count: Tensor | int = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        mean = pl_module.validation_depth
        self._sums = dict.fromkeys(sorted({*self.depths, mean, 2 * mean}), torch.zeros((), device=pl_module.device))
        self._count = 0

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if batch_idx >= self.batches:
            return
        count = (batch["labels"][:, 1:] != -100).sum()
        self._count = self._count + count
        with trainer.precision_plugin.val_step_context(), eager_seams(pl_module.model):
            for depth in self._sums:
                loss = pl_module.model(
                    batch["input_ids"], labels=batch["labels"], num_steps=depth, seed=pl_module.seed
                ).loss
                self._sums[depth] = self._sums[depth] + loss * count

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(self._count, Tensor):
            for depth, total in self._sums.items():
                pl_module.log(f"val/loss_depth_{depth}", total / self._count, sync_dist=True)
