"""Keeping which W&B run a training run is, in the run folder and in its checkpoints, so that resuming continues it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from recdepth.reporting import WandbRun, wandb_run_of


def wandb_run_of_checkpoint(path: Path) -> WandbRun | None:
    """The W&B run of a checkpoint, by the run folder around it or, when it was taken elsewhere, by what is in it."""
    beside = wandb_run_of(path.absolute().parent.parent)
    checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    state = checkpoint.get("callbacks", {}).get(KeepWandbRun.__name__)
    within = WandbRun.of_state(state, path.parent) if state else None
    return beside if within is None or (beside is not None and beside.id == within.id) else within


class KeepWandbRun(Callback):
    """Writes the W&B run's id and folders into the run folder and into every checkpoint.

    Args:
        run_folder: gets ``wandb_run.json``.
        continued: the run that was resumed, if it goes on in this one.
    """

    def __init__(self, run_folder: Path, continued: WandbRun | None = None):
        self.run_folder = run_folder
        self.continued = continued
        self.run: WandbRun | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.run is not None or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and not logger.experiment.disabled:
                self.run = self._run_of(logger.experiment)
                self.run.write(self.run_folder)
                return

    def state_dict(self) -> dict[str, Any]:
        return self.run.state() if self.run is not None else {}

    def _run_of(self, run: Any) -> WandbRun:
        before = [known for known in (self.continued, wandb_run_of(self.run_folder)) if known and known.id == run.id]
        folders = [folder for known in before for folder in known.folders]
        if run.offline:
            folders.append(Path(run.dir).absolute().parent)
        entity = run.entity or (before[0].entity if before else None)
        return WandbRun(run.id, run.project, entity or None, tuple(dict.fromkeys(folders)))
