"""Evaluating samplers on held-out prompts during and after training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer

from recdepth.data import DataModule
from recdepth.evaluation import Evaluation, HeldOut, evaluate
from recdepth.sampling import Sampler

from ..loggers import log_table
from ..module import TrainingModule
from ..ranges import at_least_one, only_samplers
from ..seams import eager_seams
from .interrupt import stop_if_asked


class SamplerEvaluation(Callback):
    """Runs samplers, the very ones that sample.py runs, on held-out prompts.

    During training, at every validation, on prompts of the validation split (``val/accuracy/<name>`` …); after it, on
    prompts of the test split (``test/accuracy/<name>`` …), with a table of all samplers. A few samples of each go to
    ``samples.jsonl`` in the run folder. Core passes count once for all prompts of a batch.

    Args:
        samplers: by name.
        items: held-out prompts.
        batch_size: prompts sampled together.
        during_training: whether to evaluate at every validation, or only at the end.
        samples_kept: samples written each time, per sampler.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        samplers: dict[str, Sampler],
        items: int = 64,
        batch_size: int = 64,
        during_training: bool = True,
        samples_kept: int = 2,
    ):
        at_least_one(items=items, batch_size=batch_size)
        only_samplers(samplers)
        if samples_kept < 0:
            raise ValueError(f"samples_kept={samples_kept} must be at least 0")
        self.samplers = samplers
        self.items = items
        self.batch_size = batch_size
        self.during_training = during_training
        self.samples_kept = samples_kept

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        after = trainer.state.fn == "validate"
        if trainer.sanity_checking or not (after or self.during_training):
            return
        split: Literal["validation", "test"] = "test" if after else "validation"
        rows = []
        for name, sampler in self.samplers.items():
            found = self._evaluate(trainer, pl_module, sampler, split)
            prefix = "test" if after else "val"
            new = max(found.stats.new_tokens, 1)
            pl_module.log_dict(
                {
                    f"{prefix}/accuracy/{name}": found.accuracy,
                    f"{prefix}/tokens_per_second/{name}": found.stats.tokens_per_second,
                    f"{prefix}/recurrences_per_token/{name}": found.stats.recurrences_per_token,
                    f"{prefix}/core_passes_per_token/{name}": found.stats.core_passes / new,
                    f"{prefix}/token_passes_per_token/{name}": found.stats.token_passes / new,
                },
                batch_size=1,
                rank_zero_only=True,
            )
            rows.append(_row(name, sampler, found))
            self._write_samples(trainer, name, split, found)
        if after:
            log_table(trainer.loggers, "samplers", rows)

    def _evaluate(self, trainer: Trainer, module: TrainingModule, sampler: Sampler, split: Any) -> Evaluation:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, DataModule)
        with eager_seams(module.model):
            return evaluate(
                sampler,
                module.model,
                HeldOut.of(data, self.items, split),
                batch_size=self.batch_size,
                seed=module.seed,
                on_batch=lambda _: stop_if_asked(trainer),
            )

    def _write_samples(self, trainer: Trainer, name: str, split: Any, found: Evaluation) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "samples.jsonl"
        with path.open("a", encoding="utf-8") as file:
            for item, tokens, score in zip(
                data.evaluation_items(min(self.items, self.samples_kept), split=split),
                found.tokens,
                found.scores,
                strict=False,
            ):
                sample = {
                    "step": trainer.global_step,
                    "sampler": name,
                    "prompt": item.prompt,
                    "text": data.decode(tokens),
                    "answer": item.answer,
                    "score": score,
                }
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")


def _row(name: str, sampler: Sampler, found: Evaluation) -> dict[str, Any]:
    settings = asdict(sampler)
    stats = found.stats
    return {
        "sampler": name,
        "settings": ", ".join(f"{k}={v}" for k, v in settings.items()),
        "n": found.n,
        "accuracy": found.accuracy,
        "accuracy_low": found.low,
        "accuracy_high": found.high,
        "tokens_per_second": stats.tokens_per_second,
        "recurrences_per_token": stats.recurrences_per_token,
        "core_passes_per_token": stats.core_passes / max(stats.new_tokens, 1),
        "token_passes_per_token": stats.token_passes / max(stats.new_tokens, 1),
    }
