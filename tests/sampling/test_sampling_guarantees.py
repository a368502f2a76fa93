"""What docs/sampler.md promises, over random models (contracting or not), prompts, seeds and settings."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recdepth.sampling import Adaptive, Autoregressive, DiffusionForcing, Exact, Speculative, Trace

sys.path.insert(0, str(Path(__file__).parent))
from reference import chooser, reference_sample
from strategies import COMMITS, DTYPE, TAME, cases, chaotic, depths, diffusion_settings

# RECDEPTH_CASES=10000 for a long run by hand
settings.register_profile("recdepth", max_examples=int(os.environ.get("RECDEPTH_CASES", "60")), deadline=None)
settings.load_profile("recdepth")


@given(cases(max_rows=2), diffusion_settings(max_wavefront=1, noise=0.0, kv="shared", prefill_steps=None))
def test_a_wavefront_of_one_lane_is_autoregressive(case, knobs):
    model, prompts, call = case
    knobs |= {"inner_steps": knobs["num_steps"]}
    wave = DiffusionForcing(**knobs)(model, prompts, **call)
    plain = Autoregressive(num_steps=knobs["num_steps"], kv="shared", init_scale=knobs["init_scale"])
    assert wave.tokens == plain(model, prompts, **call).tokens


@given(cases(), depths)
def test_autoregressive_equals_the_parallel_forward_token_for_token(case, r):
    model, [prompt], call = case
    tokens = list(prompt)
    choose = chooser(call)
    with torch.no_grad():
        for _ in range(call["max_new_tokens"]):
            logits = model(torch.tensor([tokens]), num_steps=r, seed=call["seed"]).logits
            tokens.append(choose(logits[:, -1:], torch.tensor([0]), torch.tensor([[len(tokens)]])).item())
            if tokens[-1] in call["stop_tokens"]:
                break
    assert Autoregressive(num_steps=r)(model, [prompt], **call).tokens == [tokens[len(prompt) :]]


# a model that does not contract amplifies the last bit, in which the two differ, from step to step without bound
@given(cases(gains=TAME), diffusion_settings(commits=("latent_diff", "depth"), kv="shared"), st.booleans())
def test_the_engine_equals_the_slow_reference(case, knobs, prefill):
    model, [prompt], call = case
    if not prefill:
        knobs |= {"prefill_steps": 0, "max_wavefront": 9}
    if call["max_new_tokens"] == 0:
        return
    sampler, trace = DiffusionForcing(**knobs), Trace()
    result = sampler(model, [prompt], **call, trace=trace)
    with torch.no_grad():
        tokens, residuals = reference_sample(
            sampler, model, prompt, call["max_new_tokens"], call["stop_tokens"], chooser(call)
        )
    assert result.tokens == [tokens]
    assert len(trace.steps) == len(residuals)
    if sampler.commit == "latent_diff":
        for step, expected in zip(trace.steps, residuals, strict=True):
            assert step.positions[0].tolist() == list(expected)
            rtol = 1e-6 if torch.float64 == DTYPE else 1e-2
            atol = 16 * torch.finfo(DTYPE).eps  # a settled state's residual is rounding
            np.testing.assert_allclose(step.residual[0], list(expected.values()), rtol=rtol, atol=atol)


@st.composite
def exact_samplers(draw):
    r = draw(st.integers(1, 16))
    return Exact(
        num_steps=r,
        inner_steps=draw(st.integers(1, r)),
        headway=draw(st.integers(1, 3)),
        max_wavefront=draw(st.integers(1, 20)),
        draft_depth=draw(st.integers(1, r)),
        readout_growth=draw(st.sampled_from([1.0, 1.5, 2.0, 100.0])),
        confirm_flips=draw(st.booleans()),
        prefill_steps=draw(st.sampled_from([None, 1])),
        init_scale=draw(st.sampled_from([1.0, 0.0])),
    )


@given(cases(max_rows=3), exact_samplers(), st.booleans())
def test_exact_is_lossless(case, exact, prefill):
    model, prompts, call = case
    shared = {name: getattr(exact, name) for name in ("num_steps", "prefill_steps", "init_scale")}
    if not prefill:  # the prompt's own recurrences are part of the wavefront then
        shared["prefill_steps"], exact = None, replace(exact, prefill_steps=0, max_wavefront=20)
    result = exact(model, prompts, **call)
    plain = Autoregressive(kv="per_depth", **shared)(model, prompts, **call)
    assert result.tokens == plain.tokens


@st.composite
def speculative_samplers(draw):
    r = draw(st.integers(1, 16))
    return Speculative(
        num_steps=r,
        draft_depth=draw(st.integers(1, r)),
        draft_tokens=draw(st.integers(1, 9)),
        settle=draw(st.sampled_from([0.0, 16.0])),
        prefill_steps=draw(st.sampled_from([None, 1])),
        init_scale=draw(st.sampled_from([1.0, 0.0])),
    )


@st.composite
def grouped_samplers(draw):
    r = draw(st.integers(1, 16))
    return Exact(
        num_steps=r,
        group=draw(st.integers(2, 9)),
        settle=draw(st.sampled_from([0.0, 16.0])),
        draft_depth=draw(st.integers(1, r)),
        readout_growth=draw(st.sampled_from([1.0, 1.5, 2.0, 100.0])),
        confirm_flips=draw(st.booleans()),
        prefill_steps=draw(st.sampled_from([None, 1])),
        init_scale=draw(st.sampled_from([1.0, 0.0])),
    )


@given(cases(max_rows=3), speculative_samplers() | grouped_samplers(), st.booleans())
def test_rounds_are_lossless_and_bounded(case, sampler, prefill):
    model, prompts, call = case
    trace = Trace()
    shared = {name: getattr(sampler, name) for name in ("num_steps", "prefill_steps", "init_scale")}
    if not prefill:  # the first climb takes the prompt along
        shared["prefill_steps"], sampler = None, replace(sampler, prefill_steps=0)
    result = sampler(model, prompts, **call, trace=trace)
    assert result.tokens == Autoregressive(kv="per_depth", **shared)(model, prompts, **call).tokens
    policy = sampler.policy()
    first, *others = policy.readout_depths
    per_round = policy.max_wavefront * first + sampler.num_steps
    anew = policy.max_wavefront * sum(depth for depth in others[:-1])  # each time, one more lane is settled
    assert result.stats.core_passes <= len(trace.steps) * (per_round + anew)
    rounds = len(trace.steps)
    assert rounds <= max(len(t) for t in result.tokens)


@st.composite
def any_sampler(draw):
    kind = draw(st.sampled_from(["autoregressive", "adaptive", "diffusion_forcing", "exact"]))
    r, kv = draw(depths), draw(st.sampled_from(["shared", "per_depth"]))
    if kind == "autoregressive":
        return Autoregressive(num_steps=r, kv=kv)
    if kind == "adaptive":
        threshold = draw(st.sampled_from([0.0, 0.1, 0.5]))
        inner, commit = draw(st.integers(1, r)), draw(st.sampled_from([c for c in COMMITS if c != "depth"]))
        return Adaptive(num_steps=r, inner_steps=inner, commit=commit, exit_threshold=threshold, kv=kv)
    return DiffusionForcing(**draw(diffusion_settings())) if kind == "diffusion_forcing" else draw(exact_samplers())


@given(cases(max_rows=4), any_sampler())
def test_passes_are_bounded_and_counted(case, sampler):
    model, prompts, call = case
    trace = Trace()
    result = sampler(model, prompts, **call, trace=trace)
    stats, r = result.stats, sampler.num_steps
    assert stats.new_tokens == sum(map(len, result.tokens))
    assert stats.core_passes <= r * stats.new_tokens
    assert len(prompts) > 1 or stats.core_passes <= r * max(stats.new_tokens - 1, 0)  # the prefill gives one token
    assert stats.prefill_passes == (sampler.policy().prefill if call["max_new_tokens"] else 0)
    assert stats.flips == sum(int(step.flipped.sum()) for step in trace.steps)
    if trace.steps:
        assert stats.core_passes == trace.steps[-1].core_passes
        assert (np.concatenate([s.depth[s.positions >= 0] for s in trace.steps]) <= r).all()


@given(cases(max_rows=4), any_sampler())
def test_looking_on_changes_nothing(case, sampler):
    """Without a tracer, steps that nobody needs to see are made at once."""
    model, prompts, call = case
    seen, unseen = sampler(model, prompts, **call, trace=Trace()), sampler(model, prompts, **call)
    assert unseen.tokens == seen.tokens
    for name in ("core_passes", "token_passes", "readouts", "committed", "recurrences_per_token", "flips"):
        assert getattr(unseen.stats, name) == getattr(seen.stats, name), name


@given(cases(max_rows=3), any_sampler())
def test_one_seed_gives_one_text(case, sampler):
    model, prompts, call = case
    assert sampler(model, prompts, **call).tokens == sampler(model, prompts, **call).tokens


@given(cases(max_rows=5), any_sampler() | speculative_samplers() | grouped_samplers(), st.integers(1, 5))
def test_a_batch_equals_its_rows(case, sampler, batch_size):
    model, prompts, call = case
    together = sampler(model, prompts, **call, batch_size=batch_size)
    for i, prompt in enumerate(prompts):
        [alone] = sampler(model, [prompt], **call, rows=[i]).tokens
        if alone != together.tokens[i]:  # shared keys carry chaos from token to token, beyond float64 in rare cases
            assume(not chaotic(model, lambda m, p=prompt, i=i: sampler(m, [p], **call, rows=[i]).tokens))
        assert alone == together.tokens[i]


@given(cases(max_rows=3), any_sampler())
def test_stops_are_exact(case, sampler):
    model, prompts, call = case
    free = sampler(model, prompts, **(call | {"stop_tokens": []})).tokens
    stopped = sampler(model, prompts, **call).tokens
    for whole, cut in zip(free, stopped, strict=True):
        assert len(whole) == call["max_new_tokens"]
        if isinstance(sampler, Autoregressive):
            ends = [i for i, t in enumerate(whole) if t in call["stop_tokens"]]
            assert cut == whole[: ends[0] + 1 if ends else len(whole)]
        assert not set(cut[:-1]) & set(call["stop_tokens"])
        assert len(cut) == call["max_new_tokens"] or cut[-1] in call["stop_tokens"]


@given(cases(), diffusion_settings())
def test_a_trace_tells_the_whole_story(case, knobs):
    model, prompts, call = case
    trace = Trace()
    [tokens] = DiffusionForcing(**knobs)(model, prompts, **call, trace=trace).tokens
    front = len(prompts[0])
    text = dict(enumerate(tokens, start=front))
    for step in trace.steps:
        positions, committed = step.positions[0], step.committed[0]
        assert positions[0] == front
        assert (np.diff(positions) == 1).all()
        assert not (committed & step.flipped[0]).any()
        count = int(committed.sum())
        assert committed[:count].all()  # a prefix
        for lane in range(count):  # what a lane says when it commits is the text
            assert text[positions[lane] + 1] == step.proposals[0, lane]
        front += count
    assert not trace.steps or front == len(prompts[0]) + len(tokens) - 1
