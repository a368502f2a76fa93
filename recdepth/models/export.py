"""Write a model in a family's format, so that the family's public implementation runs it."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .config import RecurrentDepthConfig
from .families import FAMILIES, Family
from .recurrent import RecurrentDepthForCausalLM
from .weights import INDEX, SINGLE, sources, stacked_sizes

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def export_model(
    model: RecurrentDepthForCausalLM,
    path: str | Path,
    family: str = "recdepth",
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_shard_size: str | int = "5GB",
) -> Path:
    """Write ``config.json`` and safetensors in a family's format; :func:`load_model` reads them back.

    ``recdepth`` is our own format. To run the others by their public implementations, put their files beside the
    weights (``config.json`` names them under ``auto_map``) and load with ``trust_remote_code=True``:

    - ``huginn``: raven_config_minimal.py and raven_modeling_minimal.py, of tomg-group-umd/huginn-0125;
    - ``raven_llama``: raven_config_minimal.py and raven_modeling_minimal_llama.py, of mcleish7/retrofitting-recurrence;
    - ``ouro``: configuration_ouro.py and modeling_ouro.py, of a ByteDance/Ouro model.

    Everything is written beside the folder first, so a full disk leaves what was there as it was. Other files of the
    folder stay; weights of an earlier export go.

    Args:
        model: on any device, in any dtype, which is kept.
        path: the folder, made if it is not there.
        family: of which format.
        tokenizer: saved beside the weights, if given.
        max_shard_size: of a weight file, as transformers has it; larger models get several and an index.

    Returns:
        the folder.

    Raises:
        ValueError: for an unknown family, or naming every setting of the model that the format cannot store.
    """
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} is unknown; take one of {', '.join(FAMILIES)}")
    form = FAMILIES[family]
    if problems := list(_conflicts(model.config, form)):
        listed = "\n".join(f"  - {p}" for p in problems)
        raise ValueError(f"this model cannot be written in the format of {family}:\n{listed}")
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"path={path} is a file; give a folder")
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        fresh = Path(beside, folder.name)  # a folder of its own: temporary ones are for their owner alone
        fresh.mkdir()
        _write_tensors(_tensors(model, form), fresh, max_shard_size)
        config = copy.deepcopy(model.config)
        config.dtype = model.dtype
        _write_json(fresh / "config.json", form.export_config(config))
        if model.generation_config is not None:
            generation = copy.deepcopy(model.generation_config)
            generation._from_model_config = False  # or what was set since would be ignored
            text = generation.to_json_string()  # saving would refuse what loading takes
            (fresh / "generation_config.json").write_text(text, encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh)
        _replace(folder, fresh)
    return Path(path)


def _conflicts(config: RecurrentDepthConfig, family: Family) -> Iterator[str]:
    """Settings that the format implies otherwise."""
    for name, value in family.FIXED.items():
        if getattr(config, name) != value:
            yield f"{name}={getattr(config, name)!r}: the format has {value!r}"
    yield from family.export_problems(config)


def _tensors(model: RecurrentDepthForCausalLM, family: Family) -> dict[str, Tensor]:
    """The weights by the format's names: views, where one of ours is several there."""
    state = model.state_dict()
    tensors = dict(family.extra_tensors(model.config))
    for ours, names in sources(model, family).items():
        sizes = stacked_sizes(model.config, ours, state[ours].shape[0], len(names))
        for name, part in zip(names, state[ours].split(sizes), strict=True):
            tensors[name] = part
    return tensors


def _write_tensors(tensors: dict[str, Tensor], folder: Path, max_shard_size: str | int) -> None:
    plan = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        get_storage_id=lambda tensor: None,  # views of one storage are tensors of their own
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file, names in plan.filename_to_tensors.items():
        save_file({name: tensors[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        _write_json(folder / INDEX, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _replace(folder: Path, fresh: Path) -> None:
    """Move the files of a finished export into its folder."""
    if not folder.exists():
        fresh.rename(folder)
        return
    ours = [path for path in folder.iterdir() if path.name in (INDEX, SINGLE) or _SHARD.fullmatch(path.name)]
    for old in ours:
        if not (fresh / old.name).exists():
            old.unlink()
    for file in fresh.iterdir():
        file.replace(folder / file.name)
