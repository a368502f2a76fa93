"""Items to token rows: prompt, answer and stop token, right-padded to a fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from recdepth.data.items import Item, Split, Task
from recdepth.data.tokenizers import TextEncoder

IGNORED = -100
"""Label of positions without a loss."""

_RETRY_STRIDE = 1_000_000_000_039  # a prime, far beyond any index
_MAX_RETRIES = 200


class ItemTooLongError(ValueError):
    """An item needs more tokens than the settings give it."""


@dataclass(frozen=True)
class Row:
    """Token ids of one item; `answer` ends with the stop token."""

    prompt: list[int]
    answer: list[int]


class ItemEncoder:
    """Encodes items: prompts get `sequence_length - max_new_tokens` tokens, answers `max_new_tokens`.

    So every prompt together with `max_new_tokens` new tokens fits a model whose context is `sequence_length`.
    Prompts and answers are encoded apart, so that a prompt has the same ids in training and in sampling.

    Args:
        drop_long: replace an item that does not fit by another one, always the same, instead of raising.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        sequence_length: int,
        max_new_tokens: int,
        drop_long: bool = False,
    ) -> None:
        self.task, self.tokenizer = task, tokenizer
        self.sequence_length, self.max_new_tokens, self.drop_long = sequence_length, max_new_tokens, drop_long
        self._encode = TextEncoder(tokenizer)
        self.prompt_suffix: str = getattr(task, "prompt_suffix", "")

    def items(self, split: Split, indices: Sequence[int]) -> tuple[list[Item], list[Row]]:
        """The items at these indices with their rows. Raises `ItemTooLongError`, a ValueError."""
        items = [self.task.item(split, index) for index in indices]
        rows = self.rows(items)
        for i, row in enumerate(rows):
            if self.excess(row):
                items[i], rows[i] = self._replace(split, indices[i], row)
        return items, rows

    def rows(self, items: Sequence[Item]) -> list[Row]:
        """Token ids of items, whatever their length."""
        prompts = self._encode([item.prompt for item in items], begin=True)
        answers = self._encode([item.answer for item in items], begin=False)
        stop = self.tokenizer.eos_token_id
        return [Row(prompt, [*answer, stop]) for prompt, answer in zip(prompts, answers, strict=True)]

    def excess(self, row: Row) -> str:
        """Why a row does not fit, with the remedy; empty if it fits."""
        prompt, answer = len(row.prompt), len(row.answer)
        room = self.sequence_length - self.max_new_tokens
        if answer > self.max_new_tokens:
            needed = max(self.sequence_length, prompt + answer)
            return (
                f"an answer of {answer} tokens (stop token included) is longer than data.max_new_tokens="
                f"{self.max_new_tokens}; set data.max_new_tokens={answer} or more, with data.sequence_length="
                f"{needed} or more"
            )
        if prompt > room:
            return (
                f"a prompt of {prompt} tokens is longer than the {room} that data.sequence_length="
                f"{self.sequence_length} leaves beside data.max_new_tokens={self.max_new_tokens}; set "
                f"data.sequence_length={prompt + self.max_new_tokens} or more"
            )
        return ""

    def _replace(self, split: Split, index: int, row: Row) -> tuple[Item, Row]:
        if not self.drop_long:
            raise ItemTooLongError(
                f"task {self.task.name}, {split} item {index}: {self.excess(row)}, or data.drop_long=true to "
                "leave such items out"
            )
        for attempt in range(1, _MAX_RETRIES + 1):
            item = self.task.item(split, index + attempt * _RETRY_STRIDE)
            row = self.rows([item])[0]
            if not self.excess(row):
                return item, row
        raise ItemTooLongError(
            f"task {self.task.name}: {_MAX_RETRIES} items in a row do not fit, the last one has {self.excess(row)}"
        )


def pad_rows(rows: Sequence[Row], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """input_ids and labels, int64 [rows, length]; labels are `IGNORED` on prompt and padding, not shifted."""
    input_ids = np.full((len(rows), length), pad, dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    for i, row in enumerate(rows):
        start, end = len(row.prompt), len(row.prompt) + len(row.answer)
        input_ids[i, :start] = row.prompt
        input_ids[i, start:end] = row.answer
        labels[i, start:end] = row.answer
    return input_ids, labels
