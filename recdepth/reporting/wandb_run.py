"""Which W&B run a run folder belongs to, and the offline folders that hold it."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import write_whole

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

    def unsynced(self) -> list[Path]:
        """The offline folders that W&B has not uploaded yet (it leaves a mark where it has), oldest first."""
        return [folder for folder in self.folders if folder.is_dir() and not list(folder.glob("*.wandb.synced"))]

    def write(self, run_folder: Path) -> None:
        """Write ``wandb_run.json``; folders are relative to it, so that outputs may be moved as a whole."""
        facts = {"id": self.id, "project": self.project, "entity": self.entity}
        folders = [os.path.relpath(folder, run_folder) for folder in self.folders]
        write_whole(run_folder / FILE, json.dumps({**facts, "folders": folders}, indent=2) + "\n")

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
    """The W&B run that a run folder was logged to; None if to none.

    Raises:
        ValueError: for a ``wandb_run.json`` that is not what it should be.
    """
    path = run_folder / FILE
    if not path.is_file():
        return None
    try:
        return WandbRun.of_state(json.loads(path.read_text(encoding="utf-8")), run_folder)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks id, project, entity or folders") from error
