"""The LightningDataModule for plain text: packed rows, loss on every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from recdepth.data.datamodule import DataModule
from recdepth.data.encoding import IGNORED
from recdepth.data.items import EvaluationItem, Split
from recdepth.data.packing import Rows, TextSource, encode_documents, pack, split_of_text
from recdepth.data.stream import Batch, BatchSource
from recdepth.data.tokenizers import byte_tokenizer, encode_texts

_SNAPSHOTS = 8  # batches that the loader may be ahead of training


class TextData(DataModule):
    """Trains on plain text: documents with a stop token between them, packed into rows, loss on every token.

    A row may hold the end of one document and the start of the next. Text in memory is read again and
    again, its rows in a new order each time; streamed text comes in the order of the source. Held-out
    documents are never trained on.

    There is no verifier: `score` is the share of the true continuation's tokens that the new tokens agree
    with, position by position, 0.0 to 1.0; a likeness for comparing samplers, not an accuracy.

    Args:
        source: where the documents come from.
        tokenizer: None is byte level.
        sequence_length: tokens per row.
        max_new_tokens: tokens of a continuation in evaluation; its prompt has the rest of `sequence_length`
        at most. batch_size: rows per batch. validation_items: rows of the validation loader, at most.
        num_workers: processes that prepare batches; must be 0 for streamed text. seed: of the order of rows
        in memory.
    """

    def __init__(
        self,
        source: TextSource,
        tokenizer: PreTrainedTokenizerBase | None = None,
        sequence_length: int = 256,
        max_new_tokens: int = 64,
        batch_size: int = 16,
        validation_items: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
        super().__init__(tokenizer, sequence_length, max_new_tokens, batch_size, num_workers)
        if validation_items < 1:
            raise ValueError(f"data.validation_items={validation_items} must be at least 1")
        if source.streaming and num_workers > 0:
            raise ValueError(
                f"data.num_workers={num_workers} does not go with data.source.streaming=true, whose position could "
                "not be resumed; set data.num_workers=0"
            )
        self.source, self.validation_items, self.seed = source, validation_items, seed
        self._packed: _PackedSource | None = None
        self._stream: _StreamedSource | None = None

    def evaluation_items(self, n: int, split: Split = "test") -> list[EvaluationItem]:
        """The first `n` windows of held-out documents: at most half of one is the prompt.

        Raises:
            ValueError: if the held-out documents have fewer than `n` windows.
        """
        items = list(islice(self._windows(split), n))
        if len(items) < n:
            raise ValueError(
                f"{n} {split} prompts were asked for, but the held-out documents of {self.source.path} give only "
                f"{len(items)}; ask for fewer, add text, or use shorter documents (data.source.document=line)"
            )
        return items

    def score(self, evaluation_item: EvaluationItem, tokens: Sequence[int]) -> float:
        """Share of the continuation's tokens that agree, position by position; missing ones do not."""
        wanted = evaluation_item.answer_ids
        return sum(int(a) == b for a, b in zip(tokens, wanted, strict=False)) / len(wanted)

    def state_dict(self) -> dict[str, Any]:
        """`position`, and for streamed text where the reader stood."""
        snapshot = self._stream.snapshots.get(self._position) if self._stream else None
        return {**super().state_dict(), **({"stream": snapshot} if snapshot else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`; without the reader's place in it, streamed text is read from its start."""
        super().load_state_dict(state_dict)
        if self.source.streaming and "stream" in state_dict:
            self._streamed().snapshots = {self._position: state_dict["stream"]}

    def _windows(self, split: Split) -> Iterator[EvaluationItem]:
        for text in self.source.texts(split):
            ids = [*encode_texts(self.tokenizer, [text], begin=True)[0], self.tokenizer.eos_token_id]
            for start in range(0, len(ids) - 1, self.sequence_length):
                window = ids[start : start + self.sequence_length]
                prompt = min(self.sequence_length - self.max_new_tokens, len(window) // 2)
                if prompt == 0 or (start > 0 and len(window) < self.sequence_length // 2):
                    continue  # too short to be worth a prompt
                answer = window[prompt : prompt + self.max_new_tokens]
                texts = self.decode(window[:prompt]), self.decode(answer)
                yield EvaluationItem(window[:prompt], *texts, answer, None)

    def _source(self) -> BatchSource:
        if self.source.streaming:
            return self._streamed()
        if self._packed is None:
            rows, rest = pack(encode_documents(self.tokenizer, self.source.texts("train")), self.sequence_length)
            self._packed = _PackedSource(*self._with_rest(rows, rest), self.batch_size, self.seed)
        return self._packed

    def _streamed(self) -> _StreamedSource:
        if self._stream is None:
            self._stream = _StreamedSource(self)
        return self._stream

    def _make_validation_rows(self) -> Dataset:
        documents = encode_documents(self.tokenizer, self.source.texts("validation"))
        rows, rest = pack(documents, self.sequence_length, self.validation_items)
        input_ids, labels = self._with_rest(rows, rest)
        columns = {"input_ids": input_ids.astype(np.int64), "labels": labels.astype(np.int64)}
        return Dataset.from_dict(columns).with_format("torch")

    def _with_rest(self, rows: Rows, rest: list[int]) -> tuple[Rows, Rows]:
        """Rows and labels, with the rest as a last, padded row. ValueError if there is nothing at all."""
        if not rest and not len(rows):
            raise ValueError(
                f"data.source.path={self.source.path!r} has no documents for one of training and validation; add "
                "text, or use shorter documents (data.source.document=line)"
            )
        if not rest:
            return rows, rows
        last = np.full((1, self.sequence_length), self.tokenizer.pad_token_id, dtype=rows.dtype)
        unlabelled = np.full_like(last, IGNORED)
        last[0, : len(rest)] = unlabelled[0, : len(rest)] = rest
        return np.concatenate([rows, last]), np.concatenate([rows, unlabelled])


class _PackedSource:
    """Rows in memory, in a new order in every pass; the batch at a position is a function of it and the
    seed."""

    def __init__(self, rows: Rows, labels: Rows, batch_size: int, seed: int) -> None:
        self.rows, self.labels, self.batch_size, self.seed = rows, labels, batch_size, seed
        self._pass, self._order = -1, np.zeros(0, dtype=np.int64)

    def batches(self, first: int, step: int) -> Iterator[Batch]:
        """See `BatchSource.batches`."""
        position = first
        while True:
            start = position * self.batch_size
            chosen = [self._row(number) for number in range(start, start + self.batch_size)]
            input_ids, labels = self.rows[chosen].astype(np.int64), self.labels[chosen].astype(np.int64)
            yield {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
            position += step

    def _row(self, number: int) -> int:
        done, index = divmod(number, len(self.rows))
        if done != self._pass:
            self._pass = done
            self._order = np.random.default_rng([self.seed, done]).permutation(len(self.rows))
        return int(self._order[index])


class _StreamedSource:
    """Rows packed while the source is read; `snapshots` has the reader's place for the latest positions."""

    def __init__(self, data: TextData) -> None:
        self.source, self.tokenizer = data.source, data.tokenizer
        self.shape = (data.batch_size, data.sequence_length)
        self.snapshots: dict[int, dict[str, Any]] = {}

    def batches(self, first: int, step: int) -> Iterator[Batch]:
        """See `BatchSource.batches`. Without a snapshot for `first`, batches before it are read and dropped."""
        place = self.snapshots.get(first // step, {"batches": 0, "rest": [], "reader": None})
        buffer, made = list(place["rest"]), place["batches"]
        wanted = self.shape[0] * self.shape[1]
        for ids, reader in self._documents(place["reader"]):
            buffer += ids
            while len(buffer) >= wanted:
                batch, buffer = buffer[:wanted], buffer[wanted:]
                made += 1
                if made <= first or (made - 1 - first) % step:
                    continue
                self._remember((made - 1) // step + 1, {"batches": made, "rest": buffer[:], "reader": reader})
                tokens = torch.tensor(batch, dtype=torch.int64).reshape(self.shape)
                yield {"input_ids": tokens, "labels": tokens.clone()}

    def _documents(self, state: dict[str, Any] | None) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Training documents without end, each with the state of the reader behind it."""
        dataset = self.source.open()
        if state is not None:
            dataset.load_state_dict(state)
        epoch = state["epoch"] if state is not None else 0
        while True:
            dataset.set_epoch(epoch)
            found = False
            for example in dataset:
                text = self.source.text(example)
                if text and split_of_text(text) == "train":
                    found = True
                    ids = encode_texts(self.tokenizer, [text], begin=True)[0]
                    yield [*ids, self.tokenizer.eos_token_id], dataset.state_dict()
            if not found and state is None:
                raise ValueError(f"data.source.path={self.source.path!r} has no documents for training; add text")
            epoch, state = epoch + 1, None

    def _remember(self, position: int, snapshot: dict[str, Any]) -> None:
        self.snapshots[position] = snapshot
        for old in [key for key in self.snapshots if key <= position - _SNAPSHOTS]:
            del self.snapshots[old]
