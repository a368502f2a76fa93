"""Terms by weight: plain is plain, terms share one forward pass, nothing costs more than it should."""

import re

import pytest
import torch
from hydra.utils import instantiate

from recdepth.objectives import (
    Consistency,
    Contraction,
    DepthConsistency,
    DraftExposure,
    IndependentDepths,
    NextToken,
    SingleLanes,
    Staircase,
    WavefrontLoss,
    Weighted,
    deep_pass,
)

TERMS = {
    "drafts": WavefrontLoss(Staircase(width=4), windows=2, drafts=DraftExposure(0.5), consistency=Consistency()),
    "terminal_kv": WavefrontLoss(SingleLanes(), windows=3),
    "depth_consistency": DepthConsistency(Consistency(latent=0.1)),
    "contraction": Contraction(more_recurrences=2),
}


def weighted(next_token=1.0, **weights) -> Weighted:
    return Weighted({"next_token": next_token, **dict.fromkeys(TERMS, 0.0), **weights}, TERMS)


def result(objective, model, batch, seed=0, progress=1.0):
    torch.manual_seed(seed)
    model.zero_grad()
    loss = objective(model, batch, progress, torch.Generator().manual_seed(seed))
    loss.mean.backward()
    return loss, [p.grad.clone() for p in model.parameters()], torch.get_rng_state()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_all_weight_on_next_token_is_next_token_bit_for_bit(model, batch, dtype) -> None:
    model = model.to(dtype)
    for seed in range(4):
        plain, ours = (result(objective, model, batch, seed) for objective in (NextToken(), weighted()))
        assert torch.equal(plain[0].sum, ours[0].sum) and torch.equal(plain[0].count, ours[0].count)
        assert plain[0].metrics == ours[0].metrics
        assert all(torch.equal(a, b) for a, b in zip(plain[1], ours[1], strict=True))
        assert torch.equal(plain[2], ours[2])  # and the random numbers that are left


def test_the_shared_pass_is_the_models_forward_bit_for_bit(model, batch) -> None:
    model = model.float()
    for seed in range(4):
        plain, ours = (result(objective, model, batch, seed) for objective in (NextToken(), weighted(terminal_kv=0.3)))
        assert torch.equal(plain[0].mean, ours[0].metrics["next_token"])
        assert plain[0].metrics["depth"] == ours[0].metrics["depth"]
    for depth, keep in ((1, 4), (5, 2), (3, 3)):
        gradients = []
        for which in range(3):
            model.zero_grad()
            if which == 0:
                logits = model(batch["input_ids"], num_steps=depth, seed=1, backprop_depth=keep).logits
            else:
                saving = which == 2
                logits = deep_pass(model, batch["input_ids"], depth, keep, 1, checkpoint_recurrences=saving).logits
            logits.square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*gradients, strict=True))


def test_terms_add_up_by_weight(model, batch) -> None:
    loss, _, _ = result(weighted(0.5, drafts=0.25, depth_consistency=2.0, contraction=0.5), model, batch)
    parts = loss.metrics
    expected = 0.5 * parts["next_token"] + 0.25 * parts["drafts"] + 2.0 * parts["depth_consistency"]
    expected = expected + 0.5 * parts["contraction"]
    torch.testing.assert_close(loss.mean.detach(), expected)
    assert "terminal_kv" not in parts and {"drafts_accuracy", "token_accuracy", "depth"} <= set(parts)
    scaled, _, _ = result(weighted(0.5), model, batch)
    torch.testing.assert_close(2 * scaled.sum, result(weighted(), model, batch)[0].sum)


def test_terms_that_start_later_leave_plain_training_until_then(model, batch) -> None:
    late = Weighted({"next_token": 1.0, **dict.fromkeys(TERMS, 0.2)}, TERMS, starts={"drafts": 0.5, "terminal_kv": 0.7})
    at_once = Weighted({"next_token": 1.0, **dict.fromkeys(TERMS, 0.2)}, TERMS)
    plain_first = Weighted(late.weights, TERMS, starts=dict.fromkeys(TERMS, 0.5))
    at_once_too = {"depth_consistency", "contraction"}
    for progress, names in ((0.0, at_once_too), (0.5, at_once_too | {"drafts"}), (0.7, set(TERMS))):
        assert set(late.active_at(progress)) == names
        assert names == set(TERMS) & set(result(late, model, batch, progress=progress)[0].metrics)
    for objective, same in ((late, at_once), (plain_first, at_once)):
        assert torch.equal(result(objective, model, batch)[0].sum, result(same, model, batch)[0].sum)
    before, plain = (result(o, model, batch, progress=0.49) for o in (plain_first, NextToken()))
    assert torch.equal(before[0].sum, plain[0].sum) and torch.equal(before[2], plain[2])
    assert all(torch.equal(a, b) for a, b in zip(before[1], plain[1], strict=True))


@pytest.mark.parametrize(
    ("plain", "starts", "message"),
    [
        (1.0, {"drafts": 1.0}, "starts.drafts=1.0 must be a fraction of the training, from 0 to below 1"),
        (
            1.0,
            {"stairs": 0.5},
            "starts.stairs=0.5 is of no term; there are drafts, terminal_kv, depth_consistency, contraction",
        ),
        (0.0, {"drafts": 0.5}, "starts={'drafts': 0.5}: there is nothing to train on before"),
    ],
    ids=["fraction", "unknown", "nothing"],
)
def test_wrong_starts_are_named(plain, starts, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Weighted({"next_token": plain, **dict.fromkeys(TERMS, 0.0), "drafts": 1.0}, TERMS, starts=starts)


def passes(model, call) -> tuple[float, float]:
    """Positions that went through the core with and without gradients."""
    counts, recur = [0, 0], model.recur

    def counting(e, s, *rest):
        counts[torch.is_grad_enabled()] += s.shape[0] * s.shape[1]
        return recur(e, s, *rest)

    model.recur = counting
    try:
        call()
    finally:
        del model.recur
    return counts[1], counts[0]


@pytest.mark.parametrize(
    "name",
    [
        "aware",
        "staircase",
        "draft_exposure",
        "independent_depths",
        "terminal_kv",
        "depth_consistency",
        "contraction",
        "state_noise",
    ],
)
def test_every_objective_takes_at_most_twice_the_token_passes(name, model, composed_objective) -> None:
    """On the quickstart's rows; a pass with gradients counts three times. benchmarks/objectives.py has the seconds."""
    ids = torch.randint(11, (2, 112))
    batch = {"input_ids": ids, "labels": ids.masked_fill(torch.arange(112) < 40, -100)}

    def cost(objective) -> float:
        total = 0.0
        for seed in range(3):
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            with_grad, without = passes(model, lambda g=generator: objective(model, batch, 1.0, g))
            total += 3 * with_grad + without
        return total

    model.config.max_position_embeddings = 128
    plain = cost(NextToken(mean_recurrence=4, backprop_depth=4))
    objective = instantiate(composed_objective(name), _convert_="all")
    objective.mean_recurrence, objective.backprop_depth = 4, 4
    assert plain <= cost(objective) <= 2 * plain
    # without the plain term the deep pass needs no gradients, unless a term goes through it
    if name in ("staircase", "draft_exposure", "terminal_kv"):
        objective.weights["next_token"] = 0.0
        assert cost(objective) < plain


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"next_token": 0.0, **dict.fromkeys(TERMS, 0.0)}, "are all 0; set weights.next_token=1.0"),
        (
            {"stairs": 1.0, **dict.fromkeys(TERMS, 0.0)},
            "weights.stairs=1.0 is of no term; there are next_token, drafts",
        ),
        ({"next_token": 1.0}, "terms.drafts=… has no weight; set weights.drafts"),
        ({"next_token": -1.0, **dict.fromkeys(TERMS, 0.0)}, "weights.next_token=-1.0 must be at least 0"),
    ],
    ids=["zero", "unknown", "missing", "negative"],
)
def test_wrong_weights_are_named(weights, message) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        Weighted(weights, TERMS)


def test_growing_depth_and_resumable_mean(model, batch) -> None:
    objective = weighted(drafts=1.0)
    objective.mean_recurrence, objective.depth_growth = 9.0, 0.5
    assert objective.mean_at(model, 0.25) == 5.0 and objective.mean_at(model, 1.0) == 9.0


def test_what_would_have_no_effect_is_refused() -> None:
    growing = {"drafts": WavefrontLoss(Staircase(width=4, width_growth=0.4), drafts=DraftExposure())}
    Weighted({"next_token": 1.0, "drafts": 1.0}, growing, starts={"drafts": 0.3})
    with pytest.raises(ValueError, match=r"width_growth=0.4 is over before starts.drafts=0.5"):
        Weighted({"next_token": 1.0, "drafts": 1.0}, growing, starts={"drafts": 0.5})
    with pytest.raises(ValueError, match="drafts need lanes that open one after the other"):
        WavefrontLoss(IndependentDepths(width=4), drafts=DraftExposure(0.5))
