"""What can be wrong with the trainer's settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer
from omegaconf import DictConfig, OmegaConf


def on_cpu(cfg: DictConfig) -> bool:
    """Whether training runs on the CPU."""
    wanted = cfg.trainer.get("accelerator", "auto")
    return wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available())


def out_of_range(cfg: DictConfig) -> Iterator[str]:
    """Settings of the trainer that Lightning takes, and then ignores or fails on."""
    for name, remedy in (
        ("accumulate_grad_batches", "1 does not accumulate"),
        ("val_check_interval", "trainer.limit_val_batches=0 leaves validation out"),
        ("gradient_clip_val", "null does not clip"),
    ):
        value = cfg.trainer.get(name)
        if value is not None and not value > 0:
            yield f"trainer.{name}={value} must be above 0; {remedy}"
    if cfg.trainer.get("devices") in (0, "0"):
        yield f"trainer.devices={cfg.trainer.devices} leaves none to train on; set trainer.devices=1"
    if cfg.trainer.get("fast_dev_run"):
        yield f"trainer.fast_dev_run={cfg.trainer.fast_dev_run} leaves nothing to look at; take debug=fdr"


def never_ends(cfg: DictConfig) -> Iterator[str]:
    """Training without an end."""
    trainer = cfg.trainer
    if trainer.max_steps > 0 or trainer.max_time is not None:
        return
    limits = f"trainer.max_steps={trainer.max_steps} and trainer.max_time=null"
    if (trainer.get("max_epochs") or -1) <= 0:
        yield f"{limits}: training would never end; set one of them"
    elif not isinstance(trainer.get("limit_train_batches"), int) and not trainer.get("overfit_batches"):
        epochs = f"trainer.max_epochs={trainer.max_epochs}"
        yield f"{limits}: training would never end; the data has no end, so {epochs} needs trainer.limit_train_batches"


def no_duration(cfg: DictConfig) -> Iterator[str]:
    """A time that is none."""
    given: Any = cfg.trainer.max_time
    try:
        Timer(duration=OmegaConf.to_container(given) if OmegaConf.is_config(given) else given)  # type: ignore[arg-type]
    except (MisconfigurationException, TypeError, ValueError):
        yield f"trainer.max_time={given} must be DD:HH:MM:SS in quotes, such as trainer.max_time='00:01:30:00'"


def devices_there(cfg: DictConfig) -> Iterator[str]:
    """Devices that are not there, or that lack the precision."""
    accelerator, precision = cfg.trainer.get("accelerator", "auto"), str(cfg.trainer.get("precision"))
    count = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not count:
        yield f"trainer.accelerator={accelerator}: no GPU is visible; set trainer.accelerator=cpu"
    devices = cfg.trainer.get("devices", 1)
    if not on_cpu(cfg) and count and isinstance(devices, int) and devices > count:
        yield f"trainer.devices={devices}, but {count} GPU(s) are visible; set trainer.devices={count}"
    if precision.startswith("16") and on_cpu(cfg):
        yield f"trainer.precision={precision} needs a GPU; on a CPU take bf16-mixed or 32-true"
    if precision.startswith("bf16") and not on_cpu(cfg) and count and not torch.cuda.is_bf16_supported():
        yield f"trainer.precision={precision}: this GPU lacks bfloat16; set trainer.precision=32-true"
