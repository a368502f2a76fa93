"""Writing the model where people can use it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from recdepth.models import RecurrentDepthForCausalLM

from ..lora import has_adapters, without_adapters
from ..module import TrainingModule

log = logging.getLogger(__name__)


@rank_zero_only
def save_model_folder(model: RecurrentDepthForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer to ``folder``; a reader sees the old state or the new one, never half of it.

    With adapters, the model is written with these merged into it, and they alone, in peft's format, to ``adapter``
    beside the folder.
    """
    if has_adapters(model):
        _replace(folder.with_name("adapter"), model.save_pretrained)
    plain = without_adapters(model)

    def write(fresh: Path) -> None:
        plain.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)

    _replace(folder, write)


def _replace(folder: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a folder, and put it in the place of an older one."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        write(fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


class Export(Callback):
    """Exports the model when training ends, also when it ends by Ctrl-C or an error.

    Args:
        folder: where to, ``<run folder>/model``.
        tokenizer: saved beside the model.
    """

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase):
        self.folder = folder
        self.tokenizer = tokenizer

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        save_model_folder(pl_module.model, self.tokenizer, self.folder)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.global_step == 0:
            return
        try:
            self.on_train_end(trainer, pl_module)
        except (OSError, SafetensorError) as error:  # a full disk must not hide why training ended
            log.error("The model could not be written to %s: %s", self.folder, error)
