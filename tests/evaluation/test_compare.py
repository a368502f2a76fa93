"""The comparison: its list of samplers, its rows, and which AR sampler counts as equal."""

import io
import json
from dataclasses import dataclass, replace

import pytest
import torch
from rich.console import Console

from recdepth.evaluation import Evaluation, HeldOut, Timings, compare, comparison_samplers, time_in_turn
from recdepth.evaluation.compare import fastest_equal_ar
from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.sampling import Adaptive, Autoregressive, DiffusionForcing, Exact, SampleStats

KEYS = {
    *("sampler", "settings", "n", "accuracy", "accuracy_low", "accuracy_high", "agreement", "tokens_per_second"),
    *("speedup", "speedup_equal_accuracy", "core_passes_per_token", "token_passes_per_token"),
}


@dataclass
class Prompt:
    prompt_ids: list[int]


ITEMS = [Prompt([1 + i, 2, 3]) for i in range(6)]
HELD_OUT = HeldOut(ITEMS, lambda item, tokens: float(tokens[0] % 2), max_new_tokens=5, stop_tokens=[])


@pytest.fixture(scope="module")
def model() -> RecurrentDepthForCausalLM:
    torch.manual_seed(0)
    return RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=20, hidden_size=32, num_attention_heads=2))


def run(model, samplers, held_out=HELD_OUT, **settings) -> tuple[list[dict], str]:
    console = Console(file=io.StringIO(), width=100)
    given = {"reference": next(iter(samplers)), "accuracy_prompts": 6, "speed_prompts": 2, "console": console}
    rows = compare(model, samplers, held_out, **given | settings)
    return rows, console.file.getvalue()


def test_rows_hold_every_key_and_are_plain_json(model) -> None:
    samplers = comparison_samplers(4)
    rows, shown = run(model, samplers)
    assert [row["sampler"] for row in rows] == list(samplers)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    for row in rows:
        assert row.keys() >= KEYS
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert row["tokens_per_second"] > 0
        assert row["settings"]["name"] == samplers[row["sampler"]].name
        assert row["sampler"] in shown
    assert rows[0]["speedup"] == rows[0]["agreement"] == 1.0
    # 5 tokens, the first from the prefill: 4 tokens of 4 recurrences
    assert rows[0]["core_passes_per_token"] == rows[0]["token_passes_per_token"] == pytest.approx(4 * 4 / 5)
    baseline = next(row for row in rows if row["sampler"] == rows[0]["equal_accuracy_baseline"])
    assert baseline["speedup_equal_accuracy"] == 1.0


def test_fewer_prompts_for_a_slow_sampler(model) -> None:
    samplers = {"ar": Autoregressive(num_steps=2), "slow": Adaptive(num_steps=2)}
    rows, _ = run(model, samplers, accuracy_prompts={"ar": 6, "slow": 3})
    assert [row["n"] for row in rows] == [6, 3]


def test_compiled_samplers_are_timed_and_eager_ones_scored(model, monkeypatch) -> None:
    timed = []
    monkeypatch.setattr(Autoregressive, "__call__", spied(Autoregressive.__call__, timed))
    rows, _ = run(model, {"ar": Autoregressive(num_steps=2)}, compile=True)
    assert {(batch, compiled) for batch, compiled in timed} == {(1, True), (2, False)}
    assert rows[0]["settings"]["compile"]


def spied(call, seen):
    def spy(sampler, model, prompts, **how):
        seen.append((min(2, len(prompts)), sampler.compile))
        with torch.compiler.set_stance("force_eager"):
            return call(sampler, model, prompts, **how)

    return spy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": "nothing"}, "reference='nothing'.*take one of ar, df"),
        ({"accuracy_prompts": 7}, "between 1 and the 6 items"),
        ({"speed_prompts": 0}, "speed_prompts=0"),
        ({"accuracy_prompts": {"ar": 3}}, "no number for df"),
        ({"accuracy_prompts": {"ar": 3, "df": 4}}, "exceeds the 3 of the reference"),
        ({"held_out": replace(HELD_OUT, max_new_tokens=0)}, "max_new_tokens=0 leaves nothing to compare"),
    ],
)
def test_wrong_numbers_say_what_to_do(model, settings, message: str) -> None:
    samplers = {"ar": Autoregressive(num_steps=2), "df": DiffusionForcing(num_steps=4)}
    with pytest.raises(ValueError, match=message):
        run(model, samplers, **settings)


def test_the_standard_list() -> None:
    samplers = comparison_samplers(32)
    depths = [s.num_steps for s in samplers.values() if isinstance(s, Autoregressive)]
    assert depths == [32, 16, 8, 4, 2, 1]
    assert samplers["df-paper"] == DiffusionForcing(num_steps=32)
    assert isinstance(samplers["adaptive"], Adaptive)
    assert isinstance(samplers["exact"], Exact)
    assert samplers["exact-rest"] == replace(samplers["exact"], settle="auto")
    assert sum(isinstance(s, DiffusionForcing) for s in samplers.values()) == 3
    odd = [s.num_steps for s in comparison_samplers(6).values() if isinstance(s, Autoregressive)]
    assert odd == [6, 4, 2, 1]
    assert next(iter(comparison_samplers(1))) == "ar-1"


def timing(rate: float) -> Timings:
    return Timings(seconds=[1.0 / rate] * 3, new_tokens=[1] * 3, stats=SampleStats(new_tokens=3))


def evaluation(right: int, n: int = 100) -> Evaluation:
    scores = [1.0] * right + [0.0] * (n - right)
    return Evaluation(n, right / n, 0, 1, scores, [[1]] * n, SampleStats(), 1.0)


def test_only_ar_samplers_of_equal_accuracy_count_as_baseline() -> None:
    samplers = {
        "deep": Autoregressive(num_steps=8),
        "shallow": Autoregressive(num_steps=2),
        "bad": Autoregressive(num_steps=1),
        "adaptive": Adaptive(num_steps=8),
        "df": DiffusionForcing(num_steps=8),
    }
    evaluations = {name: evaluation(90) for name in samplers} | {"shallow": evaluation(89), "bad": evaluation(60)}
    timings = {name: timing(rate) for name, rate in zip(samplers, (1.0, 4.0, 8.0, 2.0, 16.0), strict=True)}
    assert fastest_equal_ar(samplers, evaluations, timings, "deep") == "shallow"
    assert timings["df"].speedup_over(timings["shallow"]).value == 4.0
    evaluations["shallow"] = evaluation(70)
    assert fastest_equal_ar(samplers, evaluations, timings, "deep") == "adaptive"
    evaluations["adaptive"] = evaluation(70)
    assert fastest_equal_ar(samplers, evaluations, timings, "deep") == "deep"


class Recorder:
    """Stands in for a sampler; notes its turns."""

    def __init__(self, name: str, turns: list[tuple[str, int]]):
        self.name, self.turns = name, turns

    def __call__(self, model, prompts, *, rows, **settings):
        self.turns.append((self.name, rows[0]))
        assert len(prompts) == 1
        result = Autoregressive(num_steps=1)(model, prompts, max_new_tokens=1, rows=rows)
        return result


def test_samplers_take_turns_after_a_warm_up(model) -> None:
    turns: list[tuple[str, int]] = []
    samplers = {name: Recorder(name, turns) for name in "abc"}
    timings = time_in_turn(samplers, model, HELD_OUT.part(0, 3))
    warm, measured = turns[:3], turns[3:]
    assert [name for name, _ in warm] == list("abc")
    assert [name for name, _ in measured] == list("abc" + "bca" + "cab")
    assert [row for _, row in measured] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(len(t.seconds) == 3 and t.stats.new_tokens == 3 for t in timings.values())
