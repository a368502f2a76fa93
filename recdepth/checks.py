"""Everything that can be wrong with a configuration of train.py, found before any work and reported at once."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from . import lifecycle
from .checks_sample import check_sample
from .checks_support import unsupported_samplers
from .checks_sweep import folders, goals, listed, on_error
from .checks_trainer import devices_there, never_ends, no_duration, on_cpu, out_of_range
from .data import DataModule, Split
from .data.datamodule import size_problems
from .models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from .nodes import SEEDS, attempt, build, callback_nodes, check_nodes, within
from .settings import ConfigError, Findings, keyed, suggest, targets
from .starting import start_path
from .training import parameter_groups

__all__ = ["ConfigError", "build", "check_sample", "check_train", "checkpoint_path", "on_cpu", "optimized_metric"]

log = logging.getLogger(__name__)

TRAIN_KEYS: dict[str, Any] = {
    "task_name": str,
    "seed": int,
    "tags": list[str],
    "optimized_metric": str | list[str] | None,
    "optimized_direction": str | list[str],
    "resume": str | None,
    "init_from": str | None,
    "compile": bool,
    "compare": bool,
    "report": bool,
    "allocator": bool,
    "frontier": dict | None,
    "evaluation": dict,
    "comparison": dict,
    **dict.fromkeys(("paths", "sweep", "data", "model", "objective", "optimizer", "scheduler", "trainer"), dict),
    **dict.fromkeys(("callbacks", "logger", "lora"), dict | None),
}


def check_train(cfg: DictConfig) -> DataModule:
    """Check a training configuration.

    Returns:
        the data, which had to be built for that.

    Raises:
        ConfigError: naming every problem.
    """
    found = Findings()
    found.add("init_from", _needs_start(cfg))
    check_nodes(cfg, TRAIN_KEYS, found)
    _check_constructors(cfg, found)
    data = _check_data(cfg, found)
    for keys, check in _ACROSS.items():
        if not found.touch(*keys):
            found.add(keys[0], check(cfg))
    found.report()
    assert data is not None
    return data


def optimized_metric(cfg: DictConfig, metrics: Mapping[str, float]) -> float | list[float | None] | None:
    """The metric that the run returns, or the list of them; None, with a warning, for one that it did not log."""
    names = listed(cfg.optimized_metric)
    for name in names:
        if name not in metrics:
            log.warning("optimized_metric=%s was not logged by this run%s", name, suggest(name, metrics))
    values = [metrics.get(name) for name in names]
    if not names:
        return None
    return values[0] if isinstance(cfg.optimized_metric, str) else values


def checkpoint_path(resume: str) -> Path:
    """The checkpoint that ``resume`` means: a file, or the last one of a run folder.

    Raises:
        ConfigError: when there is none.
    """
    path = Path(resume)
    found = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not found.is_file():
        missing = f"there is no {found}" if path.is_dir() else "there is no such file or folder"
        raise ConfigError([f"resume={resume}: {missing}; give a run folder with checkpoints/last.ckpt or a .ckpt file"])
    return found


# ------------------------------------------------------------------------------------------------ one node by itself


def _check_constructors(cfg: DictConfig, found: Findings) -> None:
    """What the constructors that cost nothing object to; inner nodes first, so that each problem is named once."""
    keys = ["model", "scheduler", *(["comparison"] if cfg.compare is True else [])]
    for key in keys:
        if not found.touch(key):
            found.add(key, attempt(cfg, key, **({"vocab_size": 2} if key == "model" else {})))
    for root in ("objective", "callbacks"):
        _check_nested(cfg, root, found)
    if not found.touch("callbacks"):
        found.add("callbacks", _not_chosen(cfg))
    if cfg.frontier is not None and not found.touch("frontier"):
        found.add("frontier", attempt(cfg, "frontier") or _no_frontier(cfg))
    if cfg.get("lora") is not None and not found.touch("lora"):
        found.add("lora", attempt(cfg, "lora") or _adapters(cfg))
    if not found.touch("optimizer", "lora"):
        found.add("optimizer", list(_rates(cfg)) or _optimizer(cfg))
    if not found.touch("trainer"):
        found.add("trainer", list(out_of_range(cfg)))
    if not found.touch("trainer") and not list(no_duration(cfg)):
        # Lightning's own checks, without what would last or is a matter of the machine
        alone = {"callbacks": [], "logger": False, "deterministic": False, "enable_progress_bar": False}
        alone |= {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32-true"}
        found.add("trainer", attempt(cfg, "trainer", **alone))


def _not_chosen(cfg: DictConfig) -> Iterator[str]:
    """Settings of callbacks that the chosen group lacks: an experiment's, with other callbacks than its own."""
    for name, node in callback_nodes(cfg).items():
        if "_target_" not in node:
            yield (
                f"callbacks.{name} has settings, but is not among the callbacks chosen; choose it too, as"
                f" callbacks=[…,{name}], or leave it out by callbacks.{name}=null"
            )


def _no_frontier(cfg: DictConfig) -> list[str]:
    try:
        build(cfg, "frontier").folders()
    except ValueError as error:
        return keyed("frontier", str(error))
    return []


def _check_nested(cfg: DictConfig, root: str, found: Findings) -> None:
    """A node's constructors from the inside out."""
    settings = OmegaConf.to_container(OmegaConf.create(cfg.get(root) or {}), resolve=False)
    for key, node in sorted(targets(settings, root), key=lambda pair: -pair[0].count(".")):
        if str(node["_target_"]).startswith("recdepth.") and not found.touch(key):
            found.add(key, attempt(cfg, key))


def _rates(cfg: DictConfig) -> Iterator[str]:
    for name in ("lr", "adamw_lr"):
        if name in cfg.optimizer and not cfg.optimizer[name] > 0:
            yield f"optimizer.{name}={cfg.optimizer[name]} must be above 0"


def _sketch() -> RecurrentDepthForCausalLM:
    return RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=2, hidden_size=8, num_attention_heads=1))


def _adapters(cfg: DictConfig) -> list[str]:
    try:
        build(cfg, "lora").add_to(_sketch())
    except ValueError as error:
        return keyed("lora", str(error))
    return []


def _optimizer(cfg: DictConfig) -> list[str]:
    sketch = _sketch()
    if cfg.lora is not None:
        build(cfg, "lora").add_to(sketch)
    try:
        build(cfg, "optimizer")(parameter_groups(sketch))
    except ValueError as error:
        return keyed("optimizer", str(error))
    return []


# ---------------------------------------------------------------------------------------------------------------- data


def _check_data(cfg: DictConfig, found: Findings) -> DataModule | None:
    """Build the data, its parts first, and check what only it can tell. None if there is a problem with it."""
    if not isinstance(cfg.get("data"), DictConfig) or found.touch("data._target_"):
        return None
    for key in ("data.task", "data.source"):
        if isinstance(OmegaConf.select(cfg, key, throw_on_missing=False), DictConfig) and not found.touch(key):
            found.add(key, attempt(cfg, key))
    if str(cfg.data.get("_target_")).startswith("recdepth."):
        sizes = [name for name in _SIZES if cfg.data.get(name) is not None and not found.touch(f"data.{name}")]
        found.add("data", size_problems(**{name: cfg.data[name] for name in sizes}))
    if found.touch("data") or found.touch("init_from"):  # the tokenizer may be that of init_from
        return None
    if not found.touch("seed") and not list(within("seed", 0, SEEDS)(cfg)):
        lifecycle.seed_everything(cfg.seed)  # should its constructor draw random numbers
    try:
        data = build(cfg, "data")
    except ConfigError as error:
        found.add("data", error.problems)
        return None
    except OSError as error:  # a file or a tokenizer that is not there
        found.add("data", keyed("data", str(error)))
        return None
    found.add("data", _context(cfg, data, found))
    found.add("callbacks.curriculum", _levels(cfg, data))
    found.add("data", _held_out(cfg, data, found))
    return data


_SIZES = ("sequence_length", "max_new_tokens", "batch_size", "num_workers", "validation_items")


def _context(cfg: DictConfig, data: DataModule, found: Findings) -> Iterator[str]:
    if not found.touch("model.max_position_embeddings"):
        yield from _exceeds(data.sequence_length, cfg.model.get("max_position_embeddings"))


def _exceeds(length: int | None, context: int | None) -> Iterator[str]:
    if length is not None and context is not None and length > context:
        yield (
            f"data.sequence_length={length} exceeds the model's context, model.max_position_embeddings={context};"
            " lower the one or raise the other"
        )


def _levels(cfg: DictConfig, data: DataModule) -> Iterator[str]:
    if "curriculum" not in callback_nodes(cfg):
        return
    task: Any = getattr(data, "task", None)
    if not hasattr(task, "level") or not hasattr(task, "max_level"):
        yield "callbacks=curriculum needs a task with levels; take data=pointer_chase"
    elif task.level == task.max_level and cfg.resume is None:
        yield f"callbacks=curriculum: the task starts at its highest level, {task.max_level}; set data.task.level=1"


def _held_out(cfg: DictConfig, data: DataModule, found: Findings) -> Iterator[str]:
    """Whether there are as many held-out prompts as evaluation and comparison ask for."""
    needs: list[tuple[Split, int]] = []
    key = "callbacks.sampler_evaluation"
    if "sampler_evaluation" in callback_nodes(cfg) and not found.touch(key):
        count = OmegaConf.select(cfg, key).get("items", 0)
        needs += [("validation", count), ("test", count)]
    if cfg.compare is True and not found.touch("comparison"):
        needs.append(("test", max(cfg.comparison.accuracy_prompts, cfg.comparison.speed_prompts)))
    for split, count in needs:
        try:
            data.evaluation_items(count, split=split)
        except ValueError as error:
            yield from keyed("data", str(error))


# ------------------------------------------------------------------------------------------- between nodes, and machine


def too_few_recurrences(cfg: DictConfig, mean: float | None = None) -> Iterator[str]:
    """The least depth above the mean; ``mean`` is that of a model whose configuration is not in ``model``."""
    least, own = cfg.objective.get("least_recurrence"), cfg.objective.get("mean_recurrence")
    mean = cfg.model.get("mean_recurrence") if mean is None else mean
    if isinstance(least, int) and own is None and isinstance(mean, (int, float)) and least > max(mean, 1):
        yield (
            f"objective.least_recurrence={least} exceeds the mean depth, model.mean_recurrence={mean}; lower it or"
            " raise the mean"
        )


def _too_long(cfg: DictConfig) -> Iterator[str]:
    yield from _exceeds(cfg.data.get("sequence_length"), cfg.model.get("max_position_embeddings"))


def _not_validated(cfg: DictConfig) -> Iterator[str]:
    for name in listed(cfg.optimized_metric):
        if name.startswith(("val/", "test/")) and not cfg.trainer.limit_val_batches:
            yield (
                f"optimized_metric={name} needs validation, but trainer.limit_val_batches=0; raise it, or set"
                " optimized_metric=train/loss"
            )


def _unknown_metric(cfg: DictConfig) -> Iterator[str]:
    known = _metrics(cfg)
    for name in listed(cfg.optimized_metric):
        if known is not None and not any(re.fullmatch(pattern, name) for pattern in known.values()):
            yield f"optimized_metric={name} is not logged by this run{suggest(name, known)}"


def _metrics(cfg: DictConfig) -> dict[str, str] | None:
    """The names of the metrics that the run will log, with patterns; None where parts of others may log any."""
    callbacks: Any = OmegaConf.to_container(OmegaConf.create(callback_nodes(cfg)), resolve=False)
    names = ["epoch", *(f"train/{name}" for name in ("loss", "depth", "token_accuracy", "lr", "tokens_per_second"))]
    names += ["val/loss"] if cfg.trainer.limit_val_batches else []
    patterns: dict[str, str] = {}
    match cfg.objective.get("_target_"):
        case "recdepth.objectives.NextToken":
            pass
        case "recdepth.objectives.Weighted":
            weighted = [name for name, weight in cfg.objective.weights.items() if weight]
            weighted = [] if weighted == ["next_token"] else weighted  # the plain loss alone is train/loss
            patterns |= {f"train/{name}": rf"train/{name}(_\w+)?" for name in weighted}
        case _:
            return None
    for callback in callbacks.values():
        match str(callback.get("_target_")).rsplit(".", 1):
            case ["recdepth.training", "Curriculum"]:
                names += ["curriculum/level", "curriculum/accuracy"]
            case ["recdepth.training", "DepthLoss"]:
                patterns |= {f"val/loss_depth_{depth}": r"val/loss_depth_\d+" for depth in callback.get("depths", [1])}
            case ["recdepth.training", "WavefrontView"]:
                names += [f"val/{name}" for name in ("flips_per_token", "recurrences_to_convergence", "kv_agreement")]
                names += [f"val/draft_accuracy_depth_{depth}" for depth in callback.get("depths", [1, 2, 4, 8])]
            case ["recdepth.training", "SamplerEvaluation"]:
                splits = ["val", "test"] if callback.get("during_training", True) else ["test"]
                kinds = [
                    "accuracy",
                    "tokens_per_second",
                    "recurrences_per_token",
                    "token_passes_per_token",
                    "core_passes_per_token",
                ]
                samplers = callback.get("samplers", {})
                names += [f"{split}/{kind}/{sampler}" for split in splits for kind in kinds for sampler in samplers]
            case ["recdepth.training", "Progress" | "Checkpoint"] | ["lightning.pytorch.callbacks", "ModelCheckpoint"]:
                pass
            case _:
                return None
    return {**{name: re.escape(name) for name in names}, **patterns}


def _no_checkpoint(cfg: DictConfig) -> list[str]:
    try:
        if cfg.resume is not None:
            checkpoint_path(cfg.resume)
    except ConfigError as error:
        return error.problems
    return []


def starts_from(cfg: DictConfig) -> bool:
    """Whether a run takes anything from ``init_from``: a resumed one has its own weights, and only adapters need those
    that they were added to, and models of others their shape."""
    return cfg.init_from is not None and (cfg.resume is None or cfg.lora is not None or _pretrained(cfg))


def _no_start(cfg: DictConfig) -> list[str]:
    if not starts_from(cfg):
        return []
    try:
        start_path(cfg.init_from)
    except ConfigError as error:
        return error.problems
    return []


def _needs_start(cfg: DictConfig) -> Iterator[str]:
    if cfg.get("init_from") is None:
        choices = [
            choice for choice, made in (("model=pretrained", _pretrained(cfg)), ("lora=…", cfg.get("lora"))) if made
        ]
        if choices:
            yield f"init_from=null: {' and '.join(choices)} cannot do without a model to start from; set it"


def _pretrained(cfg: DictConfig) -> bool:
    return OmegaConf.select(cfg, "model._target_") == "recdepth.starting.Pretrained"


def _base_dtype(cfg: DictConfig) -> Iterator[str]:
    dtype, precision = (cfg.lora or {}).get("base_dtype"), str(cfg.trainer.get("precision"))
    if dtype is not None and precision.endswith("-true") and precision != "32-true":
        yield (
            f"lora.base_dtype={dtype}: trainer.precision={precision} sets the dtype of all weights; take"
            " trainer.precision=32-true, or lora.base_dtype=null"
        )


_ACROSS: dict[tuple[str, ...], Callable[[DictConfig], Iterable[str]]] = {
    ("trainer.max_steps", "trainer.max_time", "trainer.max_epochs"): never_ends,
    ("trainer.max_time",): no_duration,
    ("objective", "model"): too_few_recurrences,
    ("data.sequence_length", "model.max_position_embeddings"): _too_long,
    ("optimized_metric", "trainer.limit_val_batches"): _not_validated,
    ("optimized_metric", "callbacks", "objective"): _unknown_metric,
    ("optimized_metric", "optimized_direction"): goals,
    ("model", "callbacks", "comparison", "compare"): unsupported_samplers,
    ("sweep",): on_error,
    ("paths",): folders,
    ("resume",): _no_checkpoint,
    ("init_from", "resume", "lora", "model._target_"): _no_start,
    ("lora", "trainer.precision"): _base_dtype,
    ("seed",): within("seed", 0, SEEDS),
    ("trainer.accelerator", "trainer.devices", "trainer.precision"): devices_there,
}
