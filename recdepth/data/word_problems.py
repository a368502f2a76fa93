"""Templated word problems with worked answers: the quickstart's task."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from recdepth.data.items import Item, ProceduralTask, Split
from recdepth.data.tokenizers import word_tokenizer

# fmt: off
NAMES = (
    "Anna", "Ben", "Cara", "Dan", "Emma", "Finn", "Grace", "Hugo", "Iris", "Jack", "Lena", "Max",
    "Nora", "Zoe",
)
OBJECTS = (
    "apples", "books", "cards", "coins", "cups", "eggs", "kites", "marbles", "pears", "pens",
    "shells", "stamps",
)
# fmt: on
GAINS = (
    "{name} finds {n} more.",
    "{name} buys {n} more.",
    "{name} wins {n} more.",
    "{other} gives {name} {n} more.",
)
LOSSES = ("{name} loses {n}.", "{name} sells {n}.", "{name} breaks {n}.", "{name} gives {other} {n}.")
_INTRODUCTION = "{name} has {n} {things}."
_QUESTION = "How many {things} does {name} have?"
_ANSWER_WORDS = "Now has then + - = ####"


@dataclass(frozen=True)
class _Problem:
    start: int
    changes: tuple[int, ...]  # signed
    name: str
    things: str
    sentences: tuple[str, ...]


class WordProblems(ProceduralTask):
    """Gains and losses of some objects, with the running total worked out.

    "Zoe has 48 books. Zoe loses 6. ... How many books does Zoe have?" is answered "Now Zoe has 48 - 6 = 42;
    then 42 + 3 = 45; ... #### 45", fully determined by the prompt. `score` is the exact match of the number
    after the last "####". Problems with the same numbers in other words count as the same problem when
    train, validation and test are kept apart.

    Args:
        min_steps, max_steps: gains and losses per problem, each number of steps equally often.
        max_operand: operands are 1 to this.
        max_total: the running total stays between 0 and this; it starts at a fifth to four fifths of it.
        seed: of the problems.

    Raises:
        ValueError: for impossible settings, all at once.
    """

    name = "word_problems"

    def __init__(
        self, min_steps: int = 4, max_steps: int = 6, max_operand: int = 9, max_total: int = 99, seed: int = 0
    ) -> None:
        super().__init__(seed)
        wrong = []
        if min_steps < 1:
            wrong.append(f"min_steps={min_steps} must be at least 1")
        if max_steps < min_steps:
            wrong.append(f"max_steps={max_steps} must be at least min_steps={min_steps}; raise it")
        if max_operand < 1:
            wrong.append(f"max_operand={max_operand} must be at least 1")
        if max_total < 2 * max_operand:
            wrong.append(f"max_total={max_total} must be at least twice max_operand={max_operand}; raise it")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.min_steps, self.max_steps = min_steps, max_steps
        self.max_operand, self.max_total = max_operand, max_total

    def draw(self, rng: random.Random, split: Split) -> _Problem:
        """Draw numbers and words."""

        def below(n: int) -> int:  # several times faster than randrange
            return int(rng.random() * n)

        who, lowest = below(len(NAMES)), self.max_total // 5
        name, other = NAMES[who], NAMES[who - 1 - below(len(NAMES) - 1)]
        start = total = lowest + below(self.max_total * 4 // 5 - lowest + 1)
        changes, sentences = [], []
        for _ in range(self.min_steps + below(self.max_steps - self.min_steps + 1)):
            n = 1 + below(self.max_operand)
            gain = below(2) == 1
            if not 0 <= (total + n if gain else total - n) <= self.max_total:
                gain = not gain
            total += n if gain else -n
            changes.append(n if gain else -n)
            templates = GAINS if gain else LOSSES
            sentences.append(templates[below(len(templates))].format(name=name, other=other, n=n))
        return _Problem(start, tuple(changes), name, OBJECTS[below(len(OBJECTS))], tuple(sentences))

    def content(self, problem: _Problem) -> str:
        """The numbers, not the words."""
        return f"{problem.start} {problem.changes}"

    def render(self, problem: _Problem) -> Item:
        """Write prompt and worked answer."""
        total, work = problem.start, []
        for change in problem.changes:
            work.append(f"{total} {'+' if change > 0 else '-'} {abs(change)} = {total + change};")
            total += change
        introduction = _INTRODUCTION.format(name=problem.name, n=problem.start, things=problem.things)
        question = _QUESTION.format(name=problem.name, things=problem.things)
        return Item(
            prompt=" ".join([introduction, *problem.sentences, question]),
            answer=f"Now {problem.name} has {' then '.join(work)} #### {total}",
            metadata={"final": total, "steps": len(work), "content": self.content(problem)},
        )

    def score(self, item: Item, text: str) -> float:
        """1.0 if the text ends with "#### N", N the right number and nothing after it; else 0.0."""
        found = re.search(r"####\s*(-?[0-9]+)\s*\Z", text)
        return float(found is not None and int(found.group(1)) == item.metadata["final"])

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """Word level with single digits, from the templates: complete by construction."""
        templates = " ".join([_INTRODUCTION, *GAINS, *LOSSES, _QUESTION, _ANSWER_WORDS])
        words = re.sub(r"\{\w+\}", " ", templates).split()
        return word_tokenizer([*words, *NAMES, *OBJECTS])
