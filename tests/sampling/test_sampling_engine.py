"""The engine's own promises: refill, sparse read-outs, confirmed flips, guesses, memory, exits, automatic width."""

import copy
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recdepth.models import KVCache
from recdepth.sampling import (
    EXITS,
    Adaptive,
    Autoregressive,
    DiffusionForcing,
    Exact,
    LatentDiff,
    Policy,
    Speculative,
    TokenChooser,
    Trace,
    Wavefront,
    forget_widths,
    presets,
)
from recdepth.sampling.decoding import Request
from recdepth.sampling.front import Front
from recdepth.sampling.guesses import guess
from recdepth.sampling.speculative import Speculation

sys.path.insert(0, str(Path(__file__).parent))
from strategies import COMMITS, TAME, cases, diffusion_settings, tiny_model

few = settings(max_examples=40, deadline=None)

RESTING = Exact(num_steps=40, group=5, settle=16.0, prefill_steps=40)
SETTLED = tiny_model(0, 3, (1, 2, 1), 0.5, hold=0.03)  # in fewer recurrences than 40
SAMPLERS = [
    Autoregressive(num_steps=3),
    Autoregressive(num_steps=2, kv="shared", prefill_steps=1),
    Adaptive(num_steps=4, inner_steps=2, exit_threshold=0.3),
    Adaptive(num_steps=5, commit="kl", exit_threshold=0.01, kv="per_depth"),
    DiffusionForcing(num_steps=4, inner_steps=2, exit_threshold=0.3, max_wavefront=5),
    DiffusionForcing(num_steps=5, inner_steps=2, on_flip="renoise", noise=0.2, headway=2, max_wavefront=4),
    DiffusionForcing(num_steps=4, inner_steps=1, on_flip="reset", commit="entropy_diff", max_wavefront=3),
    Exact(num_steps=4, max_wavefront=6),
    Exact(num_steps=6, inner_steps=2, headway=3, max_wavefront=9, draft_depth=2, readout_growth=2.0),
    Exact(num_steps=5, max_wavefront=8, confirm_flips=True, readout_growth=1.5, prefill_steps=0),
    Exact(num_steps=6, group=5, draft_depth=1, readout_growth=2.0, prefill_steps=6),
    RESTING,
    Speculative(num_steps=4, draft_tokens=3, prefill_steps=4),
    Speculative(num_steps=4, draft_tokens=3, draft_depth=2, prefill_steps=0),
]


@pytest.fixture
def model():
    return tiny_model(0, 11, (1, 2, 1), 1.0)


# ------------------------------------------------------------------------------------------------------------- settle


SETTLING = tiny_model(0, 11, (1, 2, 1), 1.0, hold=0.03)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("prefill", [None, 0])
def test_lanes_that_have_settled_rest(batch_size, prefill):
    """A model at its fixed point long before r: the same text for much less work."""
    prompts, call = [[3, 1, 4], [1, 5], [9, 2, 6]], {"max_new_tokens": 20, "batch_size": batch_size}
    plain = Exact(num_steps=64, group=8, readout_growth=4.0, prefill_steps=prefill)
    every, some = (sampler(SETTLING, prompts, **call) for sampler in (plain, replace(plain, settle=16.0)))
    assert some.tokens == every.tokens
    assert some.stats.core_passes < 0.8 * every.stats.core_passes
    assert some.stats.token_passes < 0.8 * every.stats.token_passes
    assert every.stats.recurrences_per_token == 64 and some.stats.recurrences_per_token < 0.8 * 64
    assert batch_size == 1 or prefill == 0 or some.stats.prefill_passes < 0.8 * every.stats.prefill_passes


@pytest.mark.parametrize(("r", "settle"), [(10, 1e12), (64, 16.0)])
def test_the_keys_of_resting_lanes_are_those_of_a_parallel_pass(r, settle):
    """Lanes of the front rest before the others; up to what they still moved, keys are as without rest, but for those
    of a text's last round, which nobody reads."""
    sampler, prompt = Exact(num_steps=r, group=12, readout_growth=100.0, settle=settle, prefill_steps=0), [3, 1, 4]
    kept = []
    for each in (sampler, replace(sampler, settle=0.0)):
        policy, choose = each.policy(), TokenChooser()
        engine = Speculation(SETTLING, policy, choose, Request([prompt], [0], 32), 1)
        engine.run()
        assert (engine._alike_from < r).all() == bool(each.settle)
        kept.append((engine.cache.keys[:, :, :, :15], engine.cache.values[:, :, :, :15], engine.stats.token_passes))
    (keys, values, work), (all_keys, all_values, all_work) = kept
    assert work < all_work
    tolerance = settle * 1e-14
    torch.testing.assert_close(keys, all_keys, rtol=0, atol=tolerance)
    torch.testing.assert_close(values, all_values, rtol=0, atol=tolerance)


def test_a_model_that_does_not_settle_never_rests():
    model = tiny_model(0, 11, (1, 2, 1), 6.0)
    plain = Exact(num_steps=16, group=8)
    every, some = (s(model, [[3, 1, 4]], max_new_tokens=20) for s in (plain, replace(plain, settle=16.0)))
    assert some.tokens == every.tokens and some.stats.core_passes == every.stats.core_passes


def test_settling_is_for_rounds():
    with pytest.raises(ValueError, match="settle=16.0 has no effect with group=1; leave it at 0 or take a larger"):
        Exact(settle=16.0)
    with pytest.raises(ValueError, match=r"settle=-1.0 must be at least 0"):
        Speculative(settle=-1)
    with pytest.raises(ValueError, match=r"settle='soon' must be a number of units of rounding, or 'auto'"):
        Speculative(settle="soon")
    with pytest.raises(ValueError, match="settle='auto' has no effect with group=1"):
        Exact(settle="auto")


@pytest.mark.parametrize(("dtype", "units"), [(torch.float64, 16), (torch.float32, 16), (torch.bfloat16, 4)], ids=str)
def test_auto_lets_lanes_rest_within_the_rounding_of_the_models_dtype(dtype, units):
    model = copy.deepcopy(tiny_model(0, 11, (1, 2, 1), 1.0)).to(dtype)
    for sampler in (Exact(group=4, settle="auto"), Speculative(settle="auto")):
        assert sampler.policy(model) == replace(sampler, settle=float(units)).policy(model)
        assert sampler.policy().settle == 16


# ------------------------------------------------------------------------------------------------------------- refill


def schedule(lengths: list[int], batch_size: int) -> tuple[int, int]:
    """Decoding steps and prefills that one-token-a-step decoding of a queue takes; each prefill gives one token."""
    rows, waiting, steps, prefills = [0] * min(batch_size, len(lengths)), list(lengths), 0, 0
    while True:
        free = [i for i, left in enumerate(rows) if not left]
        quarter = -(-len(rows) // 4)
        if waiting and len(free) >= quarter:  # so many rows at a time, but all at once where all are free
            if len(free) < len(rows):
                free = free[: len(free) // quarter * quarter]
            filled = len(free[: len(waiting)])
            prefills += 1 if filled == len(rows) else -(-filled // quarter)
            for i in free[: len(waiting)]:
                rows[i] = waiting.pop(0) - 1
            continue
        if not any(rows):
            return steps, prefills
        steps += 1
        rows = [max(0, left - 1) for left in rows]


@few
@given(cases(max_rows=12, gains=TAME), st.sampled_from(SAMPLERS), st.integers(1, 4))
@example((SETTLED, [[0]], {"max_new_tokens": 1, "stop_tokens": []}), RESTING, 1)
def test_a_queue_gives_every_prompt_its_own_text(case, sampler, batch_size):
    model, prompts, call = case
    queue = sampler(model, prompts, **call, batch_size=batch_size)
    alone = [sampler(model, [p], **call, rows=[i]) for i, p in enumerate(prompts)]
    assert queue.tokens == [one.tokens[0] for one in alone]
    assert queue.stats.committed == sum(one.stats.committed for one in alone)
    assert queue.stats.widest == max(one.stats.widest for one in alone)
    if call["max_new_tokens"] and sampler.prefill_steps != 0:
        passes, full = queue.stats.prefill_passes, sampler.prefill_steps or sampler.num_steps
        settles = getattr(sampler, "settle", 0.0) > 0  # then a prefill ends once its states have
        assert settles or passes % full == 0
        assert -(-len(prompts) // batch_size) * (1 if settles else full) <= passes <= len(prompts) * full


@few
@given(cases(max_rows=12, gains=TAME), st.integers(1, 6))
def test_a_freed_row_works_at_once(case, batch_size):
    model, prompts, call = case
    call["max_new_tokens"] += 1
    result = Autoregressive(num_steps=3)(model, prompts, **call, batch_size=batch_size)
    lengths = [len(t) for t in result.tokens]
    steps, prefills = schedule(lengths, batch_size)
    assert result.stats.core_passes == 3 * steps
    assert result.stats.prefill_passes == 3 * prefills
    assert result.stats.token_passes == 3 * sum(n - 1 for n in lengths)  # a row without a prompt does no work


def test_short_prompts_pass_by_a_long_one(model):
    sampler, call = Autoregressive(num_steps=3), {"max_new_tokens": 30, "temperature": 1.5}
    texts = sampler(model, [[1, 2]] * 40, **call).tokens
    stop = 7
    ends = [t.index(stop) + 1 if stop in t else len(t) for t in texts]
    long = [i for i, end in enumerate(ends) if end == 30][:1]
    rows = long + [i for i, end in enumerate(ends) if end <= 6][:11]  # one long, many short
    assert len(rows) == 12
    stats = sampler(model, [[1, 2]] * 12, **call, rows=rows, stop_tokens=[stop], batch_size=2).stats
    chunks = [max(ends[i] for i in rows[at : at + 2]) - 1 for at in range(0, 12, 2)]
    assert stats.core_passes == 3 * 29  # the others fit beside the long one
    assert stats.core_passes < 3 * sum(chunks)


def test_a_tracer_sees_batches_that_stay_together(model):
    class Batches:
        def __init__(self):
            self.prompts, self.rows = [], []

        def start(self, prompts):
            self.prompts.append(prompts)

        def record(self, step):
            self.rows.append((len(self.prompts), len(step.positions)))

    prompts = [[1], [2, 3], [4], [5, 6, 7], [8]]
    for sampler in SAMPLERS:
        tracer = Batches()
        result = sampler(model, prompts, max_new_tokens=5, stop_tokens=[3], batch_size=2, trace=tracer)
        assert tracer.prompts == [prompts[:2], prompts[2:4], prompts[4:]]
        assert set(tracer.rows) == {(1, 2), (2, 2), (3, 1)}
        assert result.tokens == sampler(model, prompts, max_new_tokens=5, stop_tokens=[3], batch_size=2).tokens


# ---------------------------------------------------------------------------------------------------- sparse read-outs


@pytest.mark.parametrize(
    ("knobs", "depths"),
    [
        ({"num_steps": 5}, [1, 2, 3, 4, 5]),
        ({"num_steps": 5, "draft_depth": 3}, [3, 4, 5]),
        ({"num_steps": 16, "draft_depth": 2, "readout_growth": 2.0}, [2, 4, 8, 16]),
        ({"num_steps": 20, "draft_depth": 2, "readout_growth": 2.0}, [2, 4, 8, 16, 20]),
        ({"num_steps": 16, "readout_growth": 1.5}, [1, 2, 3, 5, 8, 12, 16]),
        ({"num_steps": 9, "draft_depth": 4, "readout_growth": 100.0}, [4, 9]),
        ({"num_steps": 6, "draft_depth": 6}, [6]),
        ({"num_steps": 6, "max_wavefront": 1}, [6]),  # nobody would hear a lone lane's draft
        ({"num_steps": 4, "max_wavefront": 1, "exit": LatentDiff(0.1)}, [1, 2, 3, 4]),
        ({"num_steps": 4, "draft_depth": 2, "readout_growth": 9.0, "exit": LatentDiff(0.1)}, [1, 2, 3, 4]),
    ],
)
def test_when_a_lane_is_read_out(knobs, depths):
    policy = Policy(**{"inner_steps": 1, "max_wavefront": 4} | knobs)
    before = np.arange(policy.num_steps)[None]
    assert (np.nonzero(policy.due(before, before + 1)[0])[0] + 1).tolist() == depths
    assert not policy.due(before, before).any()  # a row that waits is not read out again


def test_a_lane_is_read_out_after_the_step_that_passes_its_depth():
    policy = Policy(num_steps=16, inner_steps=4, max_wavefront=4, draft_depth=2, readout_growth=2.0)  # 2, 4, 8, 16
    before, after = np.array([[0, 4, 8, 12, 5, 1]]), np.array([[4, 8, 12, 16, 7, 2]])
    assert policy.due(before, after).tolist() == [[True, True, False, True, False, True]]


@few
@given(
    cases(),
    st.integers(1, 10),
    st.sampled_from([1.5, 2.0, 100.0]),
    st.integers(1, 3),
    st.booleans(),
    st.data(),
)
def test_sparse_read_outs_open_lanes_later_and_change_no_text(case, r, growth, headway, confirm, data):
    model, prompts, call = case
    draft, inner = data.draw(st.integers(1, r)), data.draw(st.integers(1, r))
    knobs = {"num_steps": r, "inner_steps": inner, "headway": headway, "max_wavefront": 6, "confirm_flips": confirm}
    sampler, trace = Exact(draft_depth=draft, readout_growth=growth, **knobs), Trace()
    result = sampler(model, prompts, **call, trace=trace)
    assert result.tokens == Exact(**knobs)(model, prompts, **call).tokens
    policy, readouts, passes = sampler.policy(), 0, 0
    for step in trace.steps:
        n, passes = step.core_passes - passes, step.core_passes
        readouts += int(policy.due(step.depth - n, step.depth).sum())
    for step, following in pairwise(trace.steps):
        if following.positions.max() > step.positions.max():
            assert step.depth[0, -1] >= draft
    assert result.stats.readouts == readouts


def test_a_group_is_read_out_on_its_way_until_its_drafts_agree():
    model, knobs = copy.deepcopy(tiny_model(0, 11, (1, 2, 1), 0.5)), {"num_steps": 8, "group": 6, "prefill_steps": 0}
    with torch.no_grad():
        model.injection.weight[:, : model.config.hidden_size] = 0  # states forget: done after one recurrence
    often = Exact(**knobs, readout_growth=1.0)(model, [[1, 2]], max_new_tokens=6, stop_tokens=[]).stats
    assert often.flips == 0
    # the prompt and five drafts, then from its last token on once more on the way, and all seven lanes at the end
    assert often.readouts == (2 + 5) + 6 + 7


def test_fewer_read_outs_and_later_lanes_by_hand():
    model, call = tiny_model(0, 11, (1, 2, 1), 0.5), {"max_new_tokens": 6}
    knobs = {"num_steps": 6, "max_wavefront": 4}

    def widths(**more):
        trace = Trace()
        result = Exact(**knobs | more)(model, [[1, 2]], **call, trace=trace)
        return [s.positions.shape[1] for s in trace.steps[:6]], result

    often, every = widths()
    late, later = widths(draft_depth=3)
    assert often == [1, 2, 3, 4, 4, 4]
    assert late == [1, 1, 1, 2, 2, 2]
    sparse = widths(readout_growth=3.0)[1]
    assert every.tokens == later.tokens == sparse.tokens
    assert sparse.stats.readouts < every.stats.readouts
    alone = Exact(**knobs | {"max_wavefront": 1})(model, [[1, 2]], **call)
    assert alone.stats.readouts == 5  # at r alone; the prefill gives the first token


def test_a_trace_marks_lanes_that_were_not_read_out(model):
    trace = Trace()
    Exact(num_steps=8, max_wavefront=8, readout_growth=2.0)(model, [[1, 2]], max_new_tokens=9, trace=trace)
    policy, silent = Exact(num_steps=8, readout_growth=2.0, max_wavefront=8).policy(), 0
    for step in trace.steps:
        due = policy.due(step.depth - 1, step.depth)
        assert (step.proposals[due] >= 0).all()
        assert (step.proposals[~due] == -1).all()
        silent += int((~due).sum())
    assert silent


# -------------------------------------------------------------------------------------------- flips, without a model


def front_of(prompt: list[int], first: int, capacity: int = 16, stop_tokens=(), **knobs) -> Front:
    """A front with one row that has just been prefilled."""
    settings = {"num_steps": 4, "inner_steps": 1, "kv": "per_depth", "on_flip": "reset", "max_wavefront": 8}
    front = Front(1, capacity, set(stop_tokens), Policy(**settings | knobs))
    front.admit(np.array([0]), [prompt], capacity - len(prompt))
    front.open_after_prefill(np.array([0]), np.array([first]))
    return front


def say(front: Front, *proposals: int):
    """One step in which the lanes propose these tokens."""
    lanes = front.lanes()
    assert lanes.positions.tolist() == [list(range(front.front[0], front.front[0] + len(proposals)))]
    outcome = front.advance(lanes, np.array([proposals]), np.False_)
    return outcome.flipped[0].tolist(), outcome.withdrawn


def text(front: Front) -> list[int]:
    return front.tokens[0, : front.front[0] + front.width[0]].tolist()


class TestConfirmFlips:
    @pytest.fixture
    def front(self) -> Front:
        front = front_of([5, 6], 7, confirm_flips=True)
        assert say(front, 8) == ([False], 0)  # the first draft of a position is taken at once
        assert text(front) == [5, 6, 7, 8]
        return front

    def test_once_is_not_enough(self, front):
        assert say(front, 9, 1) == ([False, False], 0)
        assert text(front) == [5, 6, 7, 8, 1]
        assert front.depth[0, 2:5].tolist() == [2, 1, 0]  # nothing started anew

    def test_twice_in_a_row_is(self, front):
        say(front, 9, 1)
        assert say(front, 9, 1, 2) == ([False, True, False], 0)
        assert text(front) == [5, 6, 7, 9, 1, 2]
        assert front.depth[0, 2:6].tolist() == [3, 0, 0, 0]

    def test_another_token_counts_anew(self, front):
        say(front, 9, 1)
        assert say(front, 10, 1, 2) == ([False, False, False], 0)
        assert text(front)[3] == 8

    def test_withdrawn_changes_are_counted_and_forgotten(self, front):
        say(front, 9, 1)
        assert say(front, 8, 1, 2) == ([False, False, False], 1)
        assert front.pending[0, 3] == -1
        assert text(front)[3] == 8

    def test_the_final_read_out_applies_at_once(self, front):
        say(front, 8, 1)
        say(front, 8, 1, 2)
        assert say(front, 9, 1, 2, 3) == ([False, True, False, False], 0)
        assert front.front[0] == 3  # lane 2 is committed, its successor starts anew
        assert text(front) == [5, 6, 7, 9, 1, 2, 3]
        assert front.depth[0, 3:7].tolist() == [0, 0, 0, 0]

    def test_lanes_that_start_anew_have_said_nothing(self, front):
        say(front, 9, 1)
        assert say(front, 9, 4, 2) == ([False, True, False], 0)  # 4 belongs to the old input of its lane
        assert (front.pending[0] == -1).all()
        say(front, 9, 4, 2, 3)
        assert text(front)[4] == 1

    def test_a_lane_may_flip_behind_a_flip(self, front):
        say(front, 8, 1)
        say(front, 9, 4, 2)
        assert say(front, 9, 4, 2, 3) == ([False, True, True, False], 0)
        assert text(front)[3:5] == [9, 4]

    def test_without_it_once_is_enough(self):
        front = front_of([5, 6], 7)
        say(front, 8)
        assert say(front, 9, 1) == ([False, True], 0)
        assert text(front) == [5, 6, 7, 9, 1]


class TestGuesses:
    def test_what_followed_the_two_last_tokens(self):
        front = front_of([4, 5, 6, 9, 4, 5], 6, headway=3)
        say(front, 9)
        assert text(front) == [4, 5, 6, 9, 4, 5, 6, 9, 4, 5]  # 6 9 was followed by 4, and 9 4 by 5

    def test_the_last_occurrence_counts(self):
        front = front_of([0, 6, 9, 1, 6, 9, 2, 0], 6, headway=2)
        say(front, 9)
        assert text(front)[-2:] == [9, 2]

    def test_two_tokens_before_one(self):
        front = front_of([0, 6, 9, 1, 3, 9, 2, 0], 6, headway=2)
        say(front, 9)
        assert text(front)[-2:] == [9, 1]

    def test_one_token_when_no_two_match(self):
        front = front_of([0, 9, 1, 2], 6, headway=2)
        say(front, 9)
        assert text(front)[-2:] == [9, 1]

    def test_a_new_token_is_repeated(self):
        front = front_of([0, 1, 2], 6, headway=3)
        say(front, 9)
        assert text(front)[-3:] == [9, 9, 9]

    def test_what_followed_is_repeated_when_it_is_too_short(self):
        text = torch.tensor([[0, 9, 1, 9, 0, 0, 0, 0, 0], [5, 6, 5, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0, 0]])
        guess(text, torch.tensor([4, 3, 3]), torch.tensor([4, 1, -1]), 4)  # each row has its own number of them
        assert text[:, :-1].tolist() == [[0, 9, 1, 9, 1, 9, 1, 9], [5, 6, 5, 6, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]

    @given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(0, 5))
    def test_they_are_looked_up(self, held, count):
        row = torch.tensor([[*held, *[7] * 6]])
        guess(row, torch.tensor([len(held)]), torch.tensor([count]), 5)
        ends = [i for i in range(len(held) - 1) if held[i] == held[-1]]  # where its last token stood before
        pairs = [i for i in ends if i and held[i - 1] == held[-2]]
        begin = (pairs or ends or [len(held) - 2])[-1] + 1
        followed = held[begin:]
        expected = [followed[i % len(followed)] for i in range(count)]
        assert row[0, : len(held) + count].tolist() == held + expected
        assert row[0, len(held) + count : -1].tolist() == [7] * (5 - count)

    def test_guesses_stay_within_the_text(self):
        front = front_of([0, 1, 2], 6, capacity=6, headway=9)  # tokens 3, 4 and 5; two lanes are enough
        say(front, 9)
        assert front.width[0] == 2


@few
@given(cases(max_rows=3, gains=TAME), st.sampled_from([s for s in SAMPLERS if s.name != "autoregressive"]))
def test_every_recurrence_is_committed_discarded_or_left(case, sampler):
    model, prompts, call = case
    trace = Trace()
    stats = sampler(model, prompts, **call, trace=trace).stats
    resets, discarded, left = sampler.policy().on_flip == "reset", 0, np.zeros(len(prompts), dtype=int)
    for step in trace.steps:
        used = step.positions >= 0
        behind_flip = np.logical_or.accumulate(step.flipped, axis=1) & used & resets
        discarded += int(step.age[behind_flip].sum())
        open_ages = (step.age * (used & ~behind_flip & ~step.committed)).sum(1)
        left = np.where(used.any(1), open_ages, left)  # of the lanes that are open when a row ends
    on_the_way = stats.discarded_passes - discarded  # lanes of a group that start anew before the round's end
    assert on_the_way == 0 or (on_the_way > 0 and getattr(sampler, "group", 1) > 1)
    kept = round(stats.recurrences_per_token * stats.committed)
    assert stats.token_passes == kept + stats.discarded_passes + left.sum()


@pytest.mark.parametrize("compiled", [False, True])
def test_unused_lanes_have_no_depth(compiled):
    """Row 0 is ahead by some lanes, so that row 1 has unused ones; a compiled width always has some."""
    settings = {"num_steps": 6, "inner_steps": 1, "headway": 2, "max_wavefront": 16, "compile": compiled}
    front, unused = Front(2, 60, set(), Policy(**settings)), 0
    front.admit(np.array([0]), [[0]], 50)
    front.open_after_prefill(np.array([0]), np.array([0]))
    for step in range(30):
        if step == 3:
            front.admit(np.array([1]), [[0]], 50)
            front.open_after_prefill(np.array([1]), np.array([0]))
        lanes = front.lanes()
        assert (lanes.depth[~lanes.active] == 0).all()
        assert (lanes.due == lanes.active).all()
        unused += step > 3 and int((~lanes.active).sum())
        front.advance(lanes, np.zeros_like(lanes.positions), np.False_)  # the text is all zeros: nothing flips
    assert unused > 6
    assert (front.front > 20).all()


# --------------------------------------------------------------------------------------------------------------- memory


def wavefront(model, sampler, rows: int = 3, new: int = 5) -> Wavefront:
    prompts = [[1] * (i + 2) for i in range(rows)]
    return Wavefront(model, sampler.policy(model), TokenChooser(), Request(prompts, [*range(rows)], new), rows)


def small(r: int) -> dict:
    return {"num_steps": r, "inner_steps": 1, "max_wavefront": 4}


@pytest.mark.parametrize("layers", [(1, 2, 1), (0, 1, 0), (2, 1, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_cache_memory_by_formula(layers, dtype):
    model = copy.deepcopy(tiny_model(0, 11, layers, 1.0)).to(dtype)
    prelude, core, coda = layers

    def expected(depths: int) -> int:
        slots, positions = prelude + core * depths + coda, 4 + 5 + 1  # the longest prompt, new tokens, a spare one
        return 2 * dtype.itemsize * slots * 2 * positions * 4 * 3  # heads · positions · head_dim · rows

    for r in (1, 4, 9):
        for sampler in (Autoregressive(num_steps=r, kv="shared"), Adaptive(num_steps=r), DiffusionForcing(**small(r))):
            assert wavefront(model, sampler).cache.nbytes == expected(1)
        for sampler in (Autoregressive(num_steps=r), Exact(**small(r)), Speculative(num_steps=r)):
            assert wavefront(model, sampler).cache.nbytes == expected(r)


def test_the_buffers_besides_the_cache_do_not_depend_on_depth(model):
    def buffers(sampler) -> int:
        engine = wavefront(model, sampler)
        own = {t.data_ptr(): t.nbytes for t in vars(engine).values() if isinstance(t, torch.Tensor)}
        return sum(own.values())

    assert buffers(Exact(**small(2))) == buffers(Exact(**small(16)))
    assert buffers(Autoregressive(num_steps=4)) < buffers(Exact(**small(4)))  # states to start anew


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s.prefill_steps != 0], ids=lambda s: s.name)
def test_one_row_reads_its_keys_where_they_lie(model, sampler, monkeypatch):
    update, calls = KVCache.update, []

    def watched(cache, slot, keys, values, span):
        found = update(cache, slot, keys, values, span)
        own = cache.keys.untyped_storage().data_ptr(), cache.values.untyped_storage().data_ptr()
        calls.append(tuple(t.untyped_storage().data_ptr() for t in found) == own)
        return found

    monkeypatch.setattr(KVCache, "update", watched)
    sampler(model, [[1, 2, 3]], max_new_tokens=12)
    assert calls and all(calls)


# ---------------------------------------------------------------------------------------------------------------- exits


@few
@given(cases(max_rows=2), st.sampled_from(sorted(EXITS)), st.sampled_from(["shared", "per_depth"]), st.data())
def test_without_a_threshold_adaptive_decoding_is_autoregressive(case, commit, kv, data):
    model, prompts, call = case
    r = data.draw(st.integers(1, 8))
    inner = data.draw(st.integers(1, r))
    never = Adaptive(num_steps=r, inner_steps=inner, commit=commit, exit_threshold=0.0, kv=kv)
    plain = Autoregressive(num_steps=r, kv=kv)(model, prompts, **call)
    result = never(model, prompts, **call)
    assert result.tokens == plain.tokens
    assert result.stats.core_passes == plain.stats.core_passes


@pytest.mark.parametrize("kv", ["shared", "per_depth"])
@pytest.mark.parametrize("commit", sorted(EXITS))
@pytest.mark.parametrize(("r", "inner"), [(9, 1), (9, 3), (9, 5), (2, 2)])
def test_a_huge_threshold_exits_as_soon_as_can_be(model, commit, kv, r, inner):
    sampler = Adaptive(num_steps=r, inner_steps=inner, commit=commit, exit_threshold=1e30, kv=kv)
    stats = sampler(model, [[1, 2]], max_new_tokens=6).stats
    # states are compared with the noise that they start from; what is read out needs two looks
    looks = 2 if EXITS[commit].reads_logits else 1
    assert stats.recurrences_per_token == min(r, looks * inner)
    assert stats.core_passes == 5 * min(r, looks * inner)
    assert stats.readouts == 5 * (min(looks, -(-r // inner)))


@few
@given(cases(max_rows=3), diffusion_settings(commits=[c for c in COMMITS if c != "depth"]), st.booleans())
def test_every_exit_criterion_ends_within_the_bound(case, knobs, prefill):
    model, prompts, call = case
    knobs["exit_threshold"] = min(knobs["exit_threshold"], 0.3)  # seldom met: the bound must do it
    if not prefill:
        knobs |= {"prefill_steps": 0, "max_wavefront": 9}
    result = DiffusionForcing(**knobs)(model, prompts, **call)
    for tokens in result.tokens:
        assert len(tokens) == call["max_new_tokens"] or tokens[-1] in call["stop_tokens"]
    longest = 0 if prefill else max(map(len, prompts))
    bound = knobs["num_steps"] * (result.stats.new_tokens + longest * len(prompts))
    assert result.stats.core_passes <= bound


# --------------------------------------------------------------------------------------------------------------- widths


@few
@given(cases(max_rows=4, gains=TAME), st.sampled_from([1, 2, 5]), st.booleans(), st.sampled_from(["df", "exact"]))
def test_the_automatic_width_serves_batches_and_long_prompts(case, width, prefill, kind):
    model, prompts, call = case
    knobs = {"num_steps": 4, "inner_steps": 2, "prefill_steps": None if prefill else 0}
    sampler = DiffusionForcing(**knobs, exit_threshold=0.2) if kind == "df" else Exact(**knobs)
    asked = []

    def measured(model, kv, **more):
        asked.append(kv)
        return width

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "auto_width", measured)
        together = sampler(model, prompts, **call)
        alone = [sampler(model, [p], **call, rows=[i]).tokens[0] for i, p in enumerate(prompts)]
    assert together.tokens == alone
    assert set(asked) == {"per_depth" if kind == "exact" else "shared"}
    assert together.stats.widest <= (width if prefill else max(width, *map(len, prompts)))
    if kind == "exact" and prefill:
        assert together.tokens == Autoregressive(num_steps=4)(model, prompts, **call).tokens


def test_a_measured_width(model, tmp_path, monkeypatch):
    monkeypatch.setenv("RECDEPTH_CACHE", str(tmp_path))
    sampler, prompts, call = Exact(num_steps=4), [[1, 2], [3], [4, 5, 6]], {"max_new_tokens": 9, "temperature": 1.0}
    try:
        together = sampler(model, prompts, **call).tokens
        assert [sampler(model, [p], **call, rows=[i]).tokens[0] for i, p in enumerate(prompts)] == together
        assert together == Autoregressive(num_steps=4)(model, prompts, **call).tokens
        assert (tmp_path / "wavefront_width.json").exists()
    finally:
        forget_widths()


# -------------------------------------------------------------------------------------------------------------- float32


@few
@given(
    cases(max_rows=3, gains=TAME),
    st.sampled_from([s for s in SAMPLERS if s.name in ("exact", "speculative") and s.prefill_steps != 0]),
    st.integers(1, 3),
)
def test_lossless_in_float32_where_the_core_contracts(case, sampler, batch_size):
    model, prompts, call = case
    single = copy.deepcopy(model).float()
    plain = Autoregressive(num_steps=sampler.num_steps)(single, prompts, **call)
    assert sampler(single, prompts, **call, batch_size=batch_size).tokens == plain.tokens
