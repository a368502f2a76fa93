"""The closed forms equal what the samplers count, on a model whose drafts never flip."""

import pytest
import torch

from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.sampling import Autoregressive, DiffusionForcing
from recdepth.theory import autoregressive_cost, speedup_limit, wavefront_cost


@pytest.fixture(scope="module")
def constant_model() -> RecurrentDepthForCausalLM:
    """Proposes token 0 everywhere."""
    config = RecurrentDepthConfig(
        vocab_size=8, hidden_size=16, num_attention_heads=2, core_layers=1, tie_word_embeddings=False
    )
    model = RecurrentDepthForCausalLM(config).eval()
    torch.nn.init.zeros_(model.head.weight)
    return model


@pytest.mark.parametrize("new_tokens", [1, 2, 7, 20])
@pytest.mark.parametrize(("headway", "max_wavefront"), [(1, 128), (1, 5), (2, 128), (2, 8), (3, 5), (1, 1)])
@pytest.mark.parametrize(("num_steps", "inner_steps"), [(1, 1), (6, 1), (6, 2), (8, 4), (8, 8)])
def test_wavefront(constant_model, num_steps, inner_steps, headway, max_wavefront, new_tokens) -> None:
    settings = {"num_steps": num_steps, "inner_steps": inner_steps, "headway": headway, "max_wavefront": max_wavefront}
    sampler = DiffusionForcing(commit="depth", prefill_steps=1, **settings)
    stats = sampler(constant_model, [[1, 2]], max_new_tokens=new_tokens).stats
    assert stats.flips == 0
    cost = wavefront_cost(new_tokens, **settings)
    assert (stats.core_passes, stats.token_passes) == (cost.core_passes, cost.token_passes)


def test_autoregressive(constant_model) -> None:
    stats = Autoregressive(num_steps=5)(constant_model, [[1, 2]], max_new_tokens=7).stats
    cost = autoregressive_cost(7, 5)
    assert (stats.core_passes, stats.token_passes) == (cost.core_passes, cost.token_passes)
    assert wavefront_cost(7, 5, inner_steps=5, max_wavefront=1) == cost


@pytest.mark.parametrize(("headway", "max_wavefront"), [(1, 128), (2, 8), (4, 128)])
def test_the_limit_is_approached(headway: int, max_wavefront: int) -> None:
    long = 1_000_000
    ratio = autoregressive_cost(long, 32).core_passes / wavefront_cost(long, 32, 4, headway, max_wavefront).core_passes
    assert ratio == pytest.approx(speedup_limit(32, 4, headway, max_wavefront), rel=1e-3)


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="inner_steps=3 does not divide num_steps=8"):
        wavefront_cost(4, 8, inner_steps=3)
    with pytest.raises(ValueError, match="headway=0 must be at least 1"):
        wavefront_cost(4, 8, headway=0)
