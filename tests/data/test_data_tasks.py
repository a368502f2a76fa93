"""Tasks: splits, verifiers, and items that are functions of seed, split and index."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("reasoning_gym", reason="the extra 'tasks' is not installed")

from recdepth.data import SPLITS, Item, PointerChase, ReasoningGym, Task, WordProblems, split_of


def gsm() -> ReasoningGym:
    return ReasoningGym("gsm_symbolic", {"size": 30_000})


TASKS = {"words": WordProblems, "pointers": PointerChase, "gsm": gsm}


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return TASKS[request.param]()


def contents(task: Task, split: str, n: int) -> set[str]:
    return {item.metadata.get("content", item.prompt) for item in (task.item(split, i) for i in range(n))}


def test_splits_never_overlap(task: Task) -> None:
    train, validation, test = (contents(task, split, n) for split, n in zip(SPLITS, (3000, 400, 400), strict=True))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(train) > 1000
    assert len(test) > 200


@pytest.mark.parametrize("small", [WordProblems(1, 1, max_operand=5, max_total=20), PointerChase(4)])
def test_splits_never_overlap_where_there_are_few_problems_and_other_seeds(small: Task) -> None:
    train = contents(small, "train", 2000)
    small.seed = 1
    small.level = 1
    assert not train & contents(small, "test", 300)
    assert contents(small, "train", 2000) == train  # exhausted: the rule, not chance, keeps them apart


def test_split_by_hash_has_the_stated_shares() -> None:
    found = [split_of(str(i)) for i in range(10_000)]
    assert found.count("train") == pytest.approx(8000, abs=200)
    assert found.count("test") == pytest.approx(1000, abs=120)


def test_items_depend_on_seed_split_and_index_only(task: Task) -> None:
    again = TASKS[{"word_problems": "words", "pointer_chase": "pointers", "gsm_symbolic": "gsm"}[task.name]]()
    assert [task.item("test", i) for i in (5, 3)] == [again.item("test", i) for i in (5, 3)]
    assert task.item("train", 0) != task.item("train", 1)
    again.seed = 7
    assert again.item("train", 0) != task.item("train", 0)


def test_verifier_accepts_the_answer_and_rejects_others(task: Task) -> None:
    for i in range(50):
        item = task.item("test", i)
        assert task.score(item, item.answer) == 1.0
        assert task.score(item, "") == 0.0
        assert task.score(item, item.answer[: len(item.answer) // 2]) == 0.0
        other = task.item("validation", i).answer
        if other.split()[-1] != item.answer.split()[-1]:
            assert task.score(item, other) == 0.0


def test_word_problem_answers_follow_from_prompts() -> None:
    task = WordProblems()
    for i in range(200):
        item = task.item("train", i)
        name = item.prompt.split()[0]
        numbers = [int(n) for n in re.findall(r"\d+", item.prompt)]
        sentences = item.prompt.split(".")[1:-1]
        total, steps = numbers[0], []
        for sentence, n in zip(sentences, numbers[1:], strict=True):
            sign = 1 if "more" in sentence else -1
            steps.append(f"{total} {'+' if sign > 0 else '-'} {n} = {total + sign * n};")
            total += sign * n
            assert 1 <= n <= 9
            assert 0 <= total <= 99
        assert item.answer == f"Now {name} has {' then '.join(steps)} #### {total}"
        assert 4 <= len(steps) <= 6


def test_word_problem_score_is_the_final_number() -> None:
    task, item = WordProblems(), Item("", "", {"final": 25})
    assert task.score(item, "Now Zoe has 1 + 1 = 3; #### 25") == 1.0
    assert task.score(item, "#### 24 #### 25\n") == 1.0
    for wrong in ("25", "#### 2", "#### 255", "#### 25 books", "#### 25 #### 24"):
        assert task.score(item, wrong) == 0.0


def test_pointer_chase_by_hand() -> None:
    task = PointerChase(symbols=4, max_hops=3, evaluation_hops=2)
    for i in range(20):
        item = task.item("test", i)
        pairs, asked = item.prompt.split("; ")
        target = dict(pair.split() for pair in pairs.split(", "))
        assert asked == "2 hops?"
        assert sorted(target) == sorted(target.values()) == list("abcd")
        assert item.answer == ", ".join(f"{x} {target[target[x]]}" for x in "abcd")


def test_pointer_chase_chained() -> None:
    task = PointerChase(symbols=5, max_hops=3, chained=True)
    item = task.item("train", 0)
    target = dict(pair.split() for pair in item.prompt.split("; ")[0].split(", "))
    hops, start = re.search(r"(\d) hops from (\w)\?", item.prompt).groups()
    chain = item.answer.split()
    assert chain[0] == start
    assert len(chain) == 5
    for x, y in pairwise(chain):
        for _ in range(int(hops)):
            x = target[x]
        assert x == y


def test_pointer_chase_of_one_cycle_repeats_nothing() -> None:
    task = PointerChase(symbols=7, max_hops=6, chained=True, one_cycle=True)
    items = [task.item(split, i) for split in ("train", "validation", "test") for i in range(30)]
    for item in items:
        target = dict(pair.split() for pair in item.prompt.split("; ")[0].split(", "))
        assert sorted(target.values()) == sorted(item.answer.split()) == list("abcdefg")
        assert all(x != y for x, y in target.items())
    assert len({item.metadata["content"] for item in items}) > 60


def test_level_limits_training_and_validation() -> None:
    task = PointerChase(level=2)
    assert {task.item("train", i).metadata["hops"] for i in range(100)} == {1, 2}
    assert {task.item("validation", i).metadata["hops"] for i in range(100)} == {1, 2}
    assert {task.item("test", i).metadata["hops"] for i in range(200)} == set(range(1, 9))
    before = task.item("test", 0)
    task.level = 3
    assert {task.item("train", i).metadata["hops"] for i in range(100)} == {1, 2, 3}
    assert task.item("test", 0) == before
    with pytest.raises(ValueError, match=r"level=9 .*max_hops=8"):
        task.level = 9


def test_worked_solutions_end_with_what_the_verifier_wants() -> None:
    task = gsm()
    for i in range(200):
        item = task.item("train", i)
        assert item.answer == item.metadata["entry"]["metadata"]["answer_cot"]
        assert task.score(item, item.answer) == 1.0
        assert task.score(item, item.answer + "7") == 0.0


@pytest.mark.parametrize("name", ["chain_sum", "leg_counting", "spell_backward", "power_function"])
def test_plain_reasoning_gym_datasets(name: str) -> None:
    task = ReasoningGym(name)
    for i in range(10):
        item = task.item("test", i)
        assert task.score(item, item.answer) == 1.0
        assert task.score(item, "zz") == 0.0


def test_a_limited_number_of_training_items_repeats() -> None:
    task = ReasoningGym("chain_sum", train_items=3)
    assert task.item("train", 1) == task.item("train", 4)
    assert len({task.item("train", i).prompt for i in range(9)}) == 3
    assert len({task.item("test", i).prompt for i in range(9)}) == 9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WordProblems(0, -1), r"min_steps=0 .*max_steps=-1 .*raise it"),
        (lambda: WordProblems(max_operand=60), r"max_total=99 .*max_operand=60; raise it"),
        (lambda: PointerChase(symbols=3, evaluation_hops=9), r"symbols=3 .*4 to 26; evaluation_hops=9 .*max_hops=8"),
        (lambda: ReasoningGym("gsm_symbolik"), r"data.task='gsm_symbolik' .*did you mean gsm_symbolic"),
        (lambda: ReasoningGym("chain_sum", {"terms": 3}), r"chain_sum has no terms; its settings are .*min_terms"),
        (lambda: ReasoningGym("chain_sum", {"min_terms": -1}), r"chain_sum refuses it: .*; change data.config"),
        (lambda: ReasoningGym("gsm_symbolic", {"difficulty": 0}), r"gsm_symbolic refuses it: .*difficulty"),
        (lambda: ReasoningGym("rush_hour").item("test", 0), r"'rush_hour' has no reference answers"),
        (lambda: ReasoningGym("chain_sum", train_items=0), r"train_items=0 must be at least 1"),
        (lambda: WordProblems().item("valid", 0), r"split='valid' .*use one of train, validation, test"),
        (lambda: WordProblems().item("test", -1), r"index=-1 is negative"),
    ],
)
def test_error_texts(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 2**32))
def test_any_seed_and_index_gives_an_item_of_its_split(seed: int, index: int) -> None:
    for split in SPLITS:
        assert split_of(WordProblems(seed=seed).item(split, index).metadata["content"]) == split
        assert split_of(PointerChase(seed=seed).item(split, index).metadata["content"]) == split
