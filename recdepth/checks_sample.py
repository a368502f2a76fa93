"""Everything that can be wrong with a configuration of sample.py, found before any work and reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from .checks_sweep import folders, goals, listed, on_error
from .checks_tune import check_tune
from .nodes import SEEDS, attempt, check_nodes, within
from .sampling.tokens import TokenChooser
from .settings import ConfigError, Findings, keyed, suggest
from .sources import DTYPES, run_folder

SAMPLE_KEYS: dict[str, Any] = {
    "task_name": str,
    **dict.fromkeys(("run_dir", "model_path", "dtype"), str | None),
    "prompt": str | list[str] | None,
    "max_new_tokens": int | None,
    **dict.fromkeys(("num_prompts", "top_k", "seed", "batch_size"), int),
    **dict.fromkeys(("temperature", "top_p", "min_p"), float),
    "device": str,
    "allocator": bool,
    **dict.fromkeys(("trace", "stream", "report"), bool),
    "tags": list[str],
    "logger": dict | None,
    **dict.fromkeys(("paths", "sweep", "sampler"), dict),
    "optimized_metric": str | list[str] | None,
    "optimized_direction": str | list[str],
    **dict.fromkeys(("tune", "data"), dict | None),
}


def check_sample(cfg: DictConfig) -> None:
    """Check a sampling configuration.

    Raises:
        ConfigError: naming every problem.
    """
    found = Findings()
    check_nodes(cfg, SAMPLE_KEYS, found)
    if not found.touch("sampler"):
        found.add("sampler", attempt(cfg, "sampler"))
    for key, check in _SAMPLING.items():
        if not found.touch(key):
            found.add(key, check(cfg))
    _choice(cfg, found)
    if not found.touch("run_dir", "model_path", "paths"):
        found.add("run_dir", _source(cfg))
    if isinstance(cfg.tune, DictConfig):
        check_tune(cfg, found)
    elif cfg.get("data") is not None and cfg.tune is None:
        found.add("data", ["data=… is for experiment=tune_sampler; sampling takes the run's own data, or prompt='…'"])
    found.report()


def _choice(cfg: DictConfig, found: Findings) -> None:
    """What the choice of tokens objects to, one problem a setting."""
    chosen = {key: cfg[key] for key in ("temperature", "top_k", "top_p", "min_p") if not found.touch(key)}
    try:
        TokenChooser(**{"temperature": 1.0, **chosen})
    except ValueError as error:
        for problem in keyed("", str(error)):
            key = problem.split("=")[0]
            if not found.touch(key):
                found.add(key, [problem])


def _source(cfg: DictConfig) -> Iterator[str]:
    """Whether there is a model, as far as the local disk can tell."""
    path = cfg.model_path
    if path is None:
        try:
            run_folder(cfg.run_dir, Path(cfg.paths.outputs))
        except ConfigError as error:
            yield from error.problems
        return
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            yield f"model_path={path} holds no model (config.json is missing)"
    elif path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).exists():
        yield f"model_path={path} is not a folder; give a model folder or a hub id such as owner/name"
    if cfg.prompt is None and cfg.tune is None:
        yield f"prompt=null: model_path={path} comes without data; give prompt='…'"


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


def _one_at_a_time(cfg: DictConfig) -> Iterator[str]:
    if cfg.stream is True and isinstance(cfg.batch_size, int) and cfg.batch_size > 1:
        yield f"batch_size={cfg.batch_size}: stream=true shows one prompt at a time; set batch_size=1 or stream=false"


#: What sample.py writes to ``metrics.jsonl``; accuracy where the prompts are held-out items.
SAMPLE_METRICS = (
    "accuracy",
    "tokens_per_second",
    "recurrences_per_token",
    "core_passes_per_token",
    "token_passes_per_token",
)


def _known_metric(cfg: DictConfig) -> Iterator[str]:
    for name in listed(cfg.optimized_metric) if cfg.tune is None else ():
        if name not in SAMPLE_METRICS:
            yield f"optimized_metric={name} is not logged by sample.py{suggest(name, SAMPLE_METRICS)}"


_SAMPLING: dict[str, Callable[[DictConfig], Iterable[str]]] = {
    "num_prompts": within("num_prompts", 1),
    "batch_size": within("batch_size", 1),
    "max_new_tokens": within("max_new_tokens", 1),
    "seed": within("seed", 0, SEEDS),
    "run_dir": _one_source,
    "dtype": _known_dtype,
    "device": _there_is_a_gpu,
    "stream": _one_at_a_time,
    "optimized_metric": _known_metric,
    "optimized_direction": goals,
    "sweep": on_error,
    "paths": folders,
}
