"""The progress bar."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from ..module import TrainingModule


class Progress(ProgressBar):
    """Loss, depth, tokens/s and what is left: a live bar on a terminal, else a plain line every few seconds.

    Args:
        every_seconds: between two plain lines.
    """

    def __init__(self, every_seconds: float = 10.0):
        super().__init__()
        self.every_seconds = every_seconds
        self._enabled = True
        self._console = Console(stderr=True)
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        self._printed = self._began = 0.0

    def disable(self) -> None:
        self._enabled = False
        self._stop()

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._printed = time.monotonic()
        if self._enabled and self._console.is_terminal:
            columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = RichProgress(*columns, console=self._console, transient=False)
            self._task = self._bar.add_task("starting", total=1.0)
            self._bar.start()
        elif self._enabled:
            self._print("training starts")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        now = time.monotonic()
        if self._bar is not None:
            if now - self._printed > 0.2:
                self._printed = now
                self._bar.update(self._task, completed=pl_module.progress, description=self._text(trainer, pl_module))
        elif self._enabled and now - self._printed >= self.every_seconds:
            self._printed = now
            self._print(f"{self._text(trainer, pl_module)}  {now - self._began:.0f} s")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            assert isinstance(pl_module, TrainingModule)
            self._bar.update(self._task, description=self._text(trainer, pl_module) + "  validating")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        text = self._text(trainer, pl_module)
        if self._bar is not None:
            self._bar.update(self._task, completed=pl_module.progress, description=text)
        elif self._enabled:
            self._print(f"{text}  {time.monotonic() - self._began:.0f} s, training is done")
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def print(self, *args: Any, **kwargs: Any) -> None:
        self._print(" ".join(map(str, args)))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _text(self, trainer: Trainer, module: TrainingModule) -> str:
        seen = trainer.callback_metrics
        limit = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
        parts = [f"{module.progress:4.0%}  step {trainer.global_step}{limit}"]
        for name, label, form in (
            ("train/loss", "loss", ".3f"),
            ("train/depth", "depth", ".0f"),
            ("train/tokens_per_second", "tokens/s", ",.0f"),
            ("val/loss", "val", ".3f"),
        ):
            if name in seen:
                parts.append(f"{label} {float(seen[name]):{form}}")
        return "  ".join(parts)
