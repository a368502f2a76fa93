"""Held-out prompts: where their texts end, and how these are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from recdepth.models import RecurrentDepthForCausalLM
from recdepth.sampling import Sampler, SampleResult

if TYPE_CHECKING:
    from recdepth.data import DataModule


class Prompt(Protocol):
    """What evaluation needs of an item; :class:`recdepth.data.EvaluationItem` has it."""

    @property
    def prompt_ids(self) -> list[int]:
        """Token ids of the prompt, at least one."""
        ...


#: Score in [0, 1] of an item's new tokens (a stop token may be last).
Score = Callable[[Any, list[int]], float]


@dataclass(frozen=True)
class HeldOut:
    """Prompts that a model has not been trained on, and what becomes of their continuations.

    Attributes:
        items: the prompts; item i has random stream ``first`` + i, whatever the batch size.
        score: of an item's new tokens.
        max_new_tokens: per prompt.
        stop_tokens: ids that end a continuation.
        first: random stream of the first item.
    """

    items: Sequence[Prompt]
    score: Score
    max_new_tokens: int
    stop_tokens: Sequence[int]
    first: int = 0

    @classmethod
    def of(cls, data: DataModule, count: int, split: Literal["validation", "test"]) -> HeldOut:
        """The first items of a split, as the data wants them continued."""
        return cls(data.evaluation_items(count, split=split), data.score, data.max_new_tokens, data.stop_tokens)

    def __len__(self) -> int:
        return len(self.items)

    def part(self, begin: int, end: int) -> HeldOut:
        """Some of the items, each with the random stream that it has here; begin and end as of a slice, from 0 on."""
        return replace(self, items=self.items[begin:end], first=self.first + begin)

    def sample(self, sampler: Sampler, model: RecurrentDepthForCausalLM, **call: Any) -> SampleResult:
        """Continue all of the prompts; ``call`` has the further arguments of the sampler's call."""
        return sampler(
            model,
            [item.prompt_ids for item in self.items],
            max_new_tokens=self.max_new_tokens,
            stop_tokens=self.stop_tokens,
            rows=range(self.first, self.first + len(self.items)),
            **call,
        )
