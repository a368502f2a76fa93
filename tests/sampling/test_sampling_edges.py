"""Edges and errors of sampler calls, hand-checked counts, token choice."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recdepth.sampling import Adaptive, Autoregressive, DiffusionForcing, Exact, Speculative, TokenChooser, Trace

sys.path.insert(0, str(Path(__file__).parent))
from strategies import tiny_model

SAMPLERS = [
    Autoregressive(num_steps=3),
    Adaptive(num_steps=3),
    DiffusionForcing(num_steps=3, inner_steps=2),
    Exact(num_steps=3),
    Speculative(num_steps=3, draft_tokens=4, prefill_steps=3),
]


@pytest.fixture
def model():
    return tiny_model(0, 11, (1, 2, 1), 1.0)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
class TestEverySampler:
    def test_nothing_asked(self, model, sampler):
        result = sampler(model, [[1, 2]], max_new_tokens=0)
        assert result.tokens == [[]]
        assert result.stats.core_passes == result.stats.prefill_passes == 0
        assert sampler(model, [], max_new_tokens=5).tokens == []

    def test_a_stop_token_first(self, model, sampler):
        [first] = sampler(model, [[1, 2]], max_new_tokens=1).tokens
        result = sampler(model, [[1, 2]], max_new_tokens=9, stop_tokens=first)
        assert result.tokens == [first]
        assert result.stats.core_passes == 0

    def test_a_prompt_that_fills_the_context(self, model, sampler):
        prompt = [1] * 40
        assert sampler(model, [prompt], max_new_tokens=0).tokens == [[]]
        assert len(sampler(model, [prompt[:-1]], max_new_tokens=1).tokens[0]) == 1
        with pytest.raises(ValueError, match=r"max_new_tokens=1 that exceeds the context of 40"):
            sampler(model, [prompt], max_new_tokens=1)

    def test_bad_prompts_are_all_named(self, model, sampler):
        with pytest.raises(ValueError, match=r"(?s)prompt 0 is empty.*prompt 2 has token ids outside 0 … 10"):
            sampler(model, [[], [1], [11]], max_new_tokens=1)

    def test_bad_call_settings(self, model, sampler):
        with pytest.raises(ValueError, match="max_new_tokens=-1"):
            sampler(model, [[1]], max_new_tokens=-1)
        with pytest.raises(ValueError, match="batch_size=0"):
            sampler(model, [[1]], max_new_tokens=1, batch_size=0)
        with pytest.raises(ValueError, match="2 ids for 1 prompts"):
            sampler(model, [[1]], max_new_tokens=1, rows=[1, 2])
        with pytest.raises(ValueError, match="top_k=3 has no effect at temperature=0"):
            sampler(model, [[1]], max_new_tokens=1, top_k=3)

    def test_random_streams_belong_to_rows(self, model, sampler):
        call = {"max_new_tokens": 12, "temperature": 1.5}
        first, second = sampler(model, [[1, 2], [1, 2]], **call).tokens
        assert first != second
        assert sampler(model, [[1, 2]], rows=[1], **call).tokens == [second]
        assert sampler(model, [[1, 2]], seed=5, **call).tokens != [first]


def test_counts_of_autoregressive_decoding(model):
    stats = Autoregressive(num_steps=3)(model, [[1, 2], [3, 4]], max_new_tokens=5).stats
    assert (stats.new_tokens, stats.core_passes, stats.prefill_passes) == (10, 12, 3)  # the prefill gives one token
    assert (stats.token_passes, stats.readouts, stats.flips) == (24, 8, 0)
    assert stats.recurrences_per_token == 3
    assert stats.tokens_per_second == pytest.approx(10 / (stats.prefill_seconds + stats.decode_seconds))


def test_counts_of_a_wavefront_without_early_commits(model):
    knobs = {"num_steps": 4, "inner_steps": 2, "commit": "depth", "on_flip": "keep"}
    trace = Trace()
    stats = DiffusionForcing(**knobs)(model, [[1, 2]], max_new_tokens=2, trace=trace).stats
    # one lane opens; its draft opens no second one, as two tokens need one lane
    assert (stats.core_passes, stats.token_passes, stats.readouts) == (4, 4, 2)
    assert [s.positions.tolist() for s in trace.steps] == [[[2]], [[2]]]


def test_adaptive_reads_out_only_what_it_commits(model):
    result = Adaptive(num_steps=8, exit_threshold=0.1)(model, [[1, 2]], max_new_tokens=6)
    assert result.stats.readouts == 5
    assert result.stats.recurrences_per_token <= 8
    eager = Adaptive(num_steps=8, exit_threshold=10.0)(model, [[1, 2]], max_new_tokens=6)
    assert eager.stats.recurrences_per_token == 1


def test_prefill_off_needs_a_wavefront_over_the_prompt(model):
    with pytest.raises(ValueError, match=r"prompt 0 has 3 tokens, more than the wavefront's 2"):
        DiffusionForcing(num_steps=4, prefill_steps=0, max_wavefront=2)(model, [[1, 2, 3]], max_new_tokens=2)
    result = DiffusionForcing(num_steps=4, prefill_steps=0, max_wavefront=3)(model, [[1, 2, 3]], max_new_tokens=2)
    assert result.stats.prefill_passes == 0
    assert len(result.tokens[0]) == 2


def test_zero_initial_state_makes_the_seed_irrelevant(model):
    sampler = DiffusionForcing(num_steps=4, init_scale=0.0)
    call = {"max_new_tokens": 8}
    assert sampler(model, [[1]], seed=1, **call).tokens == sampler(model, [[1]], seed=2, **call).tokens


def test_impossible_settings_are_all_named():
    with pytest.raises(ValueError, match=r"(?s)momentum=1.0.*headway=0.*inner_steps=9 exceeds num_steps=8"):
        DiffusionForcing(num_steps=8, inner_steps=9, momentum=1.0, headway=0)
    with pytest.raises(ValueError, match="noise_schedule='cubic'"):
        DiffusionForcing(noise_schedule="cubic")
    with pytest.raises(ValueError, match="commit='never'"):
        DiffusionForcing(commit="never")
    with pytest.raises(ValueError, match="prefill_steps=33"):
        Autoregressive(num_steps=32, prefill_steps=33)
    with pytest.raises(ValueError, match="kv='both'"):
        Adaptive(kv="both")
    with pytest.raises(ValueError, match=r"(?s)draft_depth=9.*draft_tokens=0"):
        Speculative(num_steps=8, draft_depth=9, draft_tokens=0)


def test_choosing_tokens_follows_the_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).log_softmax(-1)
    rows, positions = torch.arange(100), torch.arange(200).expand(100, -1)
    places = logits.expand(100, 200, -1)

    def frequency(**settings):
        return TokenChooser(seed=1, **settings)(places, rows, positions).flatten().bincount(minlength=4) / 20_000

    torch.testing.assert_close(frequency(temperature=1.0), logits.exp(), atol=0.012, rtol=0)
    torch.testing.assert_close(frequency(temperature=2.0), (logits / 2).softmax(-1), atol=0.012, rtol=0)
    two = torch.cat([logits[:2].softmax(-1), torch.zeros(2)])
    for filters in ({"top_k": 2}, {"top_p": 0.8}, {"min_p": 0.3}):
        torch.testing.assert_close(frequency(temperature=1.0, **filters), two, atol=0.012, rtol=0)
    assert frequency(temperature=0.0).tolist() == [1, 0, 0, 0]


def test_a_draw_belongs_to_its_position_so_drafts_stay_put():
    choose = TokenChooser(temperature=1.0, seed=3)
    logits = torch.randn(1, 50, 20)
    rows, positions = torch.tensor([4]), torch.arange(50)[None]
    first = choose(logits, rows, positions)
    assert torch.equal(first[:, 30:], choose(logits[:, 30:], rows, positions[:, 30:]))
    moved = choose(logits + 0.01 * torch.randn_like(logits), rows, positions)
    assert (moved == first).float().mean() > 0.9


def test_bad_token_choices_are_all_named():
    with pytest.raises(ValueError, match=r"temperature=-1 .*; top_k=-2 .*; top_p=0 .*; min_p=2"):
        TokenChooser(temperature=-1, top_k=-2, top_p=0, min_p=2)


def test_a_trace_holds_one_batch(model):
    for sampler in (SAMPLERS[0], DiffusionForcing(num_steps=3, inner_steps=1, prefill_steps=0)):
        with pytest.raises(ValueError, match="one batch"):
            sampler(model, [[1], [2]], max_new_tokens=2, batch_size=1, trace=Trace())


def test_means_over_several_batches_count_what_was_committed(model):
    sampler = Autoregressive(num_steps=5)
    [first] = sampler(model, [[1, 2]], max_new_tokens=1).tokens
    prompts = [[1, 2], [3, 4]]  # the first ends with its prefill, so commits nothing while decoding
    stats = sampler(model, prompts, max_new_tokens=4, stop_tokens=first, batch_size=1).stats
    assert stats.committed == stats.new_tokens - 2
    assert stats.recurrences_per_token == (5 if stats.committed else 0)


def test_bfloat16_models_sample(model):
    rough = tiny_model(1, 11, (1, 2, 1), 1.0)
    low = type(rough)(rough.config).to(torch.bfloat16).eval()
    for sampler in SAMPLERS:
        assert len(sampler(low, [[1, 2], [3]], max_new_tokens=6).tokens[1]) == 6


def test_autocast_takes_batches_as_it_does_rows(model):
    model = model.float()
    prompts, samplers = [[1, 2, 3], [4, 5], [6]], [Autoregressive, Adaptive, DiffusionForcing, Exact, Speculative]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for sampler in (*[kind(num_steps=4) for kind in samplers], Exact(num_steps=4, max_wavefront=4)):
            alone = [sampler(model, [p], rows=[i], max_new_tokens=6).tokens[0] for i, p in enumerate(prompts)]
            assert all(alone)
            assert len(sampler(model, prompts, max_new_tokens=6).tokens) == 3
        ids, mask = torch.tensor([[0, 4, 5], [1, 2, 3]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
        assert model.generate(ids, attention_mask=mask, max_new_tokens=3, pad_token_id=0).shape == (2, 6)


def test_integers_of_other_libraries_are_integers(model):
    call = {"max_new_tokens": 6, "temperature": 1.0}
    expected = Exact(num_steps=4)(model, [[1, 2]], seed=3, top_k=5, stop_tokens=[2], **call).tokens
    for seed, k, stop in (
        (np.int64(3), np.int64(5), np.array([2])),
        (torch.tensor(3), torch.tensor(5), torch.tensor([2])),
    ):
        prompts = torch.tensor([[1, 2]])
        assert Exact(num_steps=4)(model, prompts, seed=seed, top_k=k, stop_tokens=stop, **call).tokens == expected


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"prompts": "12"}, "not text"),
        ({"prompts": ["12"]}, "prompt 0='12' must be a list of token ids"),
        ({"prompts": [1, 2]}, "prompt 0=1 must be a list of token ids"),
        ({"prompts": [[1, 1.5]]}, "prompt 0: a token id is 1.5 and must be an integer"),
        ({"seed": 1.5}, "seed is 1.5 and must be an integer"),
        ({"stop_tokens": 3}, "stop_tokens=3 must be a list of token ids"),
        ({"stop_tokens": [None]}, "stop_tokens: a token id is None and must be an integer"),
    ],
)
def test_what_are_no_token_ids_is_named(model, call, words):
    with pytest.raises(ValueError, match=words):
        Autoregressive(num_steps=2)(model, **{"prompts": [[1]], "max_new_tokens": 2, **call})


def test_a_tracers_own_time_does_not_count(model):
    class Slow(Trace):
        def start(self, prompts):
            time.sleep(0.5)
            super().start(prompts)

    result = Autoregressive(num_steps=1)(model, [[1, 2]], max_new_tokens=2, trace=Slow())
    assert result.stats.decode_seconds < 0.4
