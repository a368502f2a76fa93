"""`evaluate` and `agreement` on a tiny random model."""

from dataclasses import dataclass

import pytest
import torch

from recdepth.evaluation import HeldOut, agreement, evaluate
from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.sampling import Autoregressive, DiffusionForcing


@dataclass
class Prompt:
    prompt_ids: list[int]


@pytest.fixture(scope="module")
def model() -> RecurrentDepthForCausalLM:
    torch.manual_seed(0)
    config = RecurrentDepthConfig(vocab_size=30, hidden_size=32, num_attention_heads=2, max_position_embeddings=64)
    return RecurrentDepthForCausalLM(config).double()


ITEMS = [Prompt([1 + i, 2, 3, 4 + i][: 2 + i % 3]) for i in range(7)]


def odd_length(item: Prompt, tokens: list[int]) -> float:
    return float((sum(tokens) + item.prompt_ids[0]) % 2)


HELD_OUT = HeldOut(ITEMS, odd_length, max_new_tokens=6, stop_tokens=[5])


@pytest.mark.parametrize("sampler", [Autoregressive(num_steps=3), DiffusionForcing(num_steps=4, inner_steps=2)])
def test_batch_size_changes_nothing_but_the_passes(model, sampler) -> None:
    whole = evaluate(sampler, model, HELD_OUT)
    seen: list[int] = []
    parts = evaluate(sampler, model, HELD_OUT, batch_size=3, on_batch=seen.append)
    assert whole.tokens == parts.tokens
    assert seen == [3, 6, 7]
    assert parts.stats.new_tokens == sum(map(len, parts.tokens)) == whole.stats.new_tokens
    assert parts.stats.core_passes > whole.stats.core_passes


def test_scores_and_their_interval(model) -> None:
    found = evaluate(Autoregressive(num_steps=2), model, HELD_OUT)
    assert found.scores == [odd_length(item, new) for item, new in zip(ITEMS, found.tokens, strict=True)]
    assert found.n == 7
    assert found.accuracy == pytest.approx(sum(found.scores) / 7)
    assert 0 <= found.low < found.accuracy < found.high <= 1
    assert found.seconds > 0


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_put_back(model, training: bool) -> None:
    model.train(training)
    evaluate(Autoregressive(num_steps=1), model, HELD_OUT.part(0, 1))
    assert model.training is training


def test_wrong_calls_say_what_to_do(model) -> None:
    with pytest.raises(ValueError, match="held_out is empty"):
        evaluate(Autoregressive(num_steps=1), model, HELD_OUT.part(7, 9))
    with pytest.raises(ValueError, match="batch_size=0"):
        evaluate(Autoregressive(num_steps=1), model, HELD_OUT, batch_size=0)


def test_a_part_keeps_its_random_streams(model) -> None:
    df = DiffusionForcing(num_steps=4, inner_steps=2)
    whole = evaluate(df, model, HELD_OUT, temperature=1.0)
    part = HELD_OUT.part(1, 6).part(1, 4)
    assert len(part) == 3 and part.first == 2
    assert evaluate(df, model, part, temperature=1.0).tokens == whole.tokens[2:5]
    shifted = HeldOut(part.items, odd_length, max_new_tokens=6, stop_tokens=[5])
    assert evaluate(df, model, shifted, temperature=1.0).tokens != whole.tokens[2:5]


def test_agreement_counts_equal_places_of_the_longer_text() -> None:
    assert agreement([[1, 2, 3]], [[1, 2, 3]]) == 1.0
    assert agreement([[1, 2, 3, 4]], [[1, 9, 3]]) == pytest.approx(2 / 4)
    assert agreement([[1, 2], []], [[1, 2], []]) == 1.0
    assert agreement([[1, 2], [7]], [[1, 2], []]) == 0.5
    with pytest.raises(ValueError, match="same prompts"):
        agreement([[1]], [])
