"""What sample.py samples from: a model with prompts and a way to decode, of a run or on its own."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from .data import DataModule
from .data.tokenizers import encode_texts
from .models import RecurrentDepthForCausalLM, load_model, load_tokenizer
from .nodes import build
from .settings import ConfigError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Prompt:
    """A prompt; answer and score where it is a held-out item of a task."""

    text: str
    ids: list[int]
    answer: str | None = None
    score: Callable[[list[int]], float] | None = None


@dataclass(frozen=True)
class Source:
    """A model and everything needed to prompt it; ``run_folder`` is None for a bare model."""

    path: Path | str
    run_folder: Path | None
    model: RecurrentDepthForCausalLM
    prompts: list[Prompt]
    stop_tokens: list[int]
    max_new_tokens: int
    decode: Callable[[Sequence[int]], str]


def source_of_run(
    folder: Path, model: RecurrentDepthForCausalLM, data: DataModule, texts: list[str] | None, num_prompts: int
) -> Source:
    """A run's model with the texts as prompts, or with held-out items of its own data.

    Raises:
        ConfigError: for a prompt that cannot be encoded, or data without held-out prompts.
    """
    if texts is not None:
        prompts = [Prompt(text, _encode(data.encode_prompt, text)) for text in texts]
    else:
        prompts = [
            Prompt(item.prompt, item.prompt_ids, item.answer, partial(data.score, item))
            for item in data.evaluation_items(num_prompts, split="test")
        ]
    if not prompts:
        raise ConfigError(["prompt=null: this run's data has no held-out prompts; give one, prompt='…'"])
    return Source(folder / "model", folder, model, prompts, data.stop_tokens, data.max_new_tokens, data.decode)


def source_of_model(path: str, model: RecurrentDepthForCausalLM, texts: list[str] | None) -> Source:
    """A bare model with the texts as prompts, by the tokenizer that lies beside it.

    Raises:
        ConfigError: without texts, or without a tokenizer.
    """
    if texts is None:
        raise ConfigError([f"prompt=null: model_path={path} comes without data; give prompt='…'"])
    try:
        tokenizer = load_tokenizer(path)
    except (ValueError, OSError) as error:
        raise ConfigError([f"model_path={path}: {error}"]) from error

    def encode(text: str) -> list[int]:
        return encode_texts(tokenizer, [text], begin=True)[0]

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

    prompts = [Prompt(text, _encode(encode, text)) for text in texts]
    ends = getattr(model.generation_config, "eos_token_id", None)
    stops = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    return Source(path, None, model, prompts, sorted(stops), 64, decode)


def load(path: str | Path, key: str, device: str, dtype: str | None) -> RecurrentDepthForCausalLM:
    """Load a model; ``key`` is the setting to blame if that fails.

    Raises:
        ConfigError: naming it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return load_model(path, dtype=DTYPES[dtype] if dtype else None, device=device)
    except (ValueError, OSError) as error:
        raise ConfigError([f"{key}={path}: {error}"]) from error


def run_folder(wanted: str | None, outputs: Path) -> Path:
    """The run folder that is wanted, or the newest one, with a ``model/`` in it.

    Raises:
        ConfigError: when there is none.
    """
    known = sorted(
        (p.parent.parent for p in outputs.rglob("model/config.json")),
        key=lambda folder: (folder / "model" / "config.json").stat().st_mtime,
        reverse=True,
    )
    if wanted is None:
        if not known:
            raise ConfigError(
                [f"paths.outputs={outputs} holds no run with a model; train one (python train.py), or give model_path="]
            )
        return known[0]
    folder = Path(wanted)
    if (folder / "model" / "config.json").is_file():
        return folder
    what = "has no model/ (the run has not got that far)" if folder.is_dir() else "does not exist"
    names = [str(k) for k in known]
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.6) or names[:3]
    there = f"the nearest: {', '.join(near)}" if near else f"there is none under paths.outputs={outputs}"
    raise ConfigError([f"run_dir={wanted} {what}; {there}"])


def _encode(encode: Callable[[str], list[int]], text: str) -> list[int]:
    try:
        return encode(text)
    except ValueError as error:
        why = str(error)
        raise ConfigError([why if why.startswith("prompt=") else f"prompt={text!r}: {why}"]) from error


def data_of_run(folder: Path) -> DataModule:
    """The data that a run was trained on, from its own configuration, with the tokenizer beside its model.

    Raises:
        ConfigError: when it cannot be built.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise ConfigError([f"run_dir={folder} has no .hydra/config.yaml; give model_path={folder / 'model'}"])
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    given = {}
    try:
        if "tokenizer" in config.data:
            config.data.tokenizer, given = None, {"tokenizer": load_tokenizer(folder / "model")}
        return build(config, "data", **given)
    except (ValueError, OSError) as error:
        remedy = f"give model_path={folder / 'model'} and prompt='…'"
        raise ConfigError([f"run_dir={folder}: its data cannot be built ({error}); {remedy}"]) from error
