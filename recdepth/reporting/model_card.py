"""The README.md of a model folder: data, training, loss by recurrences, samplers, shape; from the run's own files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open

from .html import Table, duration, text_cells
from .markdown import markdown
from .page import comparison_table, evaluation_table
from .runs import RunFolder, read_run

_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"
_RECIPE = ("objective", "optimizer", "scheduler", "lora", "trainer", "seed")
_SHAPE: tuple[str, ...] = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "prelude_layers",
    "core_layers",
)
_SHAPE += ("coda_layers", "max_position_embeddings", "mean_recurrence", "tie_word_embeddings", "dtype")
_OF_THIS_MACHINE = ("paths.", "hydra.", "logger.", "resume")  # overrides that say nothing about the model


def write_model_card(model_folder: Path | str, run_folder: Path | str | None = None, repo: str | None = None) -> Path:
    """Write ``README.md`` into a model folder.

    Args:
        model_folder: with ``config.json``.
        run_folder: the run that made the model; None: the card has its shape alone.
        repo: hub id, for the title and the example; None: the folder's name.

    Returns:
        the path of the card.

    Raises:
        ValueError: if there is no model, or the run folder is none.
    """
    folder = Path(model_folder)
    run = read_run(run_folder) if run_folder is not None else None
    path = folder / "README.md"
    model_card(folder, run, repo).save(path)
    return path


def model_card(folder: Path, run: RunFolder | None = None, repo: str | None = None) -> ModelCard:
    """The card of :func:`write_model_card`."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model (config.json is missing)")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = repo or (run.path.resolve().name if run is not None else folder.resolve().name)
    context: dict[str, Any] = {"name": name, "repo": repo or "THIS_FOLDER_OR_REPO"}
    context["shape"] = _yaml({key: config[key] for key in _SHAPE if key in config})
    layers = config.get("core_layers", 1)
    context["core"] = "one block" if layers == 1 else f"a core of {layers} blocks"
    context["lead"] = _lead(folder, config)
    if run is not None:
        context |= _of_run(run)
    return ModelCard.from_template(_metadata(name, run), template_path=str(_TEMPLATE), **context)


def _lead(folder: Path, config: Mapping[str, Any]) -> str:
    parts = [
        f"{config.get('prelude_layers', 0)} + {config.get('core_layers', 0)} + {config.get('coda_layers', 0)} blocks"
    ]
    count = parameters(folder)
    if count is not None:
        parts.insert(0, f"{count / 1e6:,.2f} M parameters" if count < 1e9 else f"{count / 1e9:,.2f} B parameters")
    parts.append(f"{config.get('mean_recurrence')} recurrences on average in training")
    return ", ".join(parts)


def parameters(folder: Path) -> int | None:
    """Stored weights of a model folder; None where there are none that can be read."""
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    size = 1
                    for length in file.get_slice(name).get_shape():
                        size *= length
                    total += size
        except SafetensorError:
            return None
    return total or None


def _of_run(run: RunFolder) -> dict[str, Any]:
    """What the card says of the run that made the model."""
    config = _resolved(run.config)
    table = comparison_table(run.comparison) if run.comparison else evaluation_table(run)
    depth = _depth(run)
    return {
        "depth": markdown(depth) if depth else None,
        "samplers": markdown(table) if table else None,
        "training": _training(run),
        "started_from": _public(config["init_from"]) if config.get("init_from") else None,
        "data": _yaml(_settings(config["data"])) if config.get("data") else None,
        "recipe": _yaml({key: _settings(config[key]) for key in _RECIPE if config.get(key) is not None}),
        "command": _command(run),
    }


def _depth(run: RunFolder) -> Table | None:
    prefix = "val/loss_depth_"
    found = {int(name.removeprefix(prefix)): run.last(name) for name in run.metric_names() if name.startswith(prefix)}
    if not found:
        return None
    depths = sorted(found)
    return Table(
        "Loss by recurrences",
        ["recurrences", *map(str, depths)],
        [text_cells("loss", *(f"{found[depth]:.4g}" for depth in depths))],
    )


def _training(run: RunFolder) -> str:
    facts = []
    if run.steps is not None:
        facts.append(f"{run.steps[0]} optimizer steps")
    if run.seconds is not None:
        facts.append(f"{duration(run.seconds)} in all")
    for name, label in (("val/loss", "validation loss"), ("train/loss", "training loss")):
        if (value := run.last(name)) is not None:
            facts.append(f"{label} {value:.4g} nats per token")
    machine = [str(run.provenance[key]) for key in ("device",) if key in run.provenance]
    machine += [f"{key} {run.provenance[key]}" for key in ("torch", "transformers") if key in run.provenance]
    return ". ".join(part for part in (", ".join(facts), ", ".join(machine)) if part) + "."


def _command(run: RunFolder) -> str:
    commit = run.provenance.get("git_commit")
    words = [f"train.py {shlex.join(_public_overrides(run))}".strip()] if run.overrides or run.provenance else []
    note = " (with changes that were not committed)" if run.provenance.get("git_dirty") else ""
    return "\n".join([*([f"# commit {commit}{note}"] if commit else []), *(f"python {word}" for word in words)])


def _public_overrides(run: RunFolder) -> list[str]:
    shown = []
    for override in run.overrides:
        key, equals, value = override.partition("=")
        if not key.lstrip("+~").startswith(_OF_THIS_MACHINE):
            shown.append(f"{key}={_public(value)}" if equals else key)
    return shown


def _public(value: str) -> str:
    """A path without the folders that are nobody's business."""
    return "/".join(Path(value).parts[-2:]) if Path(value).is_absolute() else value


def _settings(node: Any) -> Any:
    """Settings without what is not set, classes by their names, and no folders of this machine."""
    if isinstance(node, dict):
        kept = {key: _settings(value) for key, value in node.items() if value is not None and key != "default_root_dir"}
        return {("class" if key == "_target_" else key): value for key, value in kept.items() if key != "_partial_"}
    if isinstance(node, list):
        return [_settings(value) for value in node]
    return _public(node) if isinstance(node, str) else node


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with its interpolations filled in, node by node, as far as that goes."""
    whole = OmegaConf.create(config)
    found: dict[str, Any] = {}
    for key in config:
        try:
            node = whole[key]
            found[key] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        except OmegaConfBaseException:
            found[key] = config[key]
    return found


def _metadata(name: str, run: RunFolder | None) -> ModelCardData:
    """What the hub reads: tags, the base model, and accuracies."""
    data: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    data["tags"] = ["recdepth", "recurrent-depth", "looped-transformer", "diffusion-forcing"]
    start = run.config.get("init_from") if run is not None else None
    if isinstance(start, str) and not Path(start).exists() and start.count("/") == 1 and start[0] not in "./~":
        data["base_model"] = start
    results = _results(run) if run is not None else []
    if results:
        data |= {"model_name": name.rsplit("/", 1)[-1], "eval_results": results}
    return ModelCardData(**data)


def _results(run: RunFolder) -> list[EvalResult]:
    data = run.config.get("data") or {}
    task = data.get("task") or data.get("source") or {}
    title = str((task.get("_target_") if isinstance(task, dict) else task) or "held-out prompts").rsplit(".", 1)[-1]
    kind: dict[str, Any] = {
        "task_type": "text-generation",
        "dataset_type": title,
        "dataset_name": title,
        "metric_type": "accuracy",
    }
    prefix, items = "test/accuracy/", (run.config.get("evaluation") or {}).get("items")
    measured = {str(row["sampler"]): (row["accuracy"], row["n"]) for row in run.comparison}
    measured = measured or {
        name.removeprefix(prefix): (run.last(name), items) for name in run.metric_names() if name.startswith(prefix)
    }
    return [
        EvalResult(
            **kind,
            dataset_split="test",
            dataset_args={"prompts": prompts},
            metric_name=f"accuracy, {sampler}",
            metric_value=round(float(value), 4),
        )
        for sampler, (value, prompts) in measured.items()
        if value is not None
    ]


def _yaml(settings: Any) -> str:
    return str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=110)).rstrip()
