"""Validation loss as a function of depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from ..module import Batch, TrainingModule
from ..ranges import at_least_one
from .first_batches import FirstBatches


class DepthLoss(FirstBatches):
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
        super().__init__(batches)
        self._sums: dict[int, Tensor] = {}
        self._count: Tensor | int = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        mean = pl_module.validation_depth
        self._sums = dict.fromkeys(sorted({*self.depths, mean, 2 * mean}), torch.zeros((), device=pl_module.device))
        self._count = 0

    def look(self, module: TrainingModule, batch: Batch) -> None:
        count = (batch["labels"][:, 1:] != -100).sum()
        self._count = self._count + count
        for depth in self._sums:
            loss = module.model(batch["input_ids"], labels=batch["labels"], num_steps=depth, seed=module.seed).loss
            self._sums[depth] = self._sums[depth] + loss * count

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(self._count, Tensor):
            for depth, total in self._sums.items():
                pl_module.log(f"val/loss_depth_{depth}", total / self._count, sync_dist=True)
