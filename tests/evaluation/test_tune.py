"""Tuning: spaces, halving and the final check on scripted measurements, the log of measurements."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import pytest
import torch

from recdepth.evaluation import Decoding, FinalCheck, HeldOut, ModelBench, Search, Timings, TuneLog, Tuner, Tuning
from recdepth.evaluation.tune_bench import settings_of, weights_digest
from recdepth.evaluation.tune_halving import Fate, Scored, Tried, halve, pareto_front
from recdepth.evaluation.tune_space import (
    candidates,
    draw,
    impossible_values,
    is_lossless,
    known_samplers,
    size_of,
    space_problems,
)
from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.sampling import Adaptive, Autoregressive, DiffusionForcing, Exact, Sampler, SampleStats, Speculative

DF = DiffusionForcing(num_steps=8)


def setting(number: int) -> Sampler:
    """A sampler that the script below knows by its threshold."""
    return DiffusionForcing(num_steps=8, exit_threshold=float(number))


@dataclass
class Scripted:
    """Stands in for a model: a setting with threshold k loses one prompt in ``loses[k]``, and is ``speeds[k]`` fast."""

    speeds: Mapping[int, float]
    loses: Mapping[int, int] = field(default_factory=dict)
    scored: list[tuple[int, int, int]] = field(default_factory=list)
    timed: list[tuple[list[int], int]] = field(default_factory=list)

    def key(self, sampler: Sampler) -> int:
        return int(getattr(sampler, "exit_threshold", None) or 0)

    def score(self, sampler: Sampler, begin: int, end: int) -> Scored:
        key = self.key(sampler)
        self.scored.append((key, begin, end))
        period = self.loses.get(key, 0)
        right = [not (period and i % period == 0) for i in range(begin, end)]
        return Scored([float(r) for r in right], [1.0] * len(right), right)

    def time(self, samplers: Mapping[str, Sampler], begin: int, end: int) -> tuple[Timings, dict[str, Timings]]:
        self.timed.append(([self.key(s) for s in samplers.values()], begin))

        def timings(speed: float) -> Timings:
            count = end - begin
            stats = SampleStats(new_tokens=count, core_passes=count)
            return Timings([1 / speed] * count, [1] * count, [[1]] * count, stats)

        return timings(1.0), {name: timings(self.speeds[self.key(s)]) for name, s in samplers.items()}


def announce(what: str, steps: int):
    return lambda: None


def halved(script: Scripted, **plan) -> tuple[list[str], dict[str, Tried]]:
    tried = [Tried(f"k{key}", setting(key)) for key in script.speeds]
    usual = {"rungs": [16, 64, 256], "timed": [2, 4, 4], "budget": 0.005, "keep": 3, "finalists": 2}
    finalists = halve(tried, script, **usual | plan, announce=announce)
    return [one.name for one in finalists], {one.name: one for one in tried}


# ------------------------------------------------------------------------------------------------------------- halving


def test_a_setting_that_loses_much_is_out_after_the_first_rung_however_fast() -> None:
    script = Scripted({1: 9.0, 2: 3.0, 3: 2.0, 4: 1.0}, loses={1: 2})
    finalists, tried = halved(script)
    assert finalists == ["k2", "k3"]
    assert (tried["k1"].rung, tried["k1"].fate, len(tried["k1"].scores)) == (1, Fate.BEYOND, 16)
    assert {begin for key, begin, _ in script.scored if key == 1} == {0}


def test_the_fastest_within_the_budget_comes_first_and_a_small_loss_is_found_on_more_prompts() -> None:
    """One prompt in 50 is 2 points: 16 prompts cannot tell it from none, 256 can tell which is within half a point."""
    script = Scripted({1: 5.0, 2: 4.0, 3: 3.0, 4: 2.0, 5: 1.5, 6: 1.2}, loses={1: 50, 3: 4})
    finalists, tried = halved(script)
    assert finalists[0] == "k2"
    assert tried["k1"].rung > 1
    assert tried["k1"].difference.value < -0.005
    assert tried["k3"].fate == Fate.BEYOND


def test_one_in_three_goes_on_and_each_prompt_is_measured_once() -> None:
    script = Scripted({key: float(key) for key in range(1, 19)})
    finalists, tried = halved(script)
    assert [sum(one.rung >= rung for one in tried.values()) for rung in (1, 2, 3)] == [18, 6, 2]
    assert finalists == ["k18", "k17"]
    assert [(b, e) for key, b, e in script.scored if key == 18] == [(0, 16), (16, 64), (64, 256)]
    assert [begin for keys, begin in script.timed] == [0, 1, 2, 3]
    assert len(tried["k18"].timings.seconds) == 4


def test_the_close_survive_beside_the_fast_ones_that_may_lose() -> None:
    """Faster settings lose a prompt in 16 each: not clearly beyond the budget on 16 prompts, yet worse than k1."""
    script = Scripted({1: 1.0} | {key: float(key) for key in range(2, 12)}, loses=dict.fromkeys(range(2, 12), 20))
    finalists, _ = halved(script, keep=5)
    assert finalists[0] == "k1"


def test_ties_are_broken_by_order_and_the_run_is_repeatable() -> None:
    speeds = dict.fromkeys(range(1, 10), 2.0)
    assert halved(Scripted(speeds))[0] == halved(Scripted(speeds))[0] == ["k1", "k2"]


def test_none_is_left_when_all_lose() -> None:
    finalists, tried = halved(Scripted({1: 2.0, 2: 3.0}, loses={1: 1, 2: 2}))
    assert finalists == []
    assert {one.fate for one in tried.values()} == {Fate.BEYOND}


def test_lossless_samplers_are_only_timed() -> None:
    script = Scripted({0: 2.0})
    one = Tried("exact", Exact(num_steps=8))
    assert halve([one], script, rungs=[4, 8], timed=[1, 2], budget=0.0, keep=2, finalists=1, announce=announce) == [one]
    assert script.scored == []
    assert one.same == [True, True]
    assert one.difference.value == 0


def test_front() -> None:
    assert pareto_front([(1, (0.0,)), (2, (-1.0,)), (2, (-2.0,)), (3, (-2.0,)), (1, (0.0,)), (0.5, (0.0,))]) == [
        0,
        1,
        3,
        4,
    ]


# --------------------------------------------------------------------------------------------------- the whole of it


def tuner(search: Scripted, fresh: Scripted, **plan) -> Tuner:
    tuning = Tuning(
        search=Search(settings=len(search.speeds), rungs=(16, 64), finalists=2, timed_prompts=4),
        check=FinalCheck(accuracy_prompts=plan.pop("prompts", 2000), speed_prompts=5),
        space={"diffusion_forcing": {"exit_threshold": [float(key) for key in search.speeds if key]}},
        **plan,
    )
    return Tuner(tuning, DF, search, fresh, seed=0)  # type: ignore[arg-type]


def by_threshold(speeds: Mapping[int, float]) -> dict[int, float]:
    return {0: 1.5, **speeds}  # 0: what has a threshold below 1, so the known samplers


def test_the_winner_is_confirmed_on_fresh_prompts() -> None:
    speeds = by_threshold({1: 4.0, 2: 3.0})
    found = tuner(Scripted(speeds), fresh := Scripted(speeds))
    found.run(announce)
    facts = found.facts()
    assert found.winner is not None
    assert facts["winner"] == found.winner.tried.name
    assert found.winner.tried.sampler == setting(1)
    assert [(row["n"], row["verdict"], row["fits"]) for row in facts["checked"]] == [(2000, "equal", True)]
    assert [row["sampler"] for row in facts["final"]] == ["ar-8", "df-paper", facts["winner"]]
    assert facts["final"][-1]["speedup"] == pytest.approx(4.0)
    assert facts["final"][-1]["speedup_paper"] == pytest.approx(4.0 / 1.5)
    assert [begin for keys, begin in fresh.timed] == [0, 1, 2, 3, 4]
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_a_finalist_that_fails_on_fresh_prompts_dies_early_and_the_next_is_checked() -> None:
    speeds = by_threshold({1: 4.0, 2: 3.0})
    found = tuner(Scripted(speeds), Scripted(speeds, loses={1: 20}))
    found.run(announce)
    first, second = found.facts()["checked"]
    assert (first["n"], first["fits"]) == (500, False)
    assert (second["n"], second["fits"]) == (2000, True)
    assert found.winner is not None and found.winner.tried.sampler == setting(2)


def test_few_prompts_are_never_called_equal() -> None:
    speeds = by_threshold({1: 4.0})
    found = tuner(Scripted(speeds), Scripted(speeds), prompts=1999)
    found.run(announce)
    assert [(row["n"], row["verdict"]) for row in found.facts()["checked"]] == [(1999, "not distinguishable")]


def test_without_a_fitting_setting_there_is_no_winner() -> None:
    speeds = by_threshold({1: 4.0})
    found = tuner(Scripted(speeds), Scripted(speeds, loses={0: 10, 1: 10}))
    found.run(announce)
    facts = found.facts()
    assert (found.winner, facts["winner"], facts["final"]) == (None, None, [])
    assert len(facts["checked"]) == 2


def test_a_wider_budget_takes_a_faster_setting() -> None:
    speeds = by_threshold({1: 4.0, 2: 3.0})
    script = {"loses": {1: 100}}
    for max_loss, threshold in ((0.5, 2), (2.0, 1)):
        found = tuner(Scripted(speeds, **script), Scripted(speeds, **script), max_loss=max_loss)
        found.run(announce)
        assert found.winner is not None and found.winner.tried.sampler == setting(threshold)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Search(settings=-1, keep=1, finalists=0), "settings=-1 .*; keep=1 .*; finalists=0"),
        (lambda: Search(rungs=(4, 4)), r"rungs=\[4, 4\] must be rising"),
        (lambda: Search(rungs=()), "rungs="),
        (lambda: FinalCheck(accuracy_prompts=0, speed_prompts=0), "accuracy_prompts=0 .*; speed_prompts=0"),
        (lambda: Tuning(max_loss=-1, name="a/b"), "max_loss=-1 .*; name=a/b"),
    ],
)
def test_plans_out_of_range(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# -------------------------------------------------------------------------------------------------------------- spaces

SPACE = {"inner_steps": [1, 2, 4], "exit_threshold": [0.1, 0.2], "max_wavefront": [4, "auto"]}


def test_all_of_a_small_space_and_some_of_a_large_one() -> None:
    assert size_of(SPACE) == 12
    assert len(set(draw(DF, SPACE, 12, seed=0))) == 12
    some = draw(DF, SPACE, 7, seed=3)
    assert len(set(some)) == 7
    assert some == draw(DF, SPACE, 7, seed=3) != draw(DF, SPACE, 7, seed=4)
    assert all(s.num_steps == 8 and s.inner_steps in (1, 2, 4) for s in some)
    assert draw(DF, SPACE, 9, seed=3)[:7] == some


def test_candidates_are_half_near_the_known_ones() -> None:
    space = {**SPACE, "headway": [1, 2, 3], "noise": [0.0, 0.1]}
    known, new = candidates(DF, space, 20, seed=0)
    assert len(new) == len(set(new)) == 20 and not set(new) & set(known.values())
    for one in new[:10]:
        own = [{k for k, v in asdict(one).items() if v != asdict(base)[k]} for base in known.values()]
        assert any(len(keys) <= 2 and keys <= set(space) for keys in own)
    assert new[10:] == [one for one in draw(DF, space, 20, seed=0) if one not in new[:10]][:10]
    assert candidates(DF, space, 20, seed=0) == (known, new)
    assert set(candidates(DF, SPACE, 20, seed=0)[1]) == set(draw(DF, SPACE, 20, seed=0)) - set(known.values())


def test_impossible_combinations_are_left_out() -> None:
    space = {"commit": ["depth", "latent_diff"], "exit_threshold": [0.1, None]}
    assert len(draw(DF, space, 10, seed=0)) == 3
    assert space_problems(DF, space) == []


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"draft_depth": [1]}, "draft_depth=[1]: diffusion_forcing has no such setting; it has prefill_steps, inner_"),
        ({"num_steps": [4]}, "num_steps=[4] cannot be tuned: it is r"),
        ({"inner_steps": []}, "inner_steps=[] is empty"),
        ({"inner_steps": 2}, "inner_steps=2 must be a list; write [2]"),
        (
            {"inner_steps": [9, 10]},
            "inner_steps=[9,10]: impossible sampler settings: - inner_steps=9 exceeds num_steps=8",
        ),
    ],
)
def test_wrong_spaces_are_named(space, expected: str) -> None:
    (problem,) = space_problems(DF, space)
    assert problem.startswith(expected)


def test_values_that_no_setting_can_have_are_told() -> None:
    space = {"inner_steps": [1, 9], "prefill_steps": [None, 10]}
    assert space_problems(DF, space) == []
    assert [told.split(":")[0] for told in impossible_values(DF, space)] == ["inner_steps=9", "prefill_steps=10"]
    assert {(s.inner_steps, s.prefill_steps) for s in draw(DF, space, 9, 0)} == {(1, None)}


def test_all_problems_of_a_space_come_together() -> None:
    assert len(space_problems(DF, {"draft_depth": [1], "compile": [True], "noise": []})) == 3


def test_known_samplers_and_losslessness() -> None:
    assert list(known_samplers(DF)) == ["df-paper", "df-loose", "df-headway"]
    assert known_samplers(replace(DF, compile=True)) == known_samplers(DF)
    assert list(known_samplers(replace(DF, noise=0.1))) == ["df-paper", "df-loose", "df-headway", "given"]
    assert list(known_samplers(Exact())) == ["exact", "exact-rest", "given"]
    assert [is_lossless(s) for s in (Exact(), Speculative(), DF, Adaptive())] == [True, True, False, False]
    assert not is_lossless(Exact(prefill_steps=4))
    assert is_lossless(Exact(num_steps=8, prefill_steps=8))


# ------------------------------------------------------------------------------------------------- log, and real model


@dataclass
class Prompt:
    prompt_ids: list[int]


@pytest.fixture(scope="module")
def decoding() -> Decoding:
    torch.manual_seed(0)
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=20, hidden_size=32, num_attention_heads=2))
    return Decoding(model, Autoregressive(num_steps=4), 4, 0, {"cpu": "this"})


ITEMS = [Prompt([1 + i, 2, 3]) for i in range(8)]
HELD_OUT = HeldOut(ITEMS, lambda item, tokens: float(tokens[0] % 2), max_new_tokens=5, stop_tokens=[])


def test_measurements_are_made_once_and_taken_over(decoding, tmp_path, monkeypatch) -> None:
    head = {"weights": weights_digest(decoding.model)}
    bench = ModelBench(decoding, HELD_OUT, "search", TuneLog(tmp_path / "a.jsonl", head))
    df = DiffusionForcing(num_steps=4)
    scored = bench.score(df, 2, 6)
    clock, timings = bench.time({"df": df}, 1, 2)
    assert len(scored.scores) == len(scored.reference) == len(scored.same) == 4
    assert clock.seconds[0] > 0 and timings["df"].stats.new_tokens == 5
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert len(lines) == 4  # the head, two samplings, one turn

    (tmp_path / "a.jsonl").write_text("\n".join(lines) + '\n{"key": ["cut sh')
    again = TuneLog(tmp_path / "b.jsonl", head, tmp_path / "a.jsonl")
    monkeypatch.setattr(Sampler, "__call__", lambda *_, **__: pytest.fail("sampled again"))
    resumed = ModelBench(decoding, HELD_OUT, "search", again)
    assert resumed.score(df, 2, 6) == scored
    assert resumed.time({"df": df}, 1, 2) == (clock, timings)
    assert (again.taken_over, (tmp_path / "b.jsonl").read_text().splitlines()) == (3, lines)
    for begin, items in ((3, ITEMS), (2, ITEMS[::-1])):  # other prompts
        with pytest.raises(BaseException, match="sampled again"):
            ModelBench(decoding, replace(HELD_OUT, items=items), "search", again).score(df, begin, begin + 4)


def test_a_part_of_the_prompts_has_the_streams_of_the_whole(decoding, tmp_path) -> None:
    log = TuneLog(tmp_path / "a.jsonl", {})
    bench = ModelBench(decoding, HELD_OUT, "search", log)
    reference = settings_of(decoding.reference)
    bench.score(decoding.reference, 0, 8)
    bench.score(decoding.reference, 5, 8)
    found = [json.loads(line) for line in log.path.read_text().splitlines()[1:]]
    assert all(record["key"][5] == reference for record in found)
    whole, part = (record["value"]["tokens"] for record in found)
    assert whole[5:] == part


def test_measurements_of_something_else_are_refused(tmp_path) -> None:
    TuneLog(tmp_path / "a.jsonl", {"weights": "one", "seed": 0})
    with pytest.raises(ValueError, match=r"a.jsonl was measured with another weights \(one, now two\)"):
        TuneLog(tmp_path / "b.jsonl", {"weights": "two", "seed": 0}, tmp_path / "a.jsonl")
    (tmp_path / "c.jsonl").write_text("nothing\n")
    with pytest.raises(ValueError, match="does not begin"):
        TuneLog(tmp_path / "b.jsonl", {}, tmp_path / "c.jsonl")
    assert not (tmp_path / "b.jsonl").exists()


def test_the_digest_tells_models_apart(decoding) -> None:
    before = weights_digest(decoding.model)
    weight = next(decoding.model.parameters())
    with torch.no_grad():
        weight.flatten()[0] += 1
        assert weights_digest(decoding.model) != before
        weight.flatten()[0] -= 1
