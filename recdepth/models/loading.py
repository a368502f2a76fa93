"""Load models and tokenizers from a folder or the Hugging Face Hub, in our own format or a known family's."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from .config import RecurrentDepthConfig
from .families import FAMILIES, Family
from .recurrent import RecurrentDepthForCausalLM
from .weights import FLOATS, Weights, check_weights, fill, stored_dtype

_PATTERNS = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"]


def load_model(
    path_or_hub_id: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> RecurrentDepthForCausalLM:
    """Load a model for inference (``eval`` mode); its family is read off ``config.json`` and the tensors' names.

    Each weight is copied once, from the mapped file to where it stays: no second copy is ever in memory.

    Args:
        path_or_hub_id: a folder with ``config.json`` and safetensors (one file, or shards and their index), or a hub
            id. No remote code is executed, and no pickle read.
        dtype: None keeps the stored one.
        device: None is the CPU.
        device_map: instead of ``device``, as transformers has it: ``"auto"`` for the accelerator with the most free
            memory if the weights fit there, else the CPU; or ``{"": device}``. The whole model lies on one device: a
            core that is applied again and again would send its states from one to the other all the time.

    Raises:
        ValueError: naming the folder and what is wrong with it.
    """
    target = None if dtype is None else _dtype(dtype)
    folder = snapshot(path_or_hub_id)
    raw = parse_config(folder)
    _family(folder, raw, None)  # an unknown one is said before weights are looked for
    weights = Weights(folder)
    family = _family(folder, raw, weights.shapes)
    config = _convert(folder, raw, family)
    with torch.device("meta"):
        model = RecurrentDepthForCausalLM(config)
    check_weights(folder, model, family, weights)
    target = target or stored_dtype(weights, family)
    fill(model, family, weights, target, _device(model, target, device, device_map))
    model.config.dtype = target
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.name_or_path = str(path_or_hub_id)
    return model.eval()


def load_config(path_or_hub_id: str | Path) -> RecurrentDepthConfig:
    """The configuration of a model, without its weights; arguments and errors as in :func:`load_model`."""
    folder = snapshot(path_or_hub_id, _PATTERNS[:1])
    raw = parse_config(folder)
    shapes = Weights(folder).shapes if any(folder.glob("*.safetensors")) else None  # their names tell families apart
    return _convert(folder, raw, _family(folder, raw, shapes))


def load_tokenizer(path_or_hub_id: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model, or in a GGUF file.

    Raises:
        ValueError: when there is none.
    """
    folder = Path(path_or_hub_id)
    if is_gguf(folder):
        need_gguf(folder)
        return AutoTokenizer.from_pretrained(folder.parent, gguf_file=folder.name)
    if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
        raise ValueError(f"{folder} holds no tokenizer (tokenizer_config.json is missing)")
    return AutoTokenizer.from_pretrained(path_or_hub_id)


def snapshot(path_or_hub_id: str | Path, patterns: Sequence[str] = _PATTERNS) -> Path:
    """The folder, or what the hub has of these files; ValueError if it is neither."""
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    if isinstance(path_or_hub_id, Path) or path.is_absolute() or str(path_or_hub_id).count("/") > 1:
        raise ValueError(f"{path_or_hub_id} is not a folder; give a model folder or a hub id such as owner/name")
    return Path(snapshot_download(str(path_or_hub_id), allow_patterns=list(patterns)))


def is_gguf(path: str | Path) -> bool:
    """Whether this names a GGUF file, llama.cpp's format of a model and its tokenizer in one."""
    return Path(path).suffix == ".gguf"


def need_gguf(path: str | Path) -> None:
    """Raise for a GGUF file that is not there, or packages that reading it needs."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not there; give a .gguf file, a folder or a hub id")
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        remedy = "pip install -c constraints.txt -e '.[gguf]'"
        raise ModuleNotFoundError(f"GGUF files need gguf and accelerate; install them with {remedy}")


def parse_config(folder: Path) -> dict[str, Any]:
    """A folder's ``config.json``; ValueError if there is none."""
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no model (config.json is missing)")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _family(folder: Path, raw: dict[str, Any], names: Collection[str] | None) -> Family:
    for family in FAMILIES.values():
        if family.matches(raw, names):
            return family
    where = f"model_type={raw.get('model_type')!r} in {folder / 'config.json'}"
    raise ValueError(f"{where} is unknown; known families: {', '.join(FAMILIES)}")


def _convert(folder: Path, raw: dict[str, Any], family: Family) -> RecurrentDepthConfig:
    try:
        return family.convert_config(raw)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    known = {str(float_type).removeprefix("torch."): float_type for float_type in FLOATS.values()}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise ValueError(f"dtype={dtype!r} is unknown; take one of {', '.join(known)}")
    return known[name]


def _device(
    model: RecurrentDepthForCausalLM,
    dtype: torch.dtype,
    device: torch.device | str | None,
    device_map: str | dict[str, Any] | None,
) -> torch.device:
    if device_map is None:
        return torch.device(device or "cpu")
    if device is not None:
        raise ValueError(f"device={device} and device_map={device_map} exclude each other; drop one")
    if device_map == "auto":
        return _roomiest(sum(p.numel() for p in model.parameters()) * dtype.itemsize)
    devices = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
    if len(devices) != 1:
        raise ValueError(f"device_map={device_map} must name one device for the whole model, as {{'': 'cuda:0'}} does")
    return torch.device(devices.pop())


def _roomiest(needed: int) -> torch.device:
    """The accelerator with the most free memory, if so many bytes fit; else the CPU."""
    free = {i: torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())}
    best = max(free, key=lambda i: free[i], default=None)
    return torch.device("cpu") if best is None or free[best] < needed else torch.device("cuda", best)
