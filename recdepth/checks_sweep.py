"""What can be wrong with how a sweep is run, and with what it optimizes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from .reporting.sweep import PLAN
from .settings import mismatch, suggest

_PLUGINS = "hydra_plugins.recdepth_plugins"
_OWN = f"{_PLUGINS}.local.LocalLauncher"
_SWEEPS = '-c constraints.txt -e ".[sweeps]"'
#: What the plugins for other people's software need: a module, and how to install it.
_EXTRAS = {
    f"{_PLUGINS}.optuna.OptunaSweeper": ("hydra_plugins.hydra_optuna_sweeper", _SWEEPS),
    f"{_PLUGINS}.submitit.LocalLauncher": ("hydra_plugins.hydra_submitit_launcher", _SWEEPS),
    f"{_PLUGINS}.submitit.SlurmLauncher": ("hydra_plugins.hydra_submitit_launcher", _SWEEPS),
    "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher": ("hydra_plugins.hydra_ray_launcher", '-e ".[ray]"'),
}
SWEEP_KEYS = {"name": str, "on_error": str, "resume": str | None}
_COUNT = Annotated[int, Field(ge=1)]
#: Numbers of our own launcher; and those of the others and of sweepers, where they have them.
_OWN_NUMBERS: dict[str, Any] = {
    **dict.fromkeys(("n_jobs", "threads"), _COUNT | None),
    "grace_seconds": Annotated[float, Field(ge=0, allow_inf_nan=False)],
}
_NUMBERS: dict[str, dict[str, Any]] = {
    "launcher": {
        "cpus_per_task": _COUNT | None,
        **dict.fromkeys(("timeout_min", "nodes", "tasks_per_node", "array_parallelism"), _COUNT),
        **dict.fromkeys(("signal_delay_s", "max_num_timeout"), Annotated[int, Field(ge=0)]),
        "gpus_per_node": Annotated[int, Field(ge=0)] | None,
    },
    "sweeper": {"max_batch_size": _COUNT | None, "n_trials": _COUNT, "n_jobs": _COUNT},
}


def listed(value: Any) -> list[str]:
    """One name, several or none, as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def goals(cfg: DictConfig) -> Iterator[str]:
    """Whether every optimized metric has a direction."""
    names, directions = listed(cfg.optimized_metric), listed(cfg.optimized_direction)
    for direction in directions:
        if direction not in ("minimize", "maximize"):
            yield f"optimized_direction={direction} is unknown; take minimize or maximize"
    if len(names) != len(set(names)):
        yield f"optimized_metric={cfg.optimized_metric} names a metric twice"
    if names and len(names) != len(directions):
        yield (
            f"optimized_direction={cfg.optimized_direction}: {len(directions)} for {len(names)} metrics in"
            f" optimized_metric={cfg.optimized_metric}; give minimize or maximize for each"
        )


def on_error(cfg: DictConfig) -> Iterator[str]:
    """Whether ``sweep.on_error`` is one of the two."""
    if cfg.sweep.on_error not in ("continue", "stop"):
        yield f"sweep.on_error={cfg.sweep.on_error} is unknown; take continue or stop"
    for name in cfg.sweep:
        if name not in SWEEP_KEYS:
            yield f"sweep.{name}={cfg.sweep[name]} is not a setting of a sweep{suggest(str(name), SWEEP_KEYS)}"


def folders(cfg: DictConfig) -> Iterator[str]:
    """Whether folders are named by text; other keys under ``paths`` are the user's own."""
    for name in ("outputs", "run_dir"):
        yield from mismatch(f"paths.{name}", cfg.paths.get(name), str)


def launching(config: DictConfig) -> Iterator[str]:
    """Whether the launcher and the sweeper can do what is asked.

    Args:
        config: of the multirun, with its ``hydra`` node.
    """
    hydra = config.hydra
    launcher, sweeper = str(hydra.launcher._target_), str(hydra.sweeper._target_)
    for group, target in (("launcher", launcher), ("sweeper", sweeper)):
        module, extra = _EXTRAS.get(target, ("hydra", ""))
        if find_spec(module) is None:
            choice = hydra.runtime.choices.get(f"hydra/{group}")
            yield f"hydra/{group}={choice} needs an extra: pip install {extra}"
    if config.sweep.on_error == "stop" and launcher != _OWN:
        yield (
            "sweep.on_error=stop: this launcher hands all jobs over at once and cannot hold any back; take"
            " hydra/launcher=local or hydra/launcher=pool, or sweep.on_error=continue"
        )
    for node, numbers in _NUMBERS.items():
        known = _OWN_NUMBERS if node == "launcher" and launcher == _OWN else numbers
        for name, kind in known.items():
            if name in hydra[node]:
                yield from mismatch(f"hydra.{node}.{name}", hydra[node][name], kind)
    folder = Path(str(hydra.sweep.dir))
    if OmegaConf.select(config, "sweep.resume") is None and (folder / PLAN).exists():
        yield f"sweep.name={config.sweep.name}: {folder} is there already; take another name, or sweep.resume={folder}"
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        remedy = "take another by hydra.sweep.dir=… or paths.outputs=…"
        yield f"the folder cannot be made, {there}: not a folder that can be written; {remedy}"
