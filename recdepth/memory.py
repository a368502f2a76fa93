"""How much memory a training run will take, from its configuration; nothing is trained, no weights are loaded.

python -m recdepth.memory experiment=finetune/huginn_24gb
python -m recdepth.memory experiment=finetune/lora init_from=outputs/quickstart data.batch_size=64
python -m recdepth.memory model=huginn vocab_size=65536 trainer=bf16 data.sequence_length=1024 data.batch_size=1

The overrides are those of train.py; ``vocab_size=`` (tokens) is for a model whose tokenizer is not at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import CompactHydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from .entry import composition_problems
from .models import RecurrentDepthConfig, load_config
from .nodes import build
from .settings import ConfigError
from .starting import Pretrained, start_path
from .theory import TrainingMemory, training_memory, weights

CONF = Path(__file__).resolve().parents[1] / "conf"
GIB = 2**30


def estimate(cfg: DictConfig, vocab_size: int | None = None) -> tuple[RecurrentDepthConfig, TrainingMemory]:
    """The shape that a configuration of train.py stands for, and the memory of a step.

    Raises:
        ConfigError: where the shape cannot be known.
    """
    config = _shape(cfg, vocab_size)
    lora, precision, objective = cfg.get("lora"), str(cfg.trainer.precision), cfg.objective
    size = {"bf16-true": 2, "16-true": 2, "64-true": 8}.get(precision, 4)
    base = {None: size, "float32": 4, "bfloat16": 2}[lora.base_dtype] if lora else size
    memory = training_memory(
        config,
        cfg.data.batch_size,
        cfg.data.sequence_length,
        weight_bytes=base,
        compute_bytes=2 if precision.endswith("-mixed") else None,
        backprop_depth=objective.get("backprop_depth"),
        checkpoint_recurrences=bool(objective.get("checkpoint_recurrences")),
        lora_rank=lora.r if lora else 0,
        lora_bytes=size,
        fused_norms=cfg.trainer.get("accelerator") != "cpu",
    )
    return config, memory


def _shape(cfg: DictConfig, vocab_size: int | None) -> RecurrentDepthConfig:
    shape = build(cfg, "model", vocab_size=vocab_size or 1)
    if not isinstance(shape, Pretrained):
        if vocab_size is None:
            shape.vocab_size = len(build(cfg, "data").tokenizer)
        return shape
    if cfg.init_from is None:
        raise ConfigError(["init_from=null: model=pretrained has its shape from there; set it"])
    try:
        config = load_config(start_path(cfg.init_from))
    except (ValueError, OSError) as error:
        remedy = (
            "; without it, name a shape: model=huginn vocab_size=65536" if not isinstance(error, ConfigError) else ""
        )
        raise ConfigError([f"init_from={cfg.init_from}: {' '.join(str(error).split())}{remedy}"]) from error
    if vocab_size is not None:
        raise ConfigError([f"vocab_size={vocab_size}: model=pretrained has that of init_from; leave it out"])
    if shape.backprop_depth is not None:
        config.backprop_depth = shape.backprop_depth
    return config


def table(config: RecurrentDepthConfig, memory: TrainingMemory, cfg: DictConfig) -> Iterator[str]:
    """The lines to print."""
    counts = f"{weights(config) / 1e6:,.2f} M parameters, {memory.trained / 1e6:,.2f} M trained"
    yield f"{counts}; {cfg.data.batch_size} × {cfg.data.sequence_length} tokens at a time"
    depth = cfg.objective.get("backprop_depth") or config.backprop_depth
    again = "the state before each, computed again" if cfg.objective.get("checkpoint_recurrences") else "all of each"
    parts = {
        "weights": "adapters included",
        "gradients": "",
        "optimizer": "AdamW's two moments",
        "prelude": "",
        "recurrences": f"{depth} that gradients flow through: {again}",
        "coda": "",
        "logits": f"{config.vocab_size} a token, float32",
        "working": "inside a block, and a recurrence that is computed again",
    }
    for name, note in parts.items():
        yield f"{name:<12} {_size(getattr(memory, name))}   {note}".rstrip()
    yield f"{'at most':<12} {_size(memory.peak)}   at one time, without the allocator's losses and CUDA's own (0.5 GiB)"
    terms = [name for name, weight in (cfg.objective.get("weights") or {}).items() if weight and name != "next_token"]
    if terms:
        yield f"Not counted: what objective.weights adds ({', '.join(terms)})."


def _size(count: int) -> str:
    return f"{count / GIB:9.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:9.2f} MiB"


def main(words: Sequence[str]) -> int:
    """Returns the exit code: 0, or 2 for what the user has to mend (explained on stderr)."""
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    overrides = [word for word in words if not word.startswith("vocab_size=")]
    try:
        vocab_size = _number([word for word in words if word not in overrides])
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg: Any = compose("train", overrides=overrides)
        except (CompactHydraException, OmegaConfBaseException) as error:
            problems = list(composition_problems(CONF, "train", overrides))
            raise ConfigError(problems or [str(error).splitlines()[0]]) from error
        print("\n".join(table(*estimate(cfg, vocab_size), cfg)))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _number(words: list[str]) -> int | None:
    value = words[-1].partition("=")[2] if words else None
    if value is not None and not (value.isdecimal() and int(value)):
        raise ConfigError([f"vocab_size={value} must be a number of tokens"])
    return int(value) if value is not None else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
