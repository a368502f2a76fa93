"""The LightningModule: it wires model, objective, optimizer and schedule, and holds no maths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Timer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recdepth.models import RecurrentDepthForCausalLM
from recdepth.objectives import Objective

from .lora import has_adapters
from .optimizers import ParameterGroup, parameter_groups
from .schedules import Schedule
from .seams import eager_seams

Batch = dict[str, Tensor]


class TrainingModule(LightningModule):
    """Training of a recurrent-depth model.

    The randomness of a training step (depth, noise) is a function of the seed and the number of batches seen, so a
    resumed run continues as if it had never stopped, whatever validation drew in between.

    Args:
        model: the model.
        objective: ``(model, batch, progress) -> Loss``.
        optimizer: called with :func:`parameter_groups` of the model.
        schedule: factor on the learning rates by progress.
        seed: of the training steps and of the validation noise.
    """

    def __init__(
        self,
        model: RecurrentDepthForCausalLM,
        objective: Objective,
        optimizer: Callable[[list[ParameterGroup]], Optimizer],
        schedule: Schedule,
        seed: int = 0,
    ):
        super().__init__()
        self.model = model
        self.objective = objective
        self.seed = seed
        self._make_optimizer = optimizer
        self._schedule = schedule
        self._batches_seen = 0
        self._clock_start: float | None = None  # seconds of training when the first step was done (after compiling)
        self._adapted = has_adapters(model)
        self.strict_loading = not self._adapted  # checkpoints hold no frozen weights then

    @property
    def mean_recurrence(self) -> float:
        """r̄, the mean depth in training: the objective's, or else the model's."""
        return getattr(self.objective, "mean_recurrence", None) or float(self.model.config.mean_recurrence)

    def set_mean_recurrence(self, mean: float) -> None:
        """Let objective and model train at another mean depth from now on (curricula)."""
        if hasattr(self.objective, "mean_recurrence"):
            self.objective.mean_recurrence = mean
        self.model.config.mean_recurrence = max(1, round(mean))

    @property
    def validation_depth(self) -> int:
        """Recurrences of ``val/loss``."""
        return max(1, round(self.mean_recurrence))

    @property
    def progress(self) -> float:
        """Fraction of the training that is done (0 … 1), by steps or by time, whichever is further."""
        return self._progress(self.global_step)

    def _progress(self, step: float) -> float:
        trainer = self.trainer
        done = step / trainer.max_steps if trainer.max_steps > 0 else 0.0
        if trainer.max_steps <= 0 and trainer.max_epochs and trainer.max_epochs > 0:
            done = step / trainer.estimated_stepping_batches
        timer = next((c for c in trainer.callbacks if isinstance(c, Timer)), None)  # type: ignore[attr-defined]
        if timer is not None and self._clock_start is not None:
            elapsed, remaining = timer.time_elapsed(), timer.time_remaining()
            assert remaining is not None
            done = max(done, (elapsed - self._clock_start) / max(elapsed + remaining - self._clock_start, 1e-9))
        return min(max(done, 0.0), 1.0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        torch.manual_seed(((self.seed * 1_000_003 + self._batches_seen) * 1024 + self.global_rank) % 2**63)
        self._batches_seen += 1
        loss = self.objective(self.model, batch, self.progress)
        self.log("train/loss", loss.mean.detach())
        self.log_dict({f"train/{name}": value for name, value in loss.metrics.items()})
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss.mean

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self._clock_start is None:
            timer = next((c for c in self.trainer.callbacks if isinstance(c, Timer)), None)  # type: ignore[attr-defined]
            self._clock_start = timer.time_elapsed() if timer is not None else 0.0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        with eager_seams(self.model):  # a compiled model would be compiled again, without gradients
            out = self.model(
                batch["input_ids"], labels=batch["labels"], num_steps=self.validation_depth, seed=self.seed
            )
        self.log("val/loss", out.loss, batch_size=int((batch["labels"][:, 1:] != -100).sum()), sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        optimizer = self._make_optimizer(parameter_groups(self.model))
        self._own_settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        factor = LambdaLR(optimizer, lambda _: self._schedule(self._progress(self.global_step + 0.5)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factor, "interval": "step"}}

    def on_train_start(self) -> None:
        """A resumed run has the optimizer's state from the checkpoint, and its settings from its own configuration."""
        if not self.trainer.optimizers or not self.trainer.lr_scheduler_configs:
            return
        scheduler: Any = self.trainer.lr_scheduler_configs[0].scheduler
        factor = self._schedule(self._progress(self.global_step + 0.5))
        for group, own in zip(self.trainer.optimizers[0].param_groups, self._own_settings, strict=True):
            group.update(own, initial_lr=own["lr"], lr=own["lr"] * factor)
        scheduler.base_lrs = [own["lr"] for own in self._own_settings]

    def kept_weights(self) -> dict[str, Tensor]:
        """What checkpoints hold: all weights, or of a model with adapters those that are trained."""
        weights = self.state_dict()
        if not self._adapted:
            return weights
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: weight for name, weight in weights.items() if name in trained}

    def adapter_scales(self) -> dict[str, float]:
        """How much each adapter counts; none without adapters."""
        found = {name: getattr(layer, "scaling", None) for name, layer in self.named_modules()}
        return {name: float(next(iter(scales.values()))) for name, scales in found.items() if scales}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._adapted:
            kept = self.kept_weights()
            checkpoint["state_dict"] = {name: x for name, x in checkpoint["state_dict"].items() if name in kept}
        checkpoint["training"] = {"batches_seen": self._batches_seen, "clock_start": self._clock_start}
        checkpoint["training"]["adapter_scales"] = self.adapter_scales()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._batches_seen = checkpoint["training"]["batches_seen"]
        self._clock_start = checkpoint["training"]["clock_start"]
