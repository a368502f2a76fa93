"""Plain text as fixed-length rows: where documents come from, and how they are packed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets, load_dataset
from transformers import PreTrainedTokenizerBase

from recdepth.data.items import Split, split_of
from recdepth.data.tokenizers import encode_texts

Rows = np.ndarray
"""int32 [rows, time]."""

_BUILDERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
_SAMPLE_BY = {"file": "document", "paragraph": "paragraph", "line": "line"}
_ENCODED_AT_ONCE = 256


@dataclass(frozen=True)
class TextSource:
    """Documents from a local file, a local folder (searched through), or a dataset on the Hugging Face hub.

    The hash of a document decides whether it is for training, validation or test (8 : 1 : 1): equal
    documents are never in two splits. Empty documents are left out.

    Args:
        path: a .txt, .jsonl or .parquet file, a folder of such files, or the id of a hub dataset.
        field: the column with the text (.jsonl, .parquet, hub).
        hub_config, hub_split: which part of a hub dataset.
        document: what one document is in a .txt file.
        streaming: read as training goes on, for data larger than memory; else all tokens are held in memory.
            Local files never leave a copy in the datasets cache; a hub dataset does unless it is streamed.
    """

    path: str
    field: str = "text"
    hub_config: str | None = None
    hub_split: str = "train"
    document: Literal["file", "paragraph", "line"] = "paragraph"
    streaming: bool = False

    def __post_init__(self) -> None:
        """ValueError for impossible settings."""
        if self.document not in _SAMPLE_BY:
            raise ValueError(f"data.source.document={self.document!r} is unknown; use one of {', '.join(_SAMPLE_BY)}")
        local = Path(self.path).expanduser()
        if self.path.startswith((".", "/", "~")) or local.suffix in _BUILDERS:
            if not local.exists():
                raise ValueError(f"data.source.path={self.path!r} does not exist; give a file, a folder or a hub id")
        elif not self.path:
            raise ValueError("data.source.path is empty; give a file, a folder or a hub id")

    def open(self) -> Dataset | IterableDataset:
        """The documents as a dataset with a column `field`, of all splits, in a fixed order."""
        local = Path(self.path).expanduser()
        if not local.exists():
            return self._open_hub()
        found = [local] if local.is_file() else sorted(p for p in local.rglob("*") if p.suffix in _BUILDERS)
        if not found or found[0].suffix not in _BUILDERS:
            raise ValueError(f"data.source.path={self.path!r} has no {', '.join(_BUILDERS)} files; give some")
        parts = []
        for suffix, builder in _BUILDERS.items():
            files = [str(file) for file in found if file.suffix == suffix]
            how: dict[str, Any] = {"sample_by": _SAMPLE_BY[self.document]} if builder == "text" else {}
            if files:
                part = load_dataset(builder, data_files=files, split="train", streaming=True, **how)
                parts.append(self._only_text(part, "text" if builder == "text" else self.field))
        return parts[0] if len(parts) == 1 else concatenate_datasets(parts)

    def _open_hub(self) -> Dataset | IterableDataset:
        try:
            return load_dataset(self.path, self.hub_config, split=self.hub_split, streaming=self.streaming)
        except (FileNotFoundError, ConnectionError) as error:
            raise ValueError(
                f"data.source.path={self.path!r} is no local file or folder, and no dataset that the hub gives: "
                f"{error}; check the path or id, the network, and HF_TOKEN if the dataset is private"
            ) from error

    def _only_text(self, part: IterableDataset, column: str) -> IterableDataset:
        """The column with the text, as `field`: files of all kinds then go together."""
        for example in part.take(1):
            if column not in example:
                self.text(example)
        part = part.select_columns([column])
        return part if column == self.field else part.rename_column(column, self.field)

    def texts(self, split: Split) -> Iterator[str]:
        """Documents of one split."""
        return (text for example in self.open() if (text := self.text(example)) and split_of_text(text) == split)

    def text(self, example: dict[str, Any]) -> str:
        """The text of an example, empty if it is null or only white space. ValueError if there is no such field."""
        text = example.get(self.field)
        if text is None and self.field in example:
            return ""
        if not isinstance(text, str):
            raise ValueError(
                f"data.source.field={self.field!r}: {self.path} has no such text, its fields are "
                f"{', '.join(example)}; set data.source.field"
            )
        return text if text.strip() else ""


def split_of_text(text: str) -> Split:
    """The split of a document: the same for texts that differ in white space alone."""
    return split_of(" ".join(text.split()))


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[list[int]]:
    """Token ids of each document, with the stop token behind it."""
    waiting: list[str] = []
    for text in texts:
        waiting.append(text)
        if len(waiting) == _ENCODED_AT_ONCE:
            yield from _encode(tokenizer, waiting)
            waiting = []
    if waiting:
        yield from _encode(tokenizer, waiting)


def pack(documents: Iterable[list[int]], length: int, at_most: int | None = None) -> tuple[Rows, list[int]]:
    """Documents end to end, cut into rows of `length`, int32; and the tokens left over, fewer than `length`.

    Reads no further than for `at_most` rows; there is no rest then.
    """
    pieces: list[np.ndarray] = []
    total = 0
    for ids in documents:
        pieces.append(np.asarray(ids, dtype=np.int32))
        total += len(ids)
        if at_most is not None and total >= at_most * length:
            total = at_most * length
            break
    tokens = np.concatenate(pieces)[:total] if pieces else np.zeros(0, dtype=np.int32)
    full = total // length * length
    return tokens[:full].reshape(-1, length), tokens[full:].tolist()


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Iterator[list[int]]:
    for ids in encode_texts(tokenizer, texts, begin=True):
        yield [*ids, tokenizer.eos_token_id]
