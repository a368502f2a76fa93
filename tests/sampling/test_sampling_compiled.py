"""compile=true: the same tokens through padded widths, bucketed keys and static caches; and without a compiler."""

import logging
import operator
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
import torch._inductor.config
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recdepth.models import (
    RecurrentDepthConfig,
    RecurrentDepthForCausalLM,
    can_compile,
    compilation,
    sampling_seams,
)
from recdepth.models.kernels import can_use_kernels
from recdepth.sampling import Adaptive, Autoregressive, DiffusionForcing, Exact, Speculative, Trace, base, fused
from recdepth.sampling.exits import LatentDiff
from recdepth.sampling.spare import _spare

sys.path.insert(0, str(Path(__file__).parent))
from strategies import COMMITS, TAME, cases, depths, diffusion_settings, tiny_model

few = settings(max_examples=40, deadline=None)


@contextmanager
def as_if_compiled():
    """The compiled path, run by Python: needs no compiler, and takes no time."""
    with torch.compiler.set_stance("force_eager"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "can_compile", lambda device: (True, ""))
        yield


@st.composite
def samplers(draw):
    kind = draw(st.sampled_from(["autoregressive", "adaptive", "diffusion_forcing", "exact", "groups", "speculative"]))
    r, kv = draw(depths), draw(st.sampled_from(["shared", "per_depth"]))
    inner, prefill = draw(st.integers(1, r)), draw(st.sampled_from([None, None, 1]))
    if kind == "autoregressive":
        return Autoregressive(num_steps=r, kv=kv, prefill_steps=prefill)
    if kind == "adaptive":
        commit = draw(st.sampled_from([c for c in COMMITS if c != "depth"]))
        threshold = draw(st.sampled_from([0.0, 0.1, 0.6]))
        return Adaptive(num_steps=r, inner_steps=inner, commit=commit, exit_threshold=threshold, kv=kv)
    if kind == "speculative":
        prefill = draw(st.sampled_from([prefill, 0]))
        settle = draw(st.sampled_from([0.0, 1e12]))  # units of 2e-16: lanes rest early, and again in narrower passes
        draft = {"draft_depth": inner, "draft_tokens": draw(st.integers(1, 9))}
        return Speculative(num_steps=r, **draft, prefill_steps=prefill, settle=settle)
    if kind == "groups":
        growth, group = draw(st.sampled_from([1.0, 2.0])), draw(st.integers(2, 9))
        prefill = draw(st.sampled_from([prefill, 0]))
        settle, rounds = draw(st.sampled_from([0.0, 1e12])), {"readout_growth": growth, "group": group}
        return Exact(num_steps=r, draft_depth=inner, **rounds, prefill_steps=prefill, settle=settle)
    if draw(st.booleans()):
        prefill = 0
    width = draw(st.integers(7 if prefill == 0 else 1, 12))  # a prompt has up to 7 tokens
    if kind == "diffusion_forcing":
        return DiffusionForcing(**draw(diffusion_settings(prefill_steps=prefill, max_wavefront=width)))
    return Exact(
        num_steps=r,
        inner_steps=inner,
        headway=draw(st.integers(1, 3)),
        max_wavefront=width,
        draft_depth=draw(st.integers(1, r)),
        readout_growth=draw(st.sampled_from([1.0, 2.0])),
        confirm_flips=draw(st.booleans()),
        prefill_steps=prefill,
    )


PLAIN = tiny_model(0, 11, (1, 2, 1), 0.5)
LONG = {"max_new_tokens": 30, "stop_tokens": []}


# a model that does not contract amplifies the last bit, which differs with the width of a product
@settings(few, max_examples=int(os.environ.get("RECDEPTH_CASES", "80")))
@given(cases(max_rows=4, gains=TAME), samplers(), st.integers(1, 4))
@example((PLAIN, [[1, 2]], LONG), Exact(num_steps=6, max_wavefront=7), 1)  # 6 or 7 lanes are padded to 8, for long
@example((PLAIN, [[1, 2], [3]], LONG), DiffusionForcing(num_steps=8, inner_steps=1, commit="depth", max_wavefront=7), 2)
@example((PLAIN, [[1]] * 3, LONG), Speculative(num_steps=4, draft_tokens=5), 2)
@example((PLAIN, [[1], [2]], LONG), Adaptive(num_steps=8, inner_steps=2, exit_threshold=0.3, kv="per_depth"), 2)
def test_compiled_sampling_gives_the_same_tokens(case, sampler, batch_size):
    model, prompts, call = case
    eager = sampler(model, prompts, **call, batch_size=batch_size)
    with as_if_compiled():
        compiled = replace(sampler, compile=True)(model, prompts, **call, batch_size=batch_size)
        if kept := _spare.get(model):  # it serves the next call, and may hold anything: masks hide numbers
            with torch.inference_mode():
                kept.keys.fill_(1e3)
                kept.values.fill_(-1e3)
        again = replace(sampler, compile=True)(model, prompts, **call, batch_size=batch_size)
    assert compiled.tokens == again.tokens == eager.tokens
    for name in ("prefill_passes", "committed", "widest", "flips"):
        assert getattr(compiled.stats, name) == getattr(eager.stats, name), name
    # a graph of several drafts goes on behind a stop token
    same = operator.ge if isinstance(sampler, (Exact, Speculative)) and call["stop_tokens"] else operator.eq
    for name in ("core_passes", "token_passes", "readouts"):
        assert same(getattr(compiled.stats, name), getattr(eager.stats, name)), name


@pytest.mark.parametrize("kv", ["shared", "per_depth"])
@pytest.mark.parametrize(("num_steps", "together"), [(8, 4), (6, 3), (2, 2), (5, 1)])
def test_lone_lanes_take_several_recurrences_in_one_graph(kv, num_steps, together, monkeypatch):
    model, made, compiled = tiny_model(2, 11, (1, 2, 1), 0.5), [], torch.compile  # no other test's graphs
    monkeypatch.setattr(torch, "compile", lambda run, **how: made.append(run.__name__) or compiled(run, **how))
    sampler = Autoregressive(num_steps=num_steps, kv=kv)
    expected = sampler(model, [[1, 2], [3, 1]], **LONG)
    with as_if_compiled():
        found = replace(sampler, compile=True)(model, [[1, 2], [3, 1]], **LONG, batch_size=2)
    assert found.tokens == expected.tokens
    assert found.stats.core_passes == 29 * num_steps
    lone = {name.rsplit("_", 3)[0] for name in made if name.startswith("recur") and name.split("_")[-2] == "1"}
    assert lone == {f"recur_{together}" if together > 1 else "recur"}


@dataclass(frozen=True)
class PartDiff(LatentDiff):
    """A criterion of a user's own, on some coordinates of the state."""

    part: int = 1

    def feature(self, state, logits):
        return state[..., : self.part]


@dataclass(frozen=True)
class PartForcing(DiffusionForcing):
    part: int = 1

    def policy(self, model=None):
        return replace(super().policy(model), exit=PartDiff(self.exit_threshold, self.part))


def test_an_exit_criterion_of_ones_own_is_compiled_with_its_settings():
    passes = set()
    for part in (1, 8):
        sampler = PartForcing(num_steps=16, inner_steps=1, exit_threshold=0.1, max_wavefront=4, part=part)
        eager = sampler(PLAIN, [[1, 2]], **LONG)
        with as_if_compiled():
            compiled = replace(sampler, compile=True)(PLAIN, [[1, 2]], **LONG)
        assert compiled.tokens == eager.tokens
        assert compiled.stats.core_passes == eager.stats.core_passes
        passes.add(eager.stats.core_passes)
    assert len(passes) == 2


@pytest.mark.parametrize("kv", ["shared", "per_depth"])
def test_keys_beyond_the_first_bucket(kv, monkeypatch):
    config = {"vocab_size": 11, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    torch.manual_seed(0)
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(**config, max_position_embeddings=300)).double().eval()
    prompts = [[i % 11 for i in range(120)], [3, 1]]  # the first crosses 128 keys on its way to 140
    sampler = DiffusionForcing(num_steps=4, inner_steps=2, exit_threshold=0.2, max_wavefront=6, kv=kv)
    call, made, compiled = {"max_new_tokens": 20, "temperature": 1.0}, [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **how: made.append(run.__name__) or compiled(run, **how))
    with as_if_compiled():
        found = replace(sampler, compile=True)(model, prompts, **call).tokens
    assert found == sampler(model, prompts, **call).tokens
    # graphs that attend by position serve any number of keys: their names end with the cache's capacity
    assert not can_use_kernels() or {name.split("_")[-1] for name in made} == {"192"}


def test_the_context_may_be_raised_between_two_calls():
    config = {"vocab_size": 11, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    torch.manual_seed(0)
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(**config, max_position_embeddings=16)).double().eval()
    wide = RecurrentDepthForCausalLM(RecurrentDepthConfig(**config, max_position_embeddings=64)).double().eval()
    wide.load_state_dict(model.state_dict())
    sampler = DiffusionForcing(num_steps=4, inner_steps=2, exit_threshold=0.2, max_wavefront=6)
    compiled, prompt = replace(sampler, compile=True), [[3, 1, 4]]
    with as_if_compiled():
        for each in (sampler, compiled):
            each(model, prompt, max_new_tokens=13)
        model.config.max_position_embeddings = 64
        expected = sampler(wide, prompt, max_new_tokens=60).tokens
        assert sampler(model, prompt, max_new_tokens=60).tokens == expected
        assert compiled(model, prompt, max_new_tokens=60).tokens == expected


@st.composite
def short_steps(draw):
    """Diffusion forcing whose steps are one graph."""
    inner, prefill = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([None, 0, 1]))
    commit = draw(st.sampled_from(["latent_diff", "cosine", "depth"]))
    return DiffusionForcing(
        num_steps=inner * draw(st.integers(1, 4)),
        inner_steps=inner,
        commit=commit,
        exit_threshold=None if commit == "depth" else draw(st.sampled_from([0.0, 0.05, 0.3, 1.0, 2.5])),
        momentum=draw(st.sampled_from([0.0, 0.1, 0.6])),
        headway=draw(st.integers(1, 6)),
        max_wavefront=draw(st.integers(7 if prefill == 0 else 2, 12)),
        prefill_steps=prefill,
        init_scale=draw(st.sampled_from([1.0, 0.0])),
    )


@settings(few, max_examples=int(os.environ.get("RECDEPTH_CASES", "100")))
@given(
    cases(max_rows=7, gains=TAME),
    short_steps(),
    st.integers(1, 5),
    st.booleans(),
    st.lists(st.integers(0, 10), max_size=2),
    st.integers(2, 4),
)
def test_steps_of_one_graph_are_the_fronts(case, sampler, batch_size, apart, stops, longest):
    model, prompts, call = case
    call = call | {"stop_tokens": [stop for stop in stops if stop < model.config.vocab_size]}
    eager_trace, fused_trace, ran = Trace(), Trace(), []
    made, step = fused.FusedFront.__init__, fused.FusedFront.step

    def init(front, wavefront):
        made(front, wavefront)
        front._shares_memory = not apart  # as on a GPU, where the front's arrays are copied

    def count(front):
        ran.append(front)
        return step(front)

    eager = sampler(model, prompts, **call, batch_size=batch_size)
    with as_if_compiled(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused.FusedFront, "__init__", init)
        patch.setattr(fused.FusedFront, "step", count)
        patch.setattr(fused, "LONGEST", longest)
        found = replace(sampler, compile=True)(model, prompts, **call, batch_size=batch_size)
        assert ran or not eager.stats.core_passes
        few = prompts[:batch_size]
        replace(sampler, compile=True)(model, few, **call, batch_size=batch_size, trace=fused_trace)
    assert found.tokens == eager.tokens
    facts = [f.name for f in fields(eager.stats) if not f.name.endswith("seconds") and f.name != "tokens_per_second"]
    assert {name: getattr(found.stats, name) for name in facts} == {name: getattr(eager.stats, name) for name in facts}
    sampler(model, few, **call, batch_size=batch_size, trace=eager_trace)
    assert len(fused_trace.steps) == len(eager_trace.steps)
    for ours, theirs in zip(fused_trace.steps, eager_trace.steps, strict=True):
        for name in ("positions", "tokens", "proposals", "depth", "age", "flipped", "committed"):
            used = theirs.positions >= 0
            assert (getattr(ours, name)[used] == getattr(theirs, name)[used]).all(), name
        np.testing.assert_allclose(ours.residual[used], theirs.residual[used], rtol=1e-3, atol=1e-6)


def test_few_shapes_are_compiled_each_once(monkeypatch):
    model, made = tiny_model(1, 11, (1, 2, 1), 0.25), []  # no other test has made this one's graphs
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **how: made.append(run.__name__) or compiled(run, **how))
    sampler, call = Exact(num_steps=7, max_wavefront=7, compile=True), {"max_new_tokens": 25}
    with as_if_compiled():
        first = sampler(model, [[1, 2]], **call)
        count = len(made)
        assert sampler(model, [[1, 2]], **call).tokens == first.tokens
    assert len(made) == count  # nothing new the second time
    assert first.stats.widest == 7
    # a seam at widths 1, 4 and 8; the core once more for lanes at depths of their own
    assert {name.split("_")[0] for name in made} == {"embed", "recur", "decode"}
    assert count <= 4 * 3


@pytest.mark.parametrize(
    "sampler",
    [
        Autoregressive(num_steps=3, compile=True),
        Adaptive(num_steps=3, compile=True),
        DiffusionForcing(num_steps=3, inner_steps=1, max_wavefront=4, compile=True),
        Exact(num_steps=3, max_wavefront=4, compile=True),
        Exact(num_steps=3, group=4, compile=True),
        Speculative(num_steps=3, draft_tokens=3, compile=True),
    ],
    ids=lambda s: s.name,
)
def test_without_a_compiler_it_says_so_and_runs_eagerly(sampler, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("nothing can be compiled"))
    model, call = tiny_model(0, 11, (1, 2, 1), 1.0), {"max_new_tokens": 8}
    with caplog.at_level(logging.WARNING, logger="recdepth"):
        result = sampler(model, [[1, 2], [3]], **call)
    assert [r.getMessage() for r in caplog.records if "no-such-compiler" in r.getMessage()]
    assert result.tokens == replace(sampler, compile=False)(model, [[1, 2], [3]], **call).tokens


@pytest.mark.slow
@pytest.mark.skipif(not can_compile()[0], reason=can_compile()[1])
@torch._inductor.config.patch(compile_threads=1)  # no pool of worker processes for a few small graphs
def test_a_real_compiler_gives_the_same_tokens():
    model = tiny_model(3, 11, (0, 1, 0), 0.5)
    single = RecurrentDepthForCausalLM(model.config).eval()  # one block: little to compile
    single.load_state_dict(model.state_dict())
    call = {"max_new_tokens": 9}
    for sampler in (
        Exact(num_steps=4, max_wavefront=4),  # lanes at depths of their own
        DiffusionForcing(num_steps=4, inner_steps=2, exit_threshold=0.2, max_wavefront=3),
    ):
        eager = sampler(single, [[1, 2]], **call)
        assert eager.stats.widest > 1
        assert replace(sampler, compile=True)(single, [[1, 2]], **call).tokens == eager.tokens
    sampled = call | {"temperature": 0.9, "top_k": 9, "top_p": 0.9, "min_p": 0.01}  # inside the graphs
    short = DiffusionForcing(num_steps=4, inner_steps=1, exit_threshold=0.2, max_wavefront=3, momentum=0.1)
    for sampler, prompts in ((Exact(num_steps=4, group=3), [[1, 2]]), (short, [[1, 2]]), (short, [[1, 2], [3]])):
        found = replace(sampler, compile=True)(single, prompts, **sampled)  # two rows: their lanes are packed
        assert found.tokens == sampler(single, prompts, **sampled).tokens
    graphs = [graph for graph, *_ in sampling_seams(single)._graphs.values()]
    assert len(graphs) > 5 and all(graph._direct is not None for graph in graphs)  # the next calls are cheap


def test_graphs_are_made_anew_for_other_modules_and_adapters(monkeypatch):
    """Nothing checks at a call what they were made of."""
    peft = pytest.importorskip("peft")
    made = []
    monkeypatch.setattr(compilation, "_compiled", lambda run, name, *rest: made.append(name) or run)
    monkeypatch.setattr(base, "can_compile", lambda device: (True, ""))
    model, sampler = tiny_model(0, 11, (1, 1, 1), 1.0), Autoregressive(num_steps=2, compile=True)

    def graphs() -> int:
        made.clear()
        eager = replace(sampler, compile=False)(model, [[1, 2]], max_new_tokens=4).tokens
        assert sampler(model, [[1, 2]], max_new_tokens=4).tokens == eager
        return len(made)

    assert graphs() > 0
    assert graphs() == 0
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", init_lora_weights=False))
    assert graphs() > 0
    assert graphs() == 0
    with adapted.disable_adapter():
        assert graphs() > 0
    assert graphs() > 0
    adapted.merge_and_unload()
    assert graphs() > 0
    assert graphs() == 0


@pytest.mark.parametrize(
    "sampler",
    [Exact(num_steps=6, max_wavefront=30), Exact(num_steps=6, group=9), DiffusionForcing(num_steps=6, inner_steps=1)],
)
def test_one_graph_sees_one_layout(sampler, monkeypatch):
    """A graph bakes in the strides it was compiled for, and nothing checks them afterwards."""
    seen: dict[str, set] = {}

    def graph(make, name, *rest):
        def run(model, settings, inputs, *stores):
            strides = [[s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1] for x in inputs]
            seen.setdefault(name, set()).add(str(strides))
            return make(model, settings, inputs, *stores)

        return run

    monkeypatch.setattr(compilation, "_compiled", graph)
    monkeypatch.setattr(compilation, "_seams", WeakKeyDictionary())
    monkeypatch.setattr(base, "can_compile", lambda device: (True, ""))
    model = tiny_model(0, 11, (1, 2, 1), 1.0)
    sampler = replace(sampler, compile=True)
    sampler(model, [[1, 2, 3], [4, 5]], max_new_tokens=25, temperature=1.0)
    assert len(seen) > 3
    assert {name: s for name, s in seen.items() if len(s) > 1} == {}
