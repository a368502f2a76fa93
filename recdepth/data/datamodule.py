"""The LightningDataModule: its common face, and the one for tasks."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import lightning
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from recdepth.data.encoding import ItemEncoder, pad_rows
from recdepth.data.items import EvaluationItem, Split, Task
from recdepth.data.stream import Batch, BatchSource, TrainLoader, pad_batch
from recdepth.data.tokenizers import encode_texts

_BLOCK = 32  # batches that are generated and tokenised at once, at most
_BLOCK_SECONDS = 0.05  # blocks grow while they take less than this
_PROBE = 32  # items whose length is checked at construction


def size_problems(
    sequence_length: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    validation_items: int | None = None,
) -> list[str]:
    """What is wrong with the sizes that are given."""
    wrong = [
        f"data.{name}={value} must be at least {least}"
        for name, value, least in (
            ("sequence_length", sequence_length, 2),
            ("max_new_tokens", max_new_tokens, 1),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("validation_items", validation_items, 1),
        )
        if value is not None and value < least
    ]
    if sequence_length is not None and max_new_tokens is not None and max_new_tokens >= sequence_length:
        wrong.append(
            f"data.max_new_tokens={max_new_tokens} leaves no room for a prompt in data.sequence_length="
            f"{sequence_length}; lower it or set data.sequence_length={max_new_tokens + 1} or more"
        )
    return wrong


class DataModule(lightning.LightningDataModule, ABC):
    """What training, evaluation and sampling need from data, be it a task or text.

    Batches are `{"input_ids", "labels"}`, int64 [batch_size, sequence_length], right-padded, always of that
    shape; labels are -100 where there is no loss, and not shifted. The training loader is endless: limit
    training by steps. `state_dict` holds the position in it, so that a resumed run goes on with the batch
    after the last one trained on.

    Attributes:
        tokenizer: available right after construction; a model's vocab_size is `len(tokenizer)`.
        sequence_length: tokens per row. max_new_tokens: tokens that an answer may take, stop token included.
        batch_size: rows per batch. num_workers: processes that prepare batches (0: in the training process).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sequence_length: int,
        max_new_tokens: int,
        batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        wrong = size_problems(sequence_length, max_new_tokens, batch_size, num_workers)
        if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
            wrong.append(
                "data.tokenizer needs an eos_token and a pad_token; use recdepth.data.pretrained_tokenizer, "
                "which sets the latter"
            )
        if wrong:
            raise ValueError("; ".join(wrong))
        self.tokenizer = tokenizer
        self.sequence_length, self.max_new_tokens = sequence_length, max_new_tokens
        self.batch_size, self.num_workers = batch_size, num_workers
        self._position = 0
        self._validation_rows: Dataset | None = None

    @abstractmethod
    def _source(self) -> BatchSource:
        """Training batches by position."""

    @abstractmethod
    def _make_validation_rows(self) -> Dataset:
        """Held-out rows with columns input_ids and labels, in memory, as torch tensors."""

    @abstractmethod
    def evaluation_items(self, n: int, split: Split = "test") -> list[EvaluationItem]:
        """The first `n` items of a held-out split: always the same ones."""

    @abstractmethod
    def score(self, evaluation_item: EvaluationItem, tokens: Sequence[int]) -> float:
        """Score of new tokens (a stop token may be last), 0.0 to 1.0."""

    @property
    def stop_tokens(self) -> list[int]:
        """Tokens that end an answer."""
        return [self.tokenizer.eos_token_id]

    def train_dataloader(self) -> TrainLoader:
        """Endless batches from the current position on."""
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return TrainLoader(self._source(), self._start, self._drawn, self.num_workers, rank, world_size)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Held-out batches in a fixed order; the last one is filled up with rows without labels."""
        if self._validation_rows is None:
            self._validation_rows = self._make_validation_rows()
        collate = partial(pad_batch, batch_size=self.batch_size, pad=self.tokenizer.pad_token_id)
        return DataLoader(
            self._validation_rows,
            batch_size=self.batch_size,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
        )

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a prompt as in training. ValueError if it is empty or has unknown words."""
        ids = encode_texts(self.tokenizer, [prompt], begin=True)[0]
        if not prompt or not ids:
            raise ValueError("prompt='' is empty; give at least one word")
        unknown = self.tokenizer.unk_token_id  # may be the start token, too
        if unknown is not None and unknown in encode_texts(self.tokenizer, [prompt], begin=False)[0]:
            words = prompt.split()
            encoded = encode_texts(self.tokenizer, words, begin=False)
            names = [word for word, word_ids in zip(words, encoded, strict=True) if unknown in word_ids]
            raise ValueError(
                f"prompt has words that the tokenizer does not know: {', '.join(names)}; write it with words "
                "of the training data, or train with data.tokenizer._target_=recdepth.data.byte_tokenizer"
            )
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, up to the first stop token, without special tokens."""
        ids = [int(token) for token in tokens]
        end = next((i for i, token in enumerate(ids) if token in self.stop_tokens), len(ids))
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def state_dict(self) -> dict[str, Any]:
        """`position`: training batches used so far, per process."""
        return {"position": self._position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._position = int(state_dict["position"])

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count the batch when the trainer takes it up, which is later than when its fetcher drew it."""
        if self.trainer is not None and self.trainer.training:
            self._position += 1
        return batch

    def _start(self) -> int:
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return 0 if overfit else self._position

    def _drawn(self) -> None:
        if self.trainer is None:
            self._position += 1


class TaskData(DataModule):
    """Trains and evaluates on a verifiable task: loss on answers and their stop token only.

    Training items are generated as they are needed and never repeat, unless the task has few different ones.

    Args:
        task: what to learn.
        tokenizer: None builds the task's own, whose vocabulary is complete by construction.
        sequence_length: tokens per row.
        max_new_tokens: tokens of the longest answer, stop token included; prompts get the rest of the row.
        batch_size: rows per batch.
        validation_items: rows of the validation loader.
        drop_long: leave items that do not fit out, instead of raising ValueError when one is met.
        num_workers: processes that prepare batches.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase | None = None,
        sequence_length: int = 112,
        max_new_tokens: int = 60,
        batch_size: int = 16,
        validation_items: int = 256,
        drop_long: bool = False,
        num_workers: int = 0,
    ) -> None:
        tokenizer = task.build_tokenizer() if tokenizer is None else tokenizer
        super().__init__(tokenizer, sequence_length, max_new_tokens, batch_size, num_workers)
        if validation_items < 1:
            raise ValueError(f"data.validation_items={validation_items} must be at least 1")
        self.task, self.validation_items = task, validation_items
        self._encoder = ItemEncoder(task, tokenizer, sequence_length, max_new_tokens, drop_long)
        self._shared_level = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._encoder.items("train", range(_PROBE))

    @property
    def level(self) -> int:
        """The task's curriculum level, 1 to `max_level`; AttributeError if the task has no levels.

        `evaluation_items` of validation follow it, the validation loader's rows are always of all levels.

        A change counts from the next batch that is drawn; with workers, those already under way (two per
        worker) still have the old level.
        """
        return int(self.task.level)  # type: ignore[attr-defined]

    @level.setter
    def level(self, level: int) -> None:
        self.task.level = level  # type: ignore[attr-defined]

    @property
    def max_level(self) -> int:
        """The task's highest level. AttributeError if the task has no levels."""
        return int(self.task.max_level)  # type: ignore[attr-defined]

    def evaluation_items(self, n: int, split: Split = "test") -> list[EvaluationItem]:
        """See `DataModule.evaluation_items`."""
        items, rows = self._encoder.items(split, range(n))
        return [
            EvaluationItem(row.prompt, item.prompt, item.answer, row.answer, item)
            for item, row in zip(items, rows, strict=True)
        ]

    def score(self, evaluation_item: EvaluationItem, tokens: Sequence[int]) -> float:
        """The task's verdict on the decoded tokens: 1.0 or 0.0."""
        assert evaluation_item.item is not None
        return self.task.score(evaluation_item.item, self.decode(tokens))

    def encode_prompt(self, prompt: str) -> list[int]:
        """See `DataModule.encode_prompt`; the task's `prompt_suffix`, if any, is added if missing."""
        suffix = self._encoder.prompt_suffix
        complete = not prompt or prompt.endswith(suffix)
        return super().encode_prompt(prompt if complete else prompt + suffix)

    def state_dict(self) -> dict[str, Any]:
        """`position`, and `level` where the task has levels."""
        level = {"level": self.level} if hasattr(self.task, "level") else {}
        return {**super().state_dict(), **level}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state_dict)
        if "level" in state_dict:
            self.level = int(state_dict["level"])

    def _source(self) -> BatchSource:
        return _TaskSource(self._encoder, self.batch_size, self._shared_level)

    def _make_validation_rows(self) -> Dataset:
        level = getattr(self.task, "level", None)
        if level is not None:
            self.level = self.max_level
        _, rows = self._encoder.items("validation", range(self.validation_items))
        if level is not None:
            self.level = level
        input_ids, labels = pad_rows(rows, self.sequence_length, self.tokenizer.pad_token_id)
        return Dataset.from_dict({"input_ids": input_ids, "labels": labels}).with_format("torch")

    def _start(self) -> int:
        self._share_level()
        return super()._start()

    def _drawn(self) -> None:
        self._share_level()
        super()._drawn()

    def _share_level(self) -> None:
        """Workers hold copies of the task: they read its level from shared memory."""
        if hasattr(self.task, "level"):
            self._shared_level[0] = self.level


class _TaskSource:
    """Training batches of a task: the batch at position p holds the items p·batch_size and following."""

    def __init__(self, encoder: ItemEncoder, batch_size: int, shared_level: torch.Tensor) -> None:
        self.encoder, self.batch_size, self.shared_level = encoder, batch_size, shared_level

    def batches(self, first: int, step: int) -> Iterator[Batch]:
        """See `BatchSource.batches`. Batches are generated in blocks, dropped when the level changes."""
        position, size, task = first, self.batch_size, self.encoder.task
        block = 1
        while True:
            began = time.perf_counter()
            level = self._read_level(task)
            starts = [(position + i * step) * size for i in range(block)]
            _, rows = self.encoder.items("train", [start + i for start in starts for i in range(size)])
            pad = self.encoder.tokenizer.pad_token_id
            input_ids, labels = map(torch.from_numpy, pad_rows(rows, self.encoder.sequence_length, pad))
            grown = min(2 * block, _BLOCK) if time.perf_counter() - began < _BLOCK_SECONDS else block
            for i in range(block):
                if self._read_level(task) != level:
                    break
                chosen = slice(i * size, (i + 1) * size)
                yield {"input_ids": input_ids[chosen].clone(), "labels": labels[chosen].clone()}
                position += step
            block = grown

    def _read_level(self, task: Task) -> int | None:
        if not hasattr(task, "level"):
            return None
        if torch.utils.data.get_worker_info() is not None:
            task.level = int(self.shared_level[0])
        return int(task.level)
