"""Checks of single nodes of a configuration, for all programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .settings import ConfigError, Findings, arguments, keyed, mismatch, shown, suggest, targets

SEEDS = 2**32 - 1  # the largest that every library takes


def build(cfg: DictConfig, key: str, **runtime: Any) -> Any:
    """Instantiate the node at ``key``; its constructor's complaints become a ConfigError that names the key."""
    node = OmegaConf.select(cfg, key)
    try:
        return instantiate(node, _convert_="all", **runtime)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (ValueError, MisconfigurationException)):  # the latter is Lightning's
            raise ConfigError(keyed(key, str(cause))) from cause
        if isinstance(cause, ModuleNotFoundError):  # an extra that is not installed; its message names the remedy
            raise ConfigError([str(cause)]) from cause
        raise cause or error from None


def callback_nodes(cfg: DictConfig) -> dict[str, Any]:
    """The callbacks by name; one that is null is left out."""
    return {name: node for name, node in (cfg.get("callbacks") or {}).items() if node is not None}


def check_nodes(cfg: DictConfig, known: Mapping[str, Any], found: Findings) -> None:
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
            written = dict(targets(OmegaConf.to_container(node), name)) if OmegaConf.is_config(node) else {}
        except OmegaConfBaseException as error:
            found.add(name, [f"{name}: {str(error).splitlines()[0]}"])
            continue
        found.add(name, mismatch(name, value, known[name]))
        for key, settings in targets(value, name):
            if not found.touch(key):
                borrowed = {k: str(v)[2:-1] for k, v in written.get(key, {}).items() if str(v).startswith("${")}
                own = {k: v for k, v in settings.items() if k not in borrowed or not found.touch(borrowed[k])}
                found.add(key, arguments(key, own))


def attempt(cfg: DictConfig, key: str, **runtime: Any) -> list[str]:
    """What the constructor of the node at ``key`` objects to."""
    try:
        build(cfg, key, **runtime)
    except ConfigError as error:
        return error.problems
    return []


def within(key: str, least: float, most: float = math.inf) -> Callable[[DictConfig], Iterable[str]]:
    """A check that ``key`` is null or in this range."""

    def check(cfg: DictConfig) -> Iterator[str]:
        if cfg[key] is not None and not least <= cfg[key] <= most:
            upto = f" and at most {most}" if most < math.inf else ""
            yield f"{key}={cfg[key]} must be at least {least}{upto}"

    return check


def override(key: str, value: str) -> str:
    """``key=value`` for Hydra's command line, with quotes of Hydra's where its grammar wants them."""
    plain = f"{key}={value}"
    try:
        if OverridesParser.create().parse_override(plain).value() == value:
            return plain
    except HydraException:
        pass
    return f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
