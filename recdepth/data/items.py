"""Items, the task protocol, and the rule that keeps train, validation and test apart."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_TENTHS: tuple[Split, ...] = ("train",) * 8 + ("validation", "test")
_MAX_ATTEMPTS = 5000


@dataclass(frozen=True)
class Item:
    """One problem: the text shown, the text wanted, and what the verifier needs besides."""

    prompt: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationItem:
    """An `Item` with its token ids; `answer_ids` ends with the stop token. `item` is None for plain text."""

    prompt_ids: list[int]
    prompt: str
    answer: str
    answer_ids: list[int]
    item: Item | None


@runtime_checkable
class Task(Protocol):
    """A verifiable task. A task with a curriculum also has `level: int` and `max_level: int`."""

    name: str

    def item(self, split: Split, index: int) -> Item:
        """The item at `index` (>= 0) of a split: a pure function of (settings, seed, split, index)."""
        ...

    def score(self, item: Item, text: str) -> float:
        """1.0 if `text`, a decoded continuation of the prompt, is right; else 0.0."""
        ...

    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """A small tokenizer whose vocabulary covers every item."""
        ...


def split_of(content: str) -> Split:
    """The one split that may hold `content`: 8 in 10 train, 1 validation, 1 test, by hash alone."""
    digest = hashlib.blake2b(content.encode("utf-8"), digest_size=8).digest()
    return _TENTHS[int.from_bytes(digest, "little") % 10]


class ProceduralTask(ABC):
    """Draws random problems and keeps those whose canonical content belongs to the split asked for.

    The content decides the split, whatever the seed, level or wording: two splits can never share a problem,
    even between runs with different seeds.
    """

    name: str

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @abstractmethod
    def draw(self, rng: random.Random, split: Split) -> Any:
        """Draw a problem."""

    @abstractmethod
    def content(self, problem: Any) -> str:
        """The canonical content: equal for problems that ask for the same work in other words."""

    @abstractmethod
    def render(self, problem: Any) -> Item:
        """Write the problem out."""

    def item(self, split: Split, index: int) -> Item:
        """See `Task.item`."""
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; use one of {', '.join(SPLITS)}")
        if index < 0:
            raise ValueError(f"index={index} is negative; use 0 or more")
        rng = random.Random(f"{self.name}/{self.seed}/{split}/{index}")
        for _ in range(_MAX_ATTEMPTS):
            problem = self.draw(rng, split)
            if split_of(self.content(problem)) == split:
                return self.render(problem)
        raise ValueError(
            f"task {self.name}: no {split} problem among {_MAX_ATTEMPTS} drawn, there are too few different "
            "ones; widen the task's settings (more steps, operands or symbols)"
        )
