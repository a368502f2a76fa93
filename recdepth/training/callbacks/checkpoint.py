"""Checkpoints, the last of them at the end of training."""

from __future__ import annotations

from pathlib import Path

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint


class Checkpoint(ModelCheckpoint):
    """Lightning's, arguments as there; ``last.ckpt`` is the end of training.

    Lightning's own has the last multiple of ``every_n_train_steps`` there: whoever resumes a finished run for longer
    would train the steps behind it once more.
    """

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self.save_last and self._last_global_step_saved != trainer.global_step:
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            if self._last_global_step_saved == trainer.global_step:
                self._save_last_checkpoint(trainer, candidates)
            else:  # another step is better by the metric that is monitored, and last.ckpt a link to it
                last = Path(self.format_checkpoint_name(candidates, self.CHECKPOINT_NAME_LAST))
                last.unlink(missing_ok=True)
                self._save_checkpoint(trainer, str(last))
                self.last_model_path = str(last)
