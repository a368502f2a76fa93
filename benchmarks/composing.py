"""From command-line words to a model, its data and named samplers; what is wrong with them, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from recdepth.data import DataModule
from recdepth.evaluation import comparison_samplers
from recdepth.models import load_tokenizer
from recdepth.nodes import attempt, build, check_nodes
from recdepth.sampling import Adaptive, Autoregressive, Exact, Sampler, Speculative
from recdepth.settings import ConfigError, Findings, suggest
from recdepth.sources import run_folder

CONF = Path(__file__).resolve().parents[1] / "conf"


def model_folder(given: str | None) -> str:
    """The model that is meant by a run folder, a model folder, a hub id, or nothing (the newest run's).

    Raises:
        ConfigError: without a run to take it from.
    """
    if given is None:
        return str(run_folder(None, CONF.parent / "outputs") / "model")
    return str(Path(given) / "model") if (Path(given) / "model" / "config.json").is_file() else given


def build_data(words: Sequence[str], model: str) -> tuple[DataModule, dict[str, Any]]:
    """The data for prompts and scores, with the tokenizer beside the model where there is one.

    Args:
        words: at most one name of ``conf/data``, and ``key=value`` for its settings; without a name the data of the
            run that the model belongs to.
        model: folder or hub id.

    Returns:
        the data, and its settings.

    Raises:
        ConfigError: naming every setting that is wrong.
    """
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise ConfigError([f"--data {' '.join(words)}: {names[1]} is a second name; give one, then key=value"])
    saved = Path(model).parent / ".hydra" / "config.yaml"
    if names:
        node = _composed("train", "data", names[0])
    elif saved.is_file():
        config = OmegaConf.load(saved)
        assert isinstance(config, DictConfig)
        node = OmegaConf.to_container(config.data, resolve=True)
    else:
        raise ConfigError([f"--model={model} belongs to no run ({saved} is missing); name its data: --data NAME"])
    for word in words:
        if "=" in word:
            key, _, value = word.partition("=")
            _set(node, key.removeprefix("data."), value, "data")
    has_tokenizer = "tokenizer" in node and node["tokenizer"] is None
    cfg, found = OmegaConf.create({"data": node}), Findings()
    check_nodes(cfg, {"data": dict}, found)
    found.report()
    try:
        given = {"tokenizer": load_tokenizer(model)} if has_tokenizer and _tokenizer_beside(model) else {}
        return build(cfg, "data", **given), node
    except (ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"data: {error}"]) from error


def build_samplers(specs: Sequence[str], num_steps: int, depths: Sequence[int] | None) -> dict[str, Sampler]:
    """The samplers to measure: AR at r first, AR at smaller depths, adaptive, then the ones given.

    Args:
        specs: ``[NAME=]CONF[,key=value …]``, CONF a name of ``conf/sampler`` or a YAML file with a ``_target_``;
            ``num_steps`` of a named one is r unless given. None gives the standard list and the lossless samplers.
        num_steps: r.
        depths: of AR besides r; None for the smaller powers of two.

    Raises:
        ConfigError: naming every setting that is wrong.
    """
    wrong = [f"--ar-depths={d} must lie between 1 and --num-steps={num_steps}" for d in depths or () if d > num_steps]
    if num_steps < 1 or wrong:
        raise ConfigError(wrong or [f"--num-steps={num_steps} must be at least 1"])
    standard = comparison_samplers(num_steps)
    samplers: dict[str, Sampler] = {
        name: s
        for name, s in standard.items()
        if (isinstance(s, Autoregressive) and (depths is None or s.num_steps == num_steps)) or isinstance(s, Adaptive)
    }
    if depths is not None:
        adaptive = samplers.pop("adaptive")
        samplers |= {f"ar-{d}": Autoregressive(num_steps=d) for d in sorted(set(depths), reverse=True)}
        samplers["adaptive"] = adaptive
    if not specs:
        lossless = {"exact": Exact(num_steps=num_steps), "speculative": Speculative(num_steps=num_steps)}
        samplers |= {name: s for name, s in standard.items() if name not in samplers}
        return samplers | {name: s for name, s in lossless.items() if name not in samplers}
    nodes: dict[str, Any] = {}
    for spec in specs:
        name, node = _sampler_node(spec, num_steps)
        if name in samplers or name in nodes:
            raise ConfigError([f"--sampler {spec}: {name} is taken; name it: --sampler NAME={spec.split('=', 1)[-1]}"])
        nodes[name] = node
    cfg, found = OmegaConf.create({"sampler": nodes}), Findings()
    check_nodes(cfg, {"sampler": dict}, found)
    for name in nodes:
        if not found.touch(f"sampler.{name}"):
            found.add(f"sampler.{name}", attempt(cfg, f"sampler.{name}"))
    found.report()
    samplers |= {name: build(cfg, f"sampler.{name}") for name in nodes}
    if wrong := [
        f"sampler.{n}._target_={nodes[n]['_target_']} is no sampler"
        for n in nodes
        if not isinstance(samplers[n], Sampler)
    ]:
        raise ConfigError([f"{problem}; take one of recdepth.sampling" for problem in wrong])
    return samplers


@dataclass(frozen=True)
class Variant:
    """A sampler in a mode; ``label`` is its key among all that are timed in turn."""

    name: str
    mode: str
    sampler: Sampler

    @property
    def label(self) -> str:
        return self.name if self.mode == "eager" else f"{self.name} ({self.mode})"


def _sampler_node(spec: str, num_steps: int) -> tuple[str, Any]:
    head, *settings = spec.split(",")
    name, _, conf = head.rpartition("=")
    path = Path(conf)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError([f"--sampler {spec}: {conf} is not a file; give one, or a name of conf/sampler"])
        node = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(node, dict) or "_target_" not in node:
            raise ConfigError([f"--sampler {spec}: {conf} has no _target_; copy a file of conf/sampler and edit it"])
        name = name or path.stem
    else:
        node = _composed("sample", "sampler", conf)
        node["num_steps"] = num_steps
        name = name or conf
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError([f"--sampler {spec}: {setting!r} has no value; write {key}=VALUE"])
        _set(node, key, value, f"sampler.{name}")
    return name, node


def _composed(config: str, group: str, name: str) -> Any:
    """The node of a group's configuration, by name."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(config, overrides=[f"{group}={name}"])
    except MissingConfigException as error:
        known = error.options or sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        raise ConfigError([f"--{group} {name} is not in conf/{group}{suggest(name, known)}"]) from error
    node = OmegaConf.to_container(cfg[group], resolve=True)
    assert isinstance(node, dict)
    return node


def _set(node: Any, key: str, value: str, top: str) -> None:
    *path, last = key.split(".")
    for i, part in enumerate(path):
        if not isinstance(node.get(part), dict):
            raise ConfigError(
                [f"{top}.{key}={value}: {'.'.join(path[: i + 1])} holds no settings{suggest(part, node)}"]
            )
        node = node[part]
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError([f"{top}.{key}={value} is not a YAML value; put quotes around it"]) from error


def _tokenizer_beside(model: str) -> bool:
    return not Path(model).is_dir() or (Path(model) / "tokenizer_config.json").is_file()
