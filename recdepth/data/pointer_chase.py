"""Following pointers k times: a task whose every answer token needs many recurrences."""

from __future__ import annotations

import random
from dataclasses import dataclass
from string import ascii_lowercase

from transformers import PreTrainedTokenizerFast

from recdepth.data.items import Item, ProceduralTask, Split
from recdepth.data.tokenizers import word_tokenizer


@dataclass(frozen=True)
class _Problem:
    target: dict[str, str]  # the permutation f
    order: tuple[str, ...]  # of the pairs in the prompt
    hops: int
    start: str | None  # of a chained answer


class PointerChase(ProceduralTask):
    """A random permutation f as pairs, then f applied k times ("hops") to every symbol.

    "a c, b a, c b; 2 hops?" is answered "a b, b c, c a": the pairs x f(x) in random order, then x f^k(x)
    for every x in alphabetical order. `score` is 1.0 if all answers are right, else 0.0. A permutation
    belongs to one of train, validation and test, whatever k and the order.

    Training and validation items have k from 1 to `level`, which a curriculum may raise up to `max_level` =
    `max_hops`. Test items do not depend on the level: k is `evaluation_hops`, or 1 to `max_hops`.

    Args:
        symbols: how many symbols, 4 to 26.
        max_hops: the largest k.
        level: the largest k in training at the start; None: `max_hops`, no curriculum.
        evaluation_hops: k of test items; None: each k from 1 to `max_hops` equally often.
        chained: answer x, f^k(x), f^k(f^k(x)), … from one symbol on instead ("… 2 hops from a?" → "a b c"), as many
            symbols as there are: every answer token needs the one before.
        chained_share: share of chained items in training and validation, for one model that answers both forms; None:
            all or none, as `chained` says of test items.
        one_cycle: draw permutations that are one cycle. Chains of others soon repeat, and what repeats can be copied:
            with a prime number of symbols a chain now holds each symbol once, unless k is a multiple of that number.
        seed: of the problems.

    Raises:
        ValueError: for impossible settings, all at once.
    """

    name = "pointer_chase"

    def __init__(
        self,
        symbols: int = 12,
        max_hops: int = 8,
        level: int | None = None,
        evaluation_hops: int | None = None,
        chained: bool = False,
        chained_share: float | None = None,
        one_cycle: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        wrong = []
        if not 4 <= symbols <= len(ascii_lowercase):
            wrong.append(f"symbols={symbols} must be 4 to {len(ascii_lowercase)}")
        if max_hops < 1:
            wrong.append(f"max_hops={max_hops} must be at least 1")
        for key, value in (("level", level), ("evaluation_hops", evaluation_hops)):
            if value is not None and not 1 <= value <= max(max_hops, 1):
                wrong.append(f"{key}={value} must be 1 to max_hops={max_hops}; lower it or raise max_hops")
        if chained_share is not None and not 0 <= chained_share <= 1:
            wrong.append(f"chained_share={chained_share} must be null or between 0 and 1")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.symbols, self.max_level = ascii_lowercase[:symbols], max_hops
        self.evaluation_hops, self.chained = evaluation_hops, chained
        self.chained_share = float(chained) if chained_share is None else chained_share
        self.one_cycle = one_cycle
        self._level = max_hops if level is None else level

    @property
    def level(self) -> int:
        """The largest k in training and validation; 1 to `max_level`."""
        return self._level

    @level.setter
    def level(self, level: int) -> None:
        if not 1 <= level <= self.max_level:
            raise ValueError(f"level={level} must be 1 to max_hops={self.max_level}; raise data.task.max_hops")
        self._level = level

    def draw(self, rng: random.Random, split: Split) -> _Problem:
        """Draw a permutation, k and the order of the pairs."""
        targets, order = list(self.symbols), list(self.symbols)
        rng.shuffle(targets)
        rng.shuffle(order)
        target = dict(zip(self.symbols, targets, strict=True))
        if self.one_cycle:
            target = dict(zip(targets, [*targets[1:], targets[0]], strict=True))
        hops = rng.randint(1, self.max_level if split == "test" else self.level)
        if split == "test" and self.evaluation_hops is not None:
            hops = self.evaluation_hops
        chained = self.chained if split == "test" else rng.random() < self.chained_share
        start = rng.choice(self.symbols) if chained else None
        return _Problem(target, tuple(order), hops, start)

    def content(self, problem: _Problem) -> str:
        """The permutation alone."""
        return "".join(problem.target[symbol] for symbol in self.symbols)

    def render(self, problem: _Problem) -> Item:
        """Write prompt and answer."""

        def follow(symbol: str) -> str:
            for _ in range(problem.hops):
                symbol = problem.target[symbol]
            return symbol

        pairs = ", ".join(f"{symbol} {problem.target[symbol]}" for symbol in problem.order)
        if problem.start is None:
            asked = f"{problem.hops} hops?"
            answer = ", ".join(f"{symbol} {follow(symbol)}" for symbol in self.symbols)
        else:
            asked = f"{problem.hops} hops from {problem.start}?"
            chain = [problem.start]
            while len(chain) < len(self.symbols):
                chain.append(follow(chain[-1]))
            answer = " ".join(chain)
        metadata = {"hops": problem.hops, "content": self.content(problem)}
        return Item(prompt=f"{pairs}; {asked}", answer=answer, metadata=metadata)

    def score(self, item: Item, text: str) -> float:
        """1.0 if every symbol of the answer is right; white space does not count."""
        return float("".join(text.split()) == "".join(item.answer.split()))

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """Word level: one token per symbol, digit and mark."""
        return word_tokenizer([*self.symbols, "hops", "from"])
