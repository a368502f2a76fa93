"""Whether the samplers of a configuration suit its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from omegaconf import DictConfig

from .models import RecurrentDepthConfig
from .nodes import build, callback_nodes
from .sampling import Sampler


def unsupported_samplers(cfg: DictConfig, config: RecurrentDepthConfig | None = None) -> Iterator[str]:
    """What samplers used in or after training need and the model lacks, one line each.

    Args:
        cfg: of train.py, without other problems.
        config: the model's; None builds it, and finds nothing where it is known only when it is loaded.
    """
    config = build(cfg, "model", vocab_size=2) if config is None else config
    if not isinstance(config, RecurrentDepthConfig):
        return
    for key, sampler in _samplers(cfg):
        for problem in sampler.unsupported(config):
            yield f"{key}: {sampler.name} does not suit this model: {problem}"


def _samplers(cfg: DictConfig) -> Iterator[tuple[str, Sampler]]:
    """Every sampler that training or the comparison after it uses, with its key."""
    nodes = [f"callbacks.{name}" for name, node in callback_nodes(cfg).items() if _ours(node)]
    for key in [*nodes, *(["comparison"] if cfg.compare else [])]:
        made = build(cfg, key)
        if isinstance(sampler := getattr(made, "sampler", None), Sampler):
            yield f"{key}.sampler", sampler
        if isinstance(samplers := getattr(made, "samplers", None), Mapping):
            yield from ((f"{key}.samplers.{name}", each) for name, each in samplers.items())


def _ours(node: DictConfig) -> bool:
    return str(node.get("_target_")).startswith("recdepth.training.")
