"""Load models and tokenizers from a folder or the Hugging Face Hub, in our own format or a known family's."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from .config import RecurrentDepthConfig
from .families import FAMILIES
from .recurrent import RecurrentDepthForCausalLM

_PATTERNS = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"]


def load_model(
    path_or_hub_id: str | Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> RecurrentDepthForCausalLM:
    """Load a model for inference (``eval`` mode); its family is read off ``config.json``.

    Args:
        path_or_hub_id: a folder with ``config.json`` and safetensors, or a hub id. No remote code is executed.
        dtype: None keeps the stored one.
        device: None is the CPU.

    Raises:
        ValueError: naming the folder and what is wrong with it.
    """
    folder = _folder(path_or_hub_id, _PATTERNS)
    raw = _read_config(folder)
    model = _convert(folder, raw, _family(folder, raw), dtype)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.name_or_path = str(path_or_hub_id)
    model.to(device or "cpu")  # type: ignore[arg-type]
    return model.eval()


def load_config(path_or_hub_id: str | Path) -> RecurrentDepthConfig:
    """The configuration of a model, without its weights; arguments and errors as in :func:`load_model`."""
    folder = _folder(path_or_hub_id, _PATTERNS[:1])
    raw = _read_config(folder)
    try:
        return _family(folder, raw).convert_config(raw)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error


def load_tokenizer(path_or_hub_id: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model.

    Raises:
        ValueError: when there is none.
    """
    folder = Path(path_or_hub_id)
    if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
        raise ValueError(f"{folder} holds no tokenizer (tokenizer_config.json is missing)")
    return AutoTokenizer.from_pretrained(path_or_hub_id)


def _folder(path_or_hub_id: str | Path, patterns: list[str]) -> Path:
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    if isinstance(path_or_hub_id, Path) or path.is_absolute() or str(path_or_hub_id).count("/") > 1:
        raise ValueError(f"{path_or_hub_id} is not a folder; give a model folder or a hub id such as owner/name")
    return Path(snapshot_download(str(path_or_hub_id), allow_patterns=patterns))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no model (config.json is missing)")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _family(folder: Path, raw: dict[str, Any]) -> ModuleType:
    for family in FAMILIES:
        if family.matches(raw):
            return family
    known = [f.__name__.rsplit(".", 1)[-1] for f in FAMILIES]
    raise ValueError(f"model_type={raw.get('model_type')!r} in {folder / 'config.json'} is unknown; known: {known}")


def _files(folder: Path) -> list[Path]:
    """The weight files: those of the index, or model.safetensors."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        files = [folder / "model.safetensors"]
    if missing := [f.name for f in files if not f.exists()]:
        raise ValueError(f"{folder} lacks weights: {', '.join(missing)} (only safetensors are read)")
    return files


def _convert(
    folder: Path, raw: dict[str, Any], family: ModuleType, dtype: torch.dtype | None
) -> RecurrentDepthForCausalLM:
    try:
        config = family.convert_config(raw)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    tensors: dict[str, Tensor] = {}
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if (ours := family.rename(name)) is not None:
                        tensors[ours] = file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    if config.tie_word_embeddings:
        tensors.pop("head.weight", None)
    with torch.device("meta"):
        model = RecurrentDepthForCausalLM(config)
    expected = {k: v.shape for k, v in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("head.weight")
    problems = [f"{k} is missing" for k in expected.keys() - tensors.keys()]
    problems += [f"{k} is not part of this model" for k in tensors.keys() - expected.keys()]
    problems += [
        f"{k} has shape {tuple(tensors[k].shape)} instead of {tuple(expected[k])}"
        for k in expected.keys() & tensors.keys()
        if tensors[k].shape != expected[k]
    ]
    if problems:
        shown = "\n".join(f"  - {p}" for p in sorted(problems)[:10])
        raise ValueError(f"{folder} does not hold the weights that its config.json describes:\n{shown}")
    target = dtype or tensors["embedding.weight"].dtype
    model.load_state_dict({k: v.to(target) for k, v in tensors.items()}, strict=False, assign=True)
    model.tie_weights()
    model.config.dtype = target
    return model
