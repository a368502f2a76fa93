"""What the sampler cares about, on the validation batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer

from recdepth.evaluation import SamplerView

from ..module import Batch, TrainingModule
from ..ranges import at_least_one
from .first_batches import FirstBatches


class WavefrontView(FirstBatches):
    """Logs how a wavefront fares on the first validation batches, with fixed places and noise.

    ``val/draft_accuracy_depth_<d>``: share of right drafts of lanes of that age, on the model's own drafts.
    ``val/flips_per_token``: drafts that changed, per lane. ``val/recurrences_to_convergence``: until the state moves
    less than ``threshold`` in a recurrence, the largest depth where it does not. ``val/kv_agreement``: share of
    positions whose prediction at r̄ is the same with shared as with per-depth KV.

    Args:
        depths: recurrences at which drafts are looked at.
        threshold: ε of one recurrence.
        width: lanes of a window.
        headway: lanes opened a step.
        windows: per row.
        batches: validation batches used.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        depths: Sequence[int] = (1, 2, 4, 8),
        threshold: float = 0.03,
        width: int = 8,
        headway: int = 2,
        windows: int = 2,
        batches: int = 2,
    ):
        if not depths:
            raise ValueError("depths=[] must name a depth")
        at_least_one(depths=min(depths), width=width, headway=headway, windows=windows, batches=batches)
        if not threshold > 0:
            raise ValueError(f"threshold={threshold} must be above 0")
        self.settings: dict[str, Any] = {"depths": tuple(depths), "threshold": threshold, "width": width}
        self.settings |= {"headway": headway, "windows": windows}
        super().__init__(batches)
        self._view = SamplerView(**self.settings)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._view = SamplerView(**self.settings)

    def look(self, module: TrainingModule, batch: Batch) -> None:
        self._view.add(module.model, batch["input_ids"], batch["labels"], module.validation_depth, module.seed)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, value in self._view.metrics().items():
            pl_module.log(f"val/{name}", value, sync_dist=True)
