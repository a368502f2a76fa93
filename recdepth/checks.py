"""Everything that can be wrong with a configuration, found before any work and reported at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .data import DataModule, Split
from .models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from .settings import ConfigError, Findings, arguments, keyed, mismatch, shown, suggest, targets
from .sources import DTYPES
from .training import parameter_groups

TRAIN_KEYS: dict[str, Any] = {
    "task_name": str,
    "seed": int,
    "tags": list[str],
    "optimized_metric": str | None,
    "resume": str | None,
    "compile": bool,
    "compare": bool,
    "report": bool,
    "allocator": bool,
    "evaluation": dict,
    "comparison": dict,
    **dict.fromkeys(("paths", "data", "model", "objective", "optimizer", "scheduler", "trainer"), dict),
    **dict.fromkeys(("callbacks", "logger"), dict | None),
}
SAMPLE_KEYS: dict[str, Any] = {
    "task_name": str,
    **dict.fromkeys(("run_dir", "model_path", "dtype"), str | None),
    "prompt": str | list[str] | None,
    "max_new_tokens": int | None,
    **dict.fromkeys(("num_prompts", "top_k", "seed", "batch_size"), int),
    **dict.fromkeys(("temperature", "top_p", "min_p"), float),
    "device": str,
    "allocator": bool,
    "trace": bool,
    **dict.fromkeys(("paths", "sampler"), dict),
}


def build(cfg: DictConfig, key: str, **runtime: Any) -> Any:
    """Instantiate the node at ``key``; its constructor's complaints become a ConfigError that names the key."""
    node = OmegaConf.select(cfg, key)
    try:
        return instantiate(node, _convert_="all", **runtime)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise ConfigError(keyed(key, str(cause))) from cause
        if isinstance(cause, ModuleNotFoundError):  # an extra that is not installed; its message names the remedy
            raise ConfigError([str(cause)]) from cause
        raise cause or error from None


def check_train(cfg: DictConfig) -> None:
    """Check a training configuration.

    Raises:
        ConfigError: naming every problem.
    """
    found = Findings()
    _check_nodes(cfg, TRAIN_KEYS, found)
    _check_constructors(cfg, found)
    for keys, check in _ACROSS.items():
        if not found.touch(*keys):
            found.add(keys[0], check(cfg))
    found.report()


def check_sample(cfg: DictConfig) -> None:
    """Check a sampling configuration.

    Raises:
        ConfigError: naming every problem.
    """
    found = Findings()
    _check_nodes(cfg, SAMPLE_KEYS, found)
    if not found.touch("sampler"):
        found.add("sampler", _attempt(cfg, "sampler"))
    for key, check in _SAMPLING.items():
        if not found.touch(key):
            found.add(key, check(cfg))
    found.report()


def check_data(cfg: DictConfig, data: DataModule) -> None:
    """Check what only the built data can tell.

    Raises:
        ConfigError: naming every problem.
    """
    problems = []
    context = cfg.model.max_position_embeddings
    if data.sequence_length > context:
        problems.append(
            f"data.sequence_length={data.sequence_length} exceeds the model's context, model.max_position_embeddings="
            f"{context}; lower the one or raise the other"
        )
    callbacks: dict[str, Any] = dict(cfg.get("callbacks") or {})
    if "curriculum" in callbacks:
        task: Any = getattr(data, "task", None)
        if not hasattr(task, "level") or not hasattr(task, "max_level"):
            problems.append("callbacks=curriculum needs a task with levels; take data=pointer_chase")
        elif task.level == task.max_level and cfg.resume is None:
            highest = f"callbacks=curriculum: the task starts at its highest level, {task.max_level}"
            problems.append(f"{highest}; set data.task.level=1")
    needs: list[tuple[Split, int]] = []
    if "sampler_evaluation" in callbacks:
        count = callbacks["sampler_evaluation"]["items"]
        needs += [("validation", count), ("test", count)]
    if cfg.compare:
        needs.append(("test", max(cfg.comparison.accuracy_prompts, cfg.comparison.speed_prompts)))
    for split, count in needs:
        try:
            data.evaluation_items(count, split=split)
        except ValueError as error:
            problems += keyed("data", str(error))
    if problems:
        raise ConfigError(problems)


def optimized_metric(cfg: DictConfig, metrics: Mapping[str, float]) -> float | None:
    """The metric that the run returns.

    Raises:
        ConfigError: when the run did not log it.
    """
    name = cfg.optimized_metric
    if name is None:
        return None
    if name not in metrics:
        raise ConfigError([f"optimized_metric={name} was not logged by this run{suggest(name, metrics)}"])
    return metrics[name]


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


def on_cpu(cfg: DictConfig) -> bool:
    """Whether training runs on the CPU."""
    wanted = cfg.trainer.get("accelerator", "auto")
    return wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available())


# ------------------------------------------------------------------------------------------------ one node by itself


def _check_nodes(cfg: DictConfig, known: Mapping[str, Any], found: Findings) -> None:
    """Unfilled, unknown and wrongly typed settings, top-level ones and those of every ``_target_``."""
    for key in sorted(OmegaConf.missing_keys(cfg)):
        found.add(key, [f"{key}=??? has no value; set {key}=…"])
    for name in map(str, cfg):
        if name not in known:
            problem = f"{name}={shown(cfg[name])} is not a setting of this program{suggest(name, known)}"
            found.add(name, [problem])
            continue
        try:
            node = cfg[name]
            value = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        except OmegaConfBaseException as error:
            found.add(name, [f"{name}: {str(error).splitlines()[0]}"])
            continue
        found.add(name, mismatch(name, value, known[name]))
        for key, settings in targets(value, name):
            if not found.touch(key):
                found.add(key, arguments(key, settings))


def _check_constructors(cfg: DictConfig, found: Findings) -> None:
    """What the constructors that cost nothing object to; inner nodes first, so that each problem is named once."""
    keys = ["model", "objective", "scheduler", *(["comparison"] if cfg.compare is True else [])]
    for key in keys:
        if not found.touch(key):
            found.add(key, _attempt(cfg, key, **({"vocab_size": 2} if key == "model" else {})))
    if not found.touch("optimizer"):
        found.add("optimizer", list(_rates(cfg)) or _optimizer(cfg))
    callbacks = OmegaConf.to_container(OmegaConf.create(cfg.get("callbacks") or {}), resolve=False)
    for key, node in sorted(targets(callbacks, "callbacks"), key=lambda pair: -pair[0].count(".")):
        if str(node["_target_"]).startswith("recdepth.") and not found.touch(key):
            found.add(key, _attempt(cfg, key))


def _attempt(cfg: DictConfig, key: str, **runtime: Any) -> list[str]:
    try:
        build(cfg, key, **runtime)
    except ConfigError as error:
        return error.problems
    return []


def _rates(cfg: DictConfig) -> Iterator[str]:
    for name in ("lr", "adamw_lr"):
        if name in cfg.optimizer and not cfg.optimizer[name] > 0:
            yield f"optimizer.{name}={cfg.optimizer[name]} must be above 0"


def _optimizer(cfg: DictConfig) -> list[str]:
    sketch = RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=2, hidden_size=8, num_attention_heads=1))
    try:
        build(cfg, "optimizer")(parameter_groups(sketch))
    except ValueError as error:
        return keyed("optimizer", str(error))
    return []


# ------------------------------------------------------------------------------------------- between nodes, and machine


def _never_ends(cfg: DictConfig) -> Iterator[str]:
    trainer = cfg.trainer
    if trainer.max_steps <= 0 and trainer.max_time is None and (trainer.get("max_epochs") or -1) <= 0:
        yield "trainer.max_steps=-1 and trainer.max_time=null: training would never end; set one of them"


def _too_long(cfg: DictConfig) -> Iterator[str]:
    length, context = cfg.data.get("sequence_length"), cfg.model.get("max_position_embeddings")
    if length is not None and context is not None and length > context:
        yield (
            f"data.sequence_length={length} exceeds the model's context, model.max_position_embeddings={context};"
            " lower the one or raise the other"
        )


def _not_validated(cfg: DictConfig) -> Iterator[str]:
    name = cfg.optimized_metric
    if name and name.startswith(("val/", "test/")) and not cfg.trainer.limit_val_batches:
        yield (
            f"optimized_metric={name} needs validation, but trainer.limit_val_batches=0; raise it, or set"
            " optimized_metric=train/loss"
        )


def _no_checkpoint(cfg: DictConfig) -> list[str]:
    try:
        if cfg.resume is not None:
            checkpoint_path(cfg.resume)
    except ConfigError as error:
        return error.problems
    return []


def _devices(cfg: DictConfig) -> Iterator[str]:
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


_ACROSS: dict[tuple[str, ...], Callable[[DictConfig], Iterable[str]]] = {
    ("trainer.max_steps", "trainer.max_time", "trainer.max_epochs"): _never_ends,
    ("data.sequence_length", "model.max_position_embeddings"): _too_long,
    ("optimized_metric", "trainer.limit_val_batches"): _not_validated,
    ("resume",): _no_checkpoint,
    ("trainer.accelerator", "trainer.devices", "trainer.precision"): _devices,
}


def _within(key: str, least: float, most: float = math.inf) -> Callable[[DictConfig], Iterable[str]]:
    def check(cfg: DictConfig) -> Iterator[str]:
        if cfg[key] is not None and not least <= cfg[key] <= most:
            upto = f" and at most {most:g}" if most < math.inf else ""
            yield f"{key}={cfg[key]} must be at least {least:g}{upto}"

    return check


def _above_zero(cfg: DictConfig) -> Iterator[str]:
    if not 0 < cfg.top_p <= 1:
        yield f"top_p={cfg.top_p} must be above 0 and at most 1"


def _one_source(cfg: DictConfig) -> Iterator[str]:
    if cfg.run_dir and cfg.model_path:
        yield f"run_dir={cfg.run_dir} and model_path={cfg.model_path} exclude each other; give one"


def _known_dtype(cfg: DictConfig) -> Iterator[str]:
    if cfg.dtype is not None and cfg.dtype not in DTYPES:
        yield f"dtype={cfg.dtype} is unknown; take one of {', '.join(DTYPES)}, or null for the model's own"


def _there_is_a_gpu(cfg: DictConfig) -> Iterator[str]:
    if cfg.device.startswith("cuda") and not torch.cuda.is_available():
        yield f"device={cfg.device}: no GPU is visible; set device=cpu or device=auto"
    elif cfg.device.split(":")[0] not in ("auto", "cpu", "cuda"):
        yield f"device={cfg.device} is unknown; take auto, cpu, cuda or cuda:<number>"


_SAMPLING: dict[str, Callable[[DictConfig], Iterable[str]]] = {
    "num_prompts": _within("num_prompts", 1),
    "batch_size": _within("batch_size", 1),
    "max_new_tokens": _within("max_new_tokens", 1),
    "temperature": _within("temperature", 0),
    "top_k": _within("top_k", 0),
    "top_p": _above_zero,
    "min_p": _within("min_p", 0, 1),
    "run_dir": _one_source,
    "dtype": _known_dtype,
    "device": _there_is_a_gpu,
}
