"""`calibrate_exit`: its search on scripted agreements, its measure on tiny random models."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from recdepth.evaluation import agreement, calibrate_exit
from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.sampling import Adaptive, Autoregressive, DiffusionForcing, Exact, SampleResult, SampleStats

PROMPTS = [[1 + i, 2, 3, 4 + i][: 2 + i % 3] for i in range(8)]


@pytest.fixture(scope="module")
def model() -> RecurrentDepthForCausalLM:
    """Random float64 weights, turned up so that the text depends on the depth."""
    torch.manual_seed(0)
    config = RecurrentDepthConfig(vocab_size=30, hidden_size=16, num_attention_heads=2, max_position_embeddings=64)
    model = RecurrentDepthForCausalLM(config).double().eval()
    with torch.no_grad():
        for weight in model.core.parameters():
            weight *= 3.0 if weight.ndim == 2 else 1.0
    return model


@dataclass(frozen=True, kw_only=True)
class Scripted(Adaptive):
    """Agrees with the reference in as many of ten places as the script says for its threshold."""

    script: Callable[[float], int]
    reference: list[int]
    calls: list[dict]

    def __call__(self, model, prompts, **call) -> SampleResult:
        assert not model.training
        self.calls.append({"threshold": self.exit_threshold, **call})
        right = self.script(self.exit_threshold)
        tokens = self.reference[:right] + [-1] * (10 - right)
        stats = SampleStats(new_tokens=10, core_passes=30, committed=9, recurrences_per_token=1 + right)
        return SampleResult([tokens], stats)


@pytest.fixture
def scripted(model):
    [reference] = Autoregressive(num_steps=2, kv="shared")(model, [[1, 2]], max_new_tokens=10).tokens

    def calibrate(script: Callable[[float], int], **settings):
        sampler = Scripted(num_steps=2, script=script, reference=reference, calls=[])
        found = calibrate_exit(model, sampler, [[1, 2]], **{"max_new_tokens": 10, "low": 1e-4} | settings)
        return found, [call["threshold"] for call in sampler.calls]

    return calibrate


def test_the_range_is_halved_in_log_space(scripted) -> None:
    found, order = scripted(lambda threshold: 10 if threshold < 0.02 else 5, looks=6)
    assert order == pytest.approx([1, 1e-4, 1e-2, 1e-1, 10**-1.5, 10**-1.75])
    assert found.threshold == order[-1]
    assert (found.agreement, found.recurrences_per_token) == (1.0, 11)
    assert [look.threshold for look in found.looks] == sorted(order)
    assert [look.agreement for look in found.looks] == [1, 1, 1, 0.5, 0.5, 0.5]
    assert [look.recurrences_per_token for look in found.looks] == [11, 11, 11, 6, 6, 6]
    assert {look.core_passes_per_token for look in found.looks} == {3.0}


@pytest.mark.parametrize(
    ("wanted", "tried"),
    [
        (0.4, [1]),
        (0.5, [1, 1e-4, 1e-2, 1e-1]),
        (0.7, [1, 1e-4, 1e-2, 1e-1]),
        (0.75, [1, 1e-4, 1e-2, 1e-3]),
        (1.0, [1, 1e-4, 1e-2, 1e-3]),
    ],
)
def test_the_wanted_agreement_is_a_lower_bound_that_may_be_met(scripted, wanted: float, tried: list[float]) -> None:
    found, order = scripted(
        lambda t: 10 if t < 5e-3 else 7 if t < 5e-2 else 5 if t < 0.5 else 4, agreement=wanted, looks=4
    )
    assert order == pytest.approx(tried)
    assert found.threshold == pytest.approx({0.4: 1, 0.5: 1e-1, 0.7: 1e-2, 0.75: 1e-3, 1.0: 1e-3}[wanted])
    assert found.agreement >= wanted


def test_the_upper_end_is_taken_when_it_will_do(scripted) -> None:
    found, order = scripted(lambda threshold: 10, high=2.5)
    assert order == [2.5]
    assert found.threshold == 2.5


@pytest.mark.parametrize("looks", range(2, 9))
def test_agreement_that_rises_and_falls(scripted, looks: int) -> None:
    def script(threshold: float) -> int:
        return 10 if threshold < 3e-4 or 2e-3 < threshold < 6e-3 or 0.05 < threshold < 0.2 else 3

    found, order = scripted(script, looks=looks)
    assert len(order) == len(found.looks) == looks
    assert found.threshold in order
    assert script(found.threshold) == 10
    assert all(script(threshold) == 3 for threshold in order if threshold > found.threshold)


def test_an_agreement_out_of_reach_names_the_best(scripted) -> None:
    message = r"(?s)agreement=0\.9.*low=0\.0001 gives 0\.6000 \(best: 0\.7000, at 1\).*prefill_steps"
    with pytest.raises(ValueError, match=message):
        scripted(lambda threshold: 7 if threshold == 1 else 6, agreement=0.9)


def test_every_run_gets_the_settings_of_the_call(model) -> None:
    calls: list[dict] = []
    sampler = Scripted(num_steps=2, script=lambda _: 0, reference=[0] * 10, calls=calls)
    settings = {"max_new_tokens": 10, "stop_tokens": [5], "seed": 3, "batch_size": 2}
    with pytest.raises(ValueError, match="no threshold"):
        calibrate_exit(model, sampler, [[1, 2]], **settings)
    assert calls == [{"threshold": t, **settings} for t in (1.0, 1e-5)]


SAMPLERS = [
    Adaptive(num_steps=8),
    Adaptive(num_steps=8, kv="per_depth", exit_threshold=0.7),
    DiffusionForcing(num_steps=8, inner_steps=2, max_wavefront=6, momentum=0.0, kv="per_depth", on_flip="reset"),
]
CALL = {"max_new_tokens": 8, "stop_tokens": [5], "seed": 1}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{s.name}-{s.kv}")
def test_the_result_is_what_the_sampler_does(model, sampler) -> None:
    found = calibrate_exit(model, sampler, PROMPTS, agreement=0.8, looks=7, **CALL)
    full = Autoregressive(num_steps=8, kv=sampler.kv)(model, PROMPTS, **CALL)
    for look in found.looks:
        result = replace(sampler, exit_threshold=look.threshold)(model, PROMPTS, **CALL)
        assert look.agreement == agreement(result.tokens, full.tokens)
        assert look.recurrences_per_token == result.stats.recurrences_per_token
        assert (look.agreement >= 0.8) or look.threshold > found.threshold
    chosen = next(look for look in found.looks if look.threshold == found.threshold)
    assert (found.agreement, found.recurrences_per_token) == (chosen.agreement, chosen.recurrences_per_token)
    assert found.looks[-1].agreement < 0.8 <= found.agreement  # the search had something to find
    assert found.looks[-1].recurrences_per_token < found.recurrences_per_token


@pytest.mark.parametrize("init_scale", [1.0, 0.0])
@pytest.mark.parametrize("kv", ["shared", "per_depth"])
def test_full_depth_shares_the_samplers_keys_and_initial_states(model, kv: str, init_scale: float) -> None:
    """One lane that is looked at only at full depth is autoregressive decoding, if all else is equal."""
    texts = [
        Autoregressive(num_steps=4, kv=k, init_scale=s)(model, PROMPTS, **CALL).tokens
        for k, s in [("shared", 1.0), ("shared", 0.0), ("per_depth", 1.0), ("per_depth", 0.0)]
    ]
    assert len(set(map(str, texts))) == 4
    sampler = DiffusionForcing(
        num_steps=4, inner_steps=4, max_wavefront=1, momentum=0.0, kv=kv, init_scale=init_scale, exit_threshold=0.0
    )
    found = calibrate_exit(model, sampler, PROMPTS, agreement=1.0, **CALL)
    assert found.agreement == 1.0
    assert found.recurrences_per_token == 4


def test_the_batch_size_changes_nothing_but_the_passes(model) -> None:
    whole, parts = (
        calibrate_exit(model, SAMPLERS[0], PROMPTS, agreement=0.8, looks=4, batch_size=size, **CALL)
        for size in (None, 3)
    )
    assert parts.threshold == whole.threshold
    assert [look.agreement for look in parts.looks] == [look.agreement for look in whole.looks]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_in_eval_mode_meanwhile(model, scripted, training: bool) -> None:
    model.train(training)
    try:
        scripted(lambda threshold: 10)  # asserts the mode at every look
        assert model.training is training
    finally:
        model.eval()


@pytest.mark.parametrize(
    ("sampler", "prompts", "settings", "message"),
    [
        (Adaptive(num_steps=2), [], {}, "prompts is empty"),
        (Adaptive(num_steps=2), [[1]], {"agreement": 0.0}, "agreement=0.0 must be above 0"),
        (Adaptive(num_steps=2), [[1]], {"agreement": 1.5}, "agreement=1.5 must be above 0"),
        (Adaptive(num_steps=2), [[1]], {"agreement": float("nan")}, "agreement=nan must be above 0"),
        (Adaptive(num_steps=2), [[1]], {"low": 0.0}, "low=0.0"),
        (Adaptive(num_steps=2), [[1]], {"low": 2.0}, "low below high"),
        (Adaptive(num_steps=2), [[1]], {"high": float("inf")}, "finite"),
        (Adaptive(num_steps=2), [[1]], {"looks": 1}, "looks=1 must be at least 2"),
        (Adaptive(num_steps=2), [], {"looks": 0}, r"(?s)prompts is empty.*looks=0"),
        (Adaptive(num_steps=2), [[1]], {"max_new_tokens": 1}, "raise max_new_tokens=1"),
        (DiffusionForcing(num_steps=4, commit="depth"), [[1]], {}, "diffusion_forcing commits by depth.*set commit to"),
        (Exact(num_steps=2), [[1]], {}, "exact has no exit criterion; take Adaptive or DiffusionForcing"),
        (Autoregressive(num_steps=2), [[1]], {}, "autoregressive has no exit criterion"),
    ],
)
def test_wrong_calls_say_what_to_do(model, sampler, prompts, settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate_exit(model, sampler, prompts, **{"max_new_tokens": 4} | settings)
