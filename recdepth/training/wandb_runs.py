"""Which W&B run a training run is: kept in the run folder and in its checkpoints, so that resuming continues it."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

FILE = "wandb_run.json"


@dataclass(frozen=True)
class WandbRun:
    """A W&B run and the folders that hold it.

    Offline, W&B starts a further folder whenever a run goes on; they are one run, by the id that they share.

    Attributes:
        id: of the run, unique in its project.
        project, entity: where it is; entity None is the user's own.
        folders: offline folders, oldest first; absolute. Empty for a run that was only online.
    """

    id: str
    project: str
    entity: str | None = None
    folders: tuple[Path, ...] = ()

    def sync_command(self) -> str:
        """The command that uploads the run: all its offline folders that are still there, oldest first."""
        here = [os.path.relpath(folder) for folder in self.folders if folder.is_dir()]
        return shlex.join(["wandb", "sync", *here])

    def write(self, run_folder: Path) -> None:
        """Write ``wandb_run.json``; folders are relative to it, so that outputs may be moved as a whole."""
        facts = {"id": self.id, "project": self.project, "entity": self.entity}
        folders = [os.path.relpath(folder, run_folder) for folder in self.folders]
        (run_folder / FILE).write_text(json.dumps({**facts, "folders": folders}, indent=2) + "\n", encoding="utf-8")

    def state(self) -> dict[str, Any]:
        """As plain types, for a checkpoint."""
        facts = {"id": self.id, "project": self.project, "entity": self.entity}
        return {**facts, "folders": [str(folder) for folder in self.folders]}

    @classmethod
    def of_state(cls, state: dict[str, Any], base: Path) -> WandbRun:
        """The inverse of :meth:`state`; relative folders are relative to ``base``."""
        folders = tuple(Path(os.path.normpath(base.absolute() / folder)) for folder in state["folders"])
        return cls(state["id"], state["project"], state["entity"], folders)


def wandb_run_of(run_folder: Path) -> WandbRun | None:
    """The W&B run that a run folder was logged to; None if to none."""
    path = run_folder / FILE
    if not path.is_file():
        return None
    return WandbRun.of_state(json.loads(path.read_text(encoding="utf-8")), run_folder)


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
