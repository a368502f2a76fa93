"""What can be wrong with ``experiment=tune_sampler``, found together with the rest of sample.py's configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from .checks_sweep import listed
from .evaluation.tune_space import space_problems
from .models import can_compile
from .nodes import attempt, build
from .sampling import Sampler
from .settings import Findings, hints_of, mismatch, shown, suggest

#: Settings of sampling that tuning has no use for, with their defaults and what to do instead.
_UNUSED: dict[str, tuple[Any, str]] = {
    "prompt": (None, "it takes held-out prompts that can be scored"),
    "num_prompts": (3, "set tune.search.rungs and tune.check.accuracy_prompts"),
    "temperature": (0.0, "it compares greedy texts"),
    "stream": (False, "watch the winner afterwards, sampler=local/<name> stream=true"),
    "trace": (False, "trace the winner afterwards, sampler=local/<name> trace=true"),
}
TUNE_LOG = "tune.jsonl"
#: What sweeps over tunings may compare them by, of the winner: its speed over the paper's default and over decoding one
#: token at a time, and so on; accuracy on the fresh prompts.
TUNE_METRICS = (
    "tune/speedup_paper",
    "tune/speedup",
    "tune/tokens_per_second",
    "tune/core_passes_per_token",
    "tune/token_passes_per_token",
    "tune/accuracy",
)


def local_samplers() -> Path:
    """The folder whose files are ``sampler=local/<name>``, of the configuration that is in use."""
    conf = Path(__file__).resolve().parents[1] / "conf"
    if HydraConfig.initialized():
        for source in HydraConfig.get().runtime.config_sources:
            if source.provider == "main" and source.schema == "file":
                conf = Path(source.path)
    return conf / "sampler" / "local"


def check_tune(cfg: DictConfig, found: Findings) -> None:
    """Add to ``found`` what is wrong with ``tune`` and ``data``, and between them and the other settings."""
    needed = ("search", "check", "space", "name", "overwrite", "resume", "compile")
    missing = [key for key in needed if key not in cfg.tune]
    if missing:
        found.add("tune", [f"tune has no {', '.join(missing)}; take all of it from experiment=tune_sampler"])
        return
    if not found.touch("sampler", "tune.space"):
        found.add("tune.space", _space(cfg))
    parts = ("search", "check")
    for part in parts:
        if not found.touch(f"tune.{part}"):
            found.add(f"tune.{part}", attempt(cfg, f"tune.{part}"))
    own = [str(key) for key in cfg.tune if key not in (*parts, "space")]
    if not found.touch(*(f"tune.{key}" for key in own)):
        found.add("tune", attempt(cfg, "tune", **dict.fromkeys(parts)))
    for key, (default, instead) in _UNUSED.items():
        if not found.touch(key) and cfg[key] != default:
            found.add(key, [f"{key}={shown(cfg[key])} has no effect with experiment=tune_sampler: {instead}"])
    if not found.touch("optimized_metric"):
        found.add("optimized_metric", _metrics(cfg.optimized_metric))
    if not found.touch("tune.name", "tune.overwrite"):
        found.add("tune.name", _target(cfg.tune.name, cfg.tune.overwrite))
    if not found.touch("tune.resume"):
        found.add("tune.resume", _resume(cfg.tune.resume))
    if not found.touch("tune.compile", "device", "sampler.compile"):
        found.add("tune.compile", _compile(cfg))
    if not found.touch("data", "model_path"):
        found.add("data", _data(cfg))


def _metrics(names: Any) -> Iterator[str]:
    for name in listed(names):
        if name not in TUNE_METRICS:
            hint = suggest(name, TUNE_METRICS)
            yield f"optimized_metric={name} is not logged by experiment=tune_sampler{hint}"


def _target(name: str, overwrite: bool) -> Iterator[str]:
    folder = local_samplers()
    path = folder / f"{name}.yaml"
    if path.exists() and not overwrite:
        yield f"tune.name={name}: {path} exists already; give another name, or set tune.overwrite=true"
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        yield f"tune.name={name}: {there} cannot be written to; work with a copy of the configuration that can"


def _resume(folder: str | None) -> Iterator[str]:
    if folder is not None and not (Path(folder) / TUNE_LOG).is_file():
        yield f"tune.resume={folder} has no {TUNE_LOG}; give the folder of a tuning"


def _compile(cfg: DictConfig) -> Iterator[str]:
    if cfg.sampler.get("compile"):
        yield "sampler.compile=true has no effect with experiment=tune_sampler: set tune.compile=true"
    if cfg.tune.compile:
        device = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
        able, why = can_compile(device)
        if not able:
            yield f"tune.compile=true: {why}; set tune.compile=false"


def _space(cfg: DictConfig) -> Iterable[str]:
    sampler: Sampler = build(cfg, "sampler")
    spaces: Any = OmegaConf.to_container(cfg.tune.space, resolve=True)
    key = f"tune.space.{sampler.name}"
    if sampler.name not in spaces:
        return [
            f"sampler={sampler.name} has no values to try: there is no {key}; take a sampler among"
            f" {', '.join(spaces)}, or add it"
        ]
    space = spaces[sampler.name]
    if not isinstance(space, Mapping):
        return [f"{key}={shown(space)} must be lists of values by key"]
    wrong = list(_types(type(sampler), space, key))
    return wrong or [f"{key}.{problem}" for problem in space_problems(sampler, space)]


def _types(kind: type[Sampler], space: Mapping[str, Any], key: str) -> Iterator[str]:
    hints = hints_of(kind)
    for name, values in space.items():
        if name in hints and isinstance(values, list):
            for value in values:
                yield from mismatch(f"{key}.{name}", value, hints[name])


def _data(cfg: DictConfig) -> Iterable[str]:
    if cfg.get("data") is not None:
        parts = [key for key in ("data.task", "data.source") if isinstance(OmegaConf.select(cfg, key), DictConfig)]
        return [problem for part in parts for problem in attempt(cfg, part)] or attempt(cfg, "data")
    if cfg.model_path is not None and not run_of_model(cfg.model_path):
        return [f"data=null: model_path={cfg.model_path} belongs to no run; name its task, such as data=word_problems"]
    return []


def run_of_model(path: str) -> Path | None:
    """The run folder that a model folder lies in, if it does."""
    folder = Path(path).resolve().parent
    return folder if (folder / ".hydra" / "config.yaml").is_file() else None
