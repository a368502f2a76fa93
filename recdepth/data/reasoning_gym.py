"""Any dataset of the reasoning-gym package, by name, with its own verifier."""

from __future__ import annotations

import dataclasses
import difflib
import random
import traceback
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from recdepth.data.datamodule import TaskData
from recdepth.data.items import SPLITS, Item, ProceduralTask, Split
from recdepth.data.tokenizers import byte_tokenizer

_SIZE = 750_000  # entries that items are drawn from; some datasets keep a number for each in memory
_FINAL = "####"


class ReasoningGym(ProceduralTask):
    """A reasoning-gym dataset: `metadata["answer_cot"]` is the answer where there is one, else the plain
    answer.

    Worked solutions end with "#### N"; what follows the last "####" is what the verifier sees. The three
    splits use entries with different random seeds and, besides, never share a question.

    Args:
        task: name of the dataset, such as "gsm_symbolic" (worked solutions), "chain_sum" or "leg_counting".
        config: settings of that dataset, such as {"difficulty": 2.0}; `size` is the number of entries to
        draw from. train_items: use only this many training items again and again, kept in memory, for
        datasets that are slow
            to generate; None: always new ones.
        seed: of the problems.

    Raises:
        ValueError: for an unknown name or setting, or a dataset without reference answers.
        ModuleNotFoundError: if reasoning-gym is not installed.
    """

    prompt_suffix = "\n"

    def __init__(
        self,
        task: str = "gsm_symbolic",
        config: Mapping[str, Any] | None = None,
        train_items: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if train_items is not None and train_items < 1:
            raise ValueError(f"train_items={train_items} must be at least 1, or null for no limit")
        self.name, self.train_items = task, train_items
        settings = {"size": _SIZE, **(config or {})}
        self._dataset = _create(task, {"seed": seed * settings["size"], **settings})
        self._entries = int(settings["size"]) // len(SPLITS)
        if self._entries < 1:
            raise ValueError(f"config.size={settings['size']} must be at least {len(SPLITS)}")
        self._kept: dict[int, Item] = {}

    def item(self, split: Split, index: int) -> Item:
        """See `Task.item`."""
        if split != "train" or self.train_items is None:
            return super().item(split, index)
        index %= self.train_items
        if index not in self._kept:
            self._kept[index] = super().item(split, index)
        return self._kept[index]

    def draw(self, rng: random.Random, split: Split) -> dict[str, Any]:
        """An entry whose own seed belongs to the split."""
        entry: dict[str, Any] = self._dataset[rng.randrange(self._entries) * len(SPLITS) + SPLITS.index(split)]
        if entry["answer"] is None:
            raise ValueError(
                f"reasoning-gym dataset {self.name!r} has no reference answers to learn from; choose another for "
                "data.task"
            )
        return entry

    def content(self, problem: dict[str, Any]) -> str:
        """The question, whatever its white space."""
        return " ".join(problem["question"].split())

    def render(self, problem: dict[str, Any]) -> Item:
        """Question and worked or plain answer."""
        answer = str(problem["metadata"].get("answer_cot") or problem["answer"])
        return Item(prompt=problem["question"] + self.prompt_suffix, answer=answer, metadata={"entry": problem})

    def score(self, item: Item, text: str) -> float:
        """1.0 if the dataset's verifier gives full marks, else 0.0, also where it cannot read the answer."""
        entry = item.metadata["entry"]
        if entry["metadata"].get("answer_cot"):
            _, found, text = text.rpartition(_FINAL)
            if not found:
                return 0.0
        unreadable = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, SyntaxError)
        try:
            return float(self._dataset.score_answer(answer=text.strip(), entry=entry) >= 1.0)
        except (*unreadable, RecursionError):
            return 0.0

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """Byte level: no text of any dataset is unknown to it."""
        return byte_tokenizer()


class TaskDataSettings(TypedDict, total=False):
    """The settings of `TaskData`, but for the task."""

    tokenizer: PreTrainedTokenizerBase | None
    sequence_length: int
    max_new_tokens: int
    batch_size: int
    validation_items: int
    drop_long: bool
    num_workers: int


def reasoning_gym_data(
    task: str = "gsm_symbolic",
    config: Mapping[str, Any] | None = None,
    train_items: int | None = None,
    seed: int = 0,
    **settings: Unpack[TaskDataSettings],
) -> TaskData:
    """`TaskData` over `ReasoningGym`, with the name of the dataset as `task`."""
    return TaskData(ReasoningGym(task, config, train_items, seed), **settings)


def _create(task: str, settings: dict[str, Any]) -> Any:
    try:
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "data=reasoning_gym needs the package reasoning-gym; install it with"
            " pip install -c constraints.txt -e '.[tasks]'"
        ) from error
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(sorted(DATASETS))}"
        raise ValueError(f"data.task={task!r} is not a reasoning-gym dataset; {hint}")
    dataset_class, config_class = DATASETS[task]
    known = [field.name for field in dataclasses.fields(config_class)]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ValueError(f"data.config: {task} has no {', '.join(unknown)}; its settings are {', '.join(known)}")
    configuration = config_class(**settings)
    try:
        getattr(configuration, "validate", lambda: None)()  # a few have none
    except (AssertionError, ValueError) as error:
        reason = str(error) or traceback.extract_tb(error.__traceback__)[-1].line  # assertions without a text
        raise ValueError(f"data.config={settings}: {task} refuses it: {reason}; change data.config") from error
    return dataset_class(config=configuration)
