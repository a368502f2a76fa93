"""The cache of the last call, kept for the next one."""

import copy
import gc
import sys
from pathlib import Path

import pytest
import torch

from recdepth.models import RecurrentDepthForCausalLM
from recdepth.sampling import Autoregressive, DiffusionForcing, Exact, spare
from recdepth.sampling.spare import _spare, forget_caches

sys.path.insert(0, str(Path(__file__).parent))
from strategies import tiny_model

PROMPTS, CALL = [[1, 2, 3], [4]], {"max_new_tokens": 9}


@pytest.fixture
def made(monkeypatch):
    """The caches that models have made."""
    found, make = [], RecurrentDepthForCausalLM.new_cache
    monkeypatch.setattr(
        RecurrentDepthForCausalLM, "new_cache", lambda *given, **more: found.append(make(*given, **more)) or found[-1]
    )
    forget_caches()
    return found


@pytest.mark.parametrize(
    "sampler",
    [
        Autoregressive(num_steps=4),
        DiffusionForcing(num_steps=4, inner_steps=1, headway=2, max_wavefront=6),
        Exact(num_steps=4, max_wavefront=4),
        Exact(num_steps=4, group=3, settle=16.0),
    ],
)
def test_a_second_call_takes_the_first_ones_cache_and_reads_nothing_of_it(made, sampler):
    model = tiny_model(0, 11, (1, 1, 1), 0.5)
    first = sampler(model, PROMPTS, **CALL).tokens
    kept = _spare[model]
    with torch.inference_mode():
        kept.keys.fill_(torch.nan)
        kept.values.fill_(torch.nan)
    left = kept.keys.shape[1]  # rows that were at work to the end
    assert sampler(model, PROMPTS[:left], **CALL).tokens == first[:left]
    assert len(made) == 1


def test_a_call_that_needs_another_cache_makes_it(made):
    model = copy.deepcopy(tiny_model(0, 11, (1, 1, 1), 0.5))
    calls = [
        (Autoregressive(num_steps=4), PROMPTS),
        (Autoregressive(num_steps=5), PROMPTS),
        (Autoregressive(num_steps=5, kv="shared"), PROMPTS),
        (Autoregressive(num_steps=6, kv="shared"), PROMPTS),  # which has one slot whatever its depth
        (Autoregressive(num_steps=6, kv="shared"), PROMPTS[:1]),
        (Autoregressive(num_steps=6, kv="shared"), PROMPTS[1:]),
    ]
    found = [len(made) for sampler, prompts in calls if sampler(model, prompts, **CALL)]
    assert found == [1, 2, 3, 3, 4, 5]
    before = model.dtype
    Autoregressive(num_steps=6, kv="shared")(model.to(torch.bfloat16), PROMPTS[1:], **CALL)
    assert [cache.keys.dtype for cache in made[-2:]] == [before, torch.bfloat16]


def test_it_goes_with_the_model_and_large_ones_are_not_kept(made, monkeypatch):
    model = tiny_model(3, 11, (1, 1, 1), 0.25)
    Autoregressive(num_steps=4)(model, PROMPTS, **CALL)
    assert model in _spare
    monkeypatch.setattr(spare, "KEPT_UP_TO", made[0].nbytes - 1)
    Autoregressive(num_steps=4)(model, PROMPTS, **CALL)
    assert model not in _spare
    monkeypatch.undo()
    own = copy.deepcopy(model)
    Autoregressive(num_steps=4)(own, PROMPTS, **CALL)
    before = len(_spare)
    del own
    gc.collect()
    assert len(_spare) == before - 1
