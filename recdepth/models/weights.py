"""The tensors of a checkpoint: where they lie, whether they fit a model, and reading them without a second copy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import RecurrentDepthConfig
from .recurrent import RecurrentDepthForCausalLM

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
#: Bytes that are read before a file is mapped anew, which gives the memory of what has been read back.
_MAPPED = 64 << 20


class Names(Protocol):
    """The names of tensors for ours: what a family says of them."""

    @property
    def IGNORED(self) -> tuple[str, ...]: ...

    def names(self, ours: str) -> tuple[str, ...]: ...


class Stored(Protocol):
    """Tensors that can be read."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    def read(self, wanted: Mapping[str, tuple[str, ...]], place: Callable[[str, list[Tensor]], None]) -> None: ...


class Weights:
    """The tensors of a folder's safetensors, sharded or not. Only the headers are read at first.

    Attributes:
        shapes, dtypes: of every tensor; dtypes as safetensors names them.

    Raises:
        ValueError: when there are none, or they cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for path in _files(folder):
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    part = file.get_slice(name)
                    self._files[name], self.shapes[name] = path, tuple(part.get_shape())
                    self.dtypes[name] = part.get_dtype()

    def read(self, wanted: Mapping[str, tuple[str, ...]], place: Callable[[str, list[Tensor]], None]) -> None:
        """Hand tensors to ``place(key, tensors)``, the sources of one key at a time.

        The tensors are views of mapped files: copy what is to be kept. Files are mapped anew every so often, so no more
        than about 64 MB and one key's tensors are in memory besides what has been copied.
        """
        order = sorted(wanted, key=lambda key: [str(self._files[name]) for name in wanted[key]])
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}
            mapped = 0
            for key in order:
                if mapped > _MAPPED:
                    opened.clear()
                    stack.close()
                    mapped = 0
                tensors = []
                for name in wanted[key]:
                    path = self._files[name]
                    if path not in opened:
                        opened[path] = stack.enter_context(_opened(path))
                    tensors.append(opened[path].get_tensor(name))
                mapped += sum(tensor.nbytes for tensor in tensors)
                place(key, tensors)
                del tensors


def _files(folder: Path) -> list[Path]:
    """The weight files: model.safetensors, or those of the index, which may be left over beside it."""
    index = folder / INDEX
    if index.exists() and not (folder / SINGLE).exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index} is no index of safetensors: it has no weight_map") from error
        files = [folder / name for name in names]
    else:
        files = [folder / SINGLE]
    if missing := [f.name for f in files if not f.exists()]:
        raise ValueError(f"{folder} lacks weights: {', '.join(missing)}{_pickles(folder)}")
    return files


def _pickles(folder: Path) -> str:
    found = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if not found:
        return " (only safetensors are read)"
    return (
        f"; {', '.join(found[:3])} may run code when it is read, so only safetensors are: if you trust it, convert it"
        " with safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
    )


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}; it may be incomplete: fetch or copy it again") from error


#: Stored dtypes that weights can have.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


# ------------------------------------------------------------------------------------------------------- into a model


def stacked_sizes(config: RecurrentDepthConfig, ours: str, rows: int, parts: int) -> list[int]:
    """Rows of the tensors that, one under the other, are ours: queries, keys and values, or gate and up."""
    if parts == 3:
        assert config.num_key_value_heads is not None
        keys = config.num_key_value_heads * config.head_dim
        return [rows - 2 * keys, keys, keys]
    return [rows // parts] * parts


def sources(model: RecurrentDepthForCausalLM, family: Names) -> dict[str, tuple[str, ...]]:
    """The family's tensors for each of the model's that has some; a tied head has none."""
    tied = {"head.weight"} if model.config.tie_word_embeddings else set()
    return {ours: names for ours in model.state_dict() if ours not in tied and (names := family.names(ours))}


def stored_dtype(weights: Stored, family: Names) -> torch.dtype:
    """The dtype that a checkpoint has: that of its embedding."""
    return FLOATS[weights.dtypes[family.names("embedding.weight")[0]]]


def check_weights(where: str | Path, model: RecurrentDepthForCausalLM, family: Names, weights: Stored) -> None:
    """Raise ValueError naming what a checkpoint lacks, has too much, or in another shape."""
    if problems := list(_mismatches(model, family, weights)):
        shown = "\n".join(f"  - {p}" for p in problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{where} does not hold the weights that its config.json describes:\n{shown}{more}")


def _mismatches(model: RecurrentDepthForCausalLM, family: Names, weights: Stored) -> Iterator[str]:
    shapes, wanted = weights.shapes, sources(model, family)
    known = {*family.IGNORED, *family.names("head.weight")}  # a tied head may be stored all the same
    for ours, tensor in model.state_dict().items():
        names = wanted.get(ours, ())
        rows = stacked_sizes(model.config, ours, tensor.shape[0], len(names)) if names else []
        for name, count in zip(names, rows, strict=True):
            known.add(name)
            expected = (count, *tensor.shape[1:])
            if name not in shapes:
                yield f"{name} is missing"
            elif shapes[name] != expected:
                yield f"{name} has shape {shapes[name]} instead of {expected}"
            elif weights.dtypes[name] not in FLOATS:
                yield f"{name} is stored as {weights.dtypes[name]}, not in one of {', '.join(FLOATS)}"
    yield from (f"{name} is not part of this model" for name in sorted(shapes.keys() - known))


def fill(
    model: RecurrentDepthForCausalLM,
    family: Names,
    weights: Stored,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Give a model on the meta device its weights; the only copy of each is made where it stays."""

    def place(name: str, tensors: list[Tensor]) -> None:
        module, _, leaf = name.rpartition(".")
        old = model.get_parameter(name)
        new = torch.empty_like(old, dtype=dtype, device=device)  # laid out as the layer wants it
        for part, tensor in zip(new.split([t.shape[0] for t in tensors]), tensors, strict=True):
            part.copy_(tensor)
        setattr(model.get_submodule(module), leaf, torch.nn.Parameter(new, requires_grad=old.requires_grad))

    weights.read(sources(model, family), place)
    model.tie_weights()
