"""Where metrics go: always ``metrics.jsonl``, and W&B or another Lightning logger by choice."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class MetricsFile(Logger):
    """Appends every logged set of metrics as one JSON line: step, seconds since the start, and the metrics.

    Numbers that JSON lacks (nan, inf) are written as null.

    Args:
        path: the file; its folder exists.

    Attributes:
        latest: the newest value of every metric.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.latest: dict[str, float] = {}
        self._began = time.monotonic()
        self._create()

    @rank_zero_only
    def _create(self) -> None:
        self.path.touch()
        end = self.path.read_bytes().rfind(b"\n") + 1
        if end < self.path.stat().st_size:  # a kill or a full disk has cut the last line off
            os.truncate(self.path, end)

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        numbers = {name: float(value) for name, value in metrics.items()}
        self.latest.update(numbers)
        row: dict[str, Any] = {"step": step, "seconds": round(time.monotonic() - self._began, 3)}
        row |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in ``.hydra/`` beside the file."""


def wandb_logger(
    save_dir: str,
    mode: Literal["offline", "online", "disabled"] = "offline",
    project: str = "recdepth",
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] = (),
    continue_run: bool = True,
    id: str | None = None,
) -> WandbLogger:
    """A W&B logger with a run of its own, or with the one that is resumed; offline needs neither login nor network.

    Args:
        save_dir: the run folder; W&B writes to ``wandb/`` in it.
        mode: offline keeps the run on disk for ``wandb sync``.
        project, entity, name, group, job_type, tags: as in ``wandb.init``.
        continue_run: whether a resumed run goes on in its W&B run; False gives it one of its own.
        id: of the W&B run to go on in; None for a new one.
    """
    logging.getLogger("wandb").setLevel(logging.ERROR)
    wandb.setup(wandb.Settings(silent=True))
    settings = wandb.Settings(silent=True, console="off", x_save_requirements=False)
    kwargs: dict[str, Any] = {"mode": mode, "entity": entity, "group": group, "job_type": job_type}
    kwargs |= {"tags": list(tags), "settings": settings, "reinit": "finish_previous"}
    # allow: an id that W&B knows is continued; offline it is noted, so that a later sync appends instead of overwriting
    kwargs |= {"id": id if continue_run else None, "resume": "allow"}
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    return WandbLogger(name=name, save_dir=save_dir, project=project, **kwargs)


def _wandb_runs(loggers: Iterable[Logger]) -> list[Any]:
    return [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]


@rank_zero_only
def log_table(loggers: Iterable[Logger], key: str, rows: list[dict[str, Any]]) -> None:
    """Log dictionaries with the same keys as a ``wandb.Table`` (where there is a W&B logger)."""
    for run in _wandb_runs(loggers):
        columns: list[str | int] = list(rows[0]) if rows else []
        run.log({key: wandb.Table(columns=columns, data=[[_cell(row[str(c)]) for c in columns] for row in rows])})


@rank_zero_only
def log_image(loggers: Iterable[Logger], key: str, path: Path) -> None:
    """Log a picture file (where there is a W&B logger)."""
    for run in _wandb_runs(loggers):
        run.log({key: wandb.Image(str(path))})


@rank_zero_only
def log_html(loggers: Iterable[Logger], key: str, path: Path) -> None:
    """Log a self-contained page as it is (where there is a W&B logger)."""
    for run in _wandb_runs(loggers):
        run.log({key: wandb.Html(path.read_text(encoding="utf-8"), inject=False)})  # else it links a style sheet


@rank_zero_only
def log_model(loggers: Iterable[Logger], folder: Path) -> None:
    """Log an exported model folder as an artifact (where there is a W&B logger)."""
    for run in _wandb_runs(loggers):
        artifact = wandb.Artifact(f"model-{run.id}", type="model")
        artifact.add_dir(str(folder))
        run.log_artifact(artifact)


def _cell(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) or value is None else json.dumps(value, default=str)
