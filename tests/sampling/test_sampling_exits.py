"""Exit criteria: hand-checked scores, precision, and scores that must never count as done."""

import math

import pytest
import torch
from torch import Tensor

from recdepth.sampling.exits import EXITS, KL, ArgmaxStability, Cosine, EntropyDiff, LatentDiff

STATE_CRITERIA = [name for name, kind in EXITS.items() if not kind.reads_logits]
LOGIT_CRITERIA = [name for name, kind in EXITS.items() if kind.reads_logits]
INF, NAN = math.inf, math.nan


def score(criterion, now: list[float], before: list[float], dtype: torch.dtype = torch.float64) -> float:
    """Score of a single lane, from its states or logits at two looks."""
    features = []
    for values in (now, before):
        given = torch.tensor([[values]], dtype=dtype)
        features.append(criterion.feature(given, given if criterion.reads_logits else None))
    found = criterion.score(*features, torch.full((1, 1), INF))
    assert found.shape == (1, 1)
    return found.item()


def logs(*probabilities: float) -> list[float]:
    """Logits of a distribution; the shift must not matter."""
    return [math.log(p) + 3.0 if p else -INF for p in probabilities]


def test_the_registry() -> None:
    assert list(EXITS) == ["latent_diff", "cosine", "entropy_diff", "kl", "argmax_stability"]
    assert list(EXITS.values()) == [LatentDiff, Cosine, EntropyDiff, KL, ArgmaxStability]
    assert LOGIT_CRITERIA == ["entropy_diff", "kl", "argmax_stability"]
    for kind in EXITS.values():
        assert kind(0.25).threshold == 0.25
        with pytest.raises(AttributeError):
            kind(0.25).threshold = 0.5


@pytest.mark.parametrize(
    ("criterion", "now", "before", "expected"),
    [
        (LatentDiff(0), [3.0, 4.0], [3.0, 1.0], 3 / 5),
        (LatentDiff(0), [3.0, 4.0], [0.0, 0.0], 1.0),
        (LatentDiff(0), [0.0, 1.0], [0.0, 4.0], 3.0),  # relative to now, not to before
        (Cosine(0), [5.0, 0.0], [0.1, 0.0], 0.0),
        (Cosine(0), [5.0, 0.0], [2.0, 2.0], 1 - math.sqrt(0.5)),
        (Cosine(0), [1.0, 0.0], [0.0, 7.0], 1.0),
        (Cosine(0), [1.0, 0.0], [-3.0, 0.0], 2.0),
        (EntropyDiff(0), logs(0.5, 0.5), logs(1.0, 0.0), math.log(2)),
        (EntropyDiff(0), logs(0.9, 0.1), logs(0.1, 0.9), 0.0),  # moved, but as sharp
        (EntropyDiff(0), logs(0.25, 0.75), logs(0.5, 0.5), math.log(2) - (math.log(4) - 0.75 * math.log(3))),
        (KL(0), logs(0.5, 0.5), logs(0.25, 0.75), 0.5 * math.log(4 / 3)),
        (KL(0), logs(0.25, 0.75), logs(0.5, 0.5), 0.75 * math.log(3) - math.log(2)),  # not symmetric
        (KL(0), logs(1.0, 0.0), logs(0.5, 0.5), math.log(2)),
        (KL(0), logs(0.5, 0.5, 0.0), logs(0.25, 0.75, 0.0), 0.5 * math.log(4 / 3)),
        (KL(0), logs(0.5, 0.5), logs(1.0, 0.0), INF),
        (ArgmaxStability(0), logs(0.4, 0.6), logs(0.1, 0.9), 1 / 2),
        (ArgmaxStability(0), logs(0.6, 0.4), logs(0.1, 0.9), 1.0),
    ],
)
def test_scores_by_hand(criterion, now: list[float], before: list[float], expected: float) -> None:
    assert score(criterion, now, before) == pytest.approx(expected, abs=1e-12)


def argmax_scores(tokens: list[int], dtype: torch.dtype = torch.float64) -> list[float]:
    """Scores of a lane whose likeliest tokens are given, look by look, carried in a dtype."""
    criterion = ArgmaxStability(0)
    previous, before, found = torch.full((1, 1), INF, dtype=dtype), torch.full((1, 1, 1), NAN), []
    for token in tokens:
        logits = torch.nn.functional.one_hot(torch.tensor([[token]]), 9).float()
        now = criterion.feature(torch.empty(1, 1, 4), logits)
        assert now.shape == (1, 1, 1)
        scores = criterion.score(now, before, previous)
        found.append(scores.item())
        previous, before = scores.to(dtype), now
    return found


def test_argmax_stability_counts_looks_in_a_row() -> None:
    assert argmax_scores([7, 7, 7, 3, 3, 7, 7, 7, 7]) == [1, 1 / 2, 1 / 3, 1, 1 / 2, 1, 1 / 2, 1 / 3, 1 / 4]
    assert argmax_scores([0, 0]) == [1, 1 / 2]  # token 0 is a token like any other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_threshold_of_one_over_m_asks_for_m_agreements(dtype: torch.dtype) -> None:
    scores = argmax_scores([4] * 101, dtype)
    for m in range(1, 101):
        assert [s < 1 / m for s in scores].index(True) == m


def test_an_overwritten_first_score_counts_as_no_agreement_yet() -> None:
    same = torch.tensor([[[2.0], [2.0], [2.0]]], dtype=torch.float64)
    previous = torch.tensor([[INF, 1.0, 0.5]])
    assert ArgmaxStability(0).score(same, same, previous).tolist() == [[1 / 2, 1 / 2, 1 / 3]]


def test_tokens_of_large_vocabularies_stay_apart() -> None:
    logits = torch.zeros(1, 1, 3, dtype=torch.float32)
    assert ArgmaxStability(0).feature(logits, logits).dtype == torch.float64  # float32 cannot hold 2**24 + 1
    now, before = torch.tensor([[[2.0**24 + 1]]], dtype=torch.float64), torch.tensor([[[2.0**24]]], dtype=torch.float64)
    assert ArgmaxStability(0).score(now, before, torch.ones(1, 1)).item() == 1


def looks(name: str, dtype: torch.dtype, shape: tuple[int, ...] = (2, 3, 50)) -> tuple[Tensor, Tensor]:
    """Two looks that differ a little: states, or logits."""
    before = torch.randn(shape, dtype=torch.float64)
    return (before + 0.1 * torch.randn(shape, dtype=torch.float64)).to(dtype), before.to(dtype)


def scored(name: str, now: Tensor, before: Tensor) -> Tensor:
    criterion = EXITS[name](0.1)
    given = [(x, x if criterion.reads_logits else None) for x in (now, before)]
    previous = torch.full(now.shape[:2], INF, device=now.device)
    return criterion.score(criterion.feature(*given[0]), criterion.feature(*given[1]), previous)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", EXITS)
def test_precision_does_not_depend_on_the_models_dtype(name: str, dtype: torch.dtype) -> None:
    now, before = looks(name, dtype)
    found = scored(name, now, before)
    assert found.shape == (2, 3)
    assert found.dtype == (torch.float64 if dtype == torch.float64 or name == "argmax_stability" else torch.float32)
    exact = scored(name, now.double(), before.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", EXITS)
def test_lanes_do_not_see_each_other(name: str) -> None:
    now, before = looks(name, torch.float64)
    together = scored(name, now, before)
    for row in range(2):
        for lane in range(3):
            here = slice(row, row + 1), slice(lane, lane + 1)
            torch.testing.assert_close(scored(name, now[here], before[here]), together[here])


@pytest.mark.parametrize("name", STATE_CRITERIA)
def test_states_are_not_copied(name: str) -> None:
    state = torch.randn(1, 2, 4, dtype=torch.bfloat16)
    assert EXITS[name](0.1).feature(state, None) is state


@pytest.mark.parametrize("name", LOGIT_CRITERIA)
def test_a_criterion_on_logits_insists_on_them(name: str) -> None:
    with pytest.raises(AssertionError, match="needs logits"):
        EXITS[name](0.1).feature(torch.randn(1, 2, 4), None)


@pytest.mark.parametrize("name", EXITS)
def test_a_threshold_of_zero_is_never_undercut(name: str) -> None:
    before = torch.randn(8, 64, 97)
    now = before * (1 + 1e-7 * torch.randn(8, 64, 97))
    assert (scored(name, now, before) >= 0).all()
    assert (scored(name, before, before) >= 0).all()


def test_small_angles_are_resolved_in_float32() -> None:
    angle = 1e-4
    found = score(Cosine(0), [math.cos(angle), math.sin(angle)], [1.0, 0.0], torch.float32)
    assert found == pytest.approx(angle**2 / 2, rel=1e-3)  # 1 − cos itself would be 0 or 6e-8


@pytest.mark.parametrize("name", STATE_CRITERIA)
@pytest.mark.parametrize(("now", "before"), [([0.0, 0.0], [0.0, 0.0]), ([0.0, 0.0], [1.0, 0.0]), ([NAN, 1.0], [1, 1])])
def test_undefined_changes_of_state_are_not_done(name: str, now: list[float], before: list[float]) -> None:
    criterion = EXITS[name](1e30)
    assert not score(criterion, now, before) < criterion.threshold
    assert not score(criterion, now, before, torch.bfloat16) < criterion.threshold


@pytest.mark.parametrize("name", LOGIT_CRITERIA)
def test_broken_logits_are_not_done(name: str) -> None:
    criterion, broken = EXITS[name](0.9), [NAN, 0.0, 1.0]
    assert not score(criterion, broken, broken) < criterion.threshold


@pytest.mark.parametrize("name", EXITS)
def test_nothing_waits_for_the_device(name: str) -> None:
    now, before = (x.to("meta") for x in looks(name, torch.float32))
    assert scored(name, now, before).is_meta  # reading a value back would raise
