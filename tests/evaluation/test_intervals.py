"""Intervals against published numbers and independent formulas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recdepth.evaluation import mean_interval, median_interval, paired_difference, wilson_interval

Z2 = 1.959963984540054**2


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998 (single proportions), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_limits(successes: int, n: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, n)
    assert interval.value == successes / n
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


def test_wilson_of_a_perfect_score_is_not_a_point() -> None:
    interval = wilson_interval(300, 300)
    assert interval.high == 1.0
    assert interval.low == pytest.approx(300 / (300 + Z2))


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (5, 4), (-1, 4)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="="):
        wilson_interval(successes, n)


def paired_scores(better: int, worse: int, n: int) -> tuple[list[float], list[float]]:
    same = n - better - worse
    return [1.0] * better + [0.0] * worse + [1.0] * same, [0.0] * better + [1.0] * worse + [1.0] * same


def test_paired_difference_gives_the_published_limits() -> None:
    # Fagerland, Lydersen and Laake 2014, airway reactivity: 1 and 7 discordant pairs of 21, Tango's interval
    interval = paired_difference(*paired_scores(1, 7, 21))
    assert interval == pytest.approx((-0.286, -0.517, -0.026), abs=5e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 300))
def test_paired_difference_solves_the_quartic(better: int, worse: int, same: int) -> None:
    """Its limits are roots of the polynomial of Yang, Sun and Hardin (2012), found here another way."""
    n, d, total = better + worse + same, better - worse, better + worse
    interval = paired_difference(*paired_scores(better, worse, n))
    coefficients = [
        n**2 * (n / Z2 + 1) ** 2,
        -n * d * (n / Z2 + 1) * (4 * n / Z2 + 1),
        2 * n * d**2 * (3 * n / Z2 + 2) / Z2 - n**2 * (total / Z2 + 1),
        n * d * (2 * total / Z2 + 1) - d**3 * (4 * n / Z2 + 1) / Z2,
        d**2 * (d**2 / Z2 - total) / Z2,
    ]
    roots = np.roots(coefficients)
    for limit in (interval.low, interval.high):
        assert np.abs(roots - limit).min() < 1e-4
    assert interval.low <= interval.value <= interval.high


def test_paired_difference_without_discordance_is_still_uncertain() -> None:
    interval = paired_difference([1.0] * 300, [1.0] * 300)
    assert interval.value == 0
    assert interval.high == pytest.approx(Z2 / (300 + Z2), abs=1e-6)
    assert interval.low == pytest.approx(-interval.high, abs=1e-6)


def test_paired_difference_is_antisymmetric_and_takes_fractions() -> None:
    a, b = [0.5, 1.0, 0.25, 1.0, 0.0] * 8, [0.25, 1.0, 0.5, 0.0, 0.0] * 8
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert forward.value == pytest.approx(0.2)
    assert forward == pytest.approx((-backward.value, -backward.high, -backward.low))


def test_paired_difference_needs_the_same_prompts() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        paired_difference([1.0], [1.0, 0.0])


def test_median_interval_is_reproducible_and_holds_the_median() -> None:
    values = [float(v) for v in np.random.default_rng(1).normal(5, 1, 41)]
    interval = median_interval(values)
    assert interval == median_interval(values)
    assert interval.value == sorted(values)[20]
    assert interval.low < interval.value < interval.high
    # the distribution-free 95 % limits for n = 41 are the values of ranks 14 and 28; allow two ranks more
    assert sorted(values)[11] <= interval.low
    assert interval.high <= sorted(values)[29]
    assert median_interval([2.0]) == (2.0, 2.0, 2.0)
    assert math.isclose(median_interval([1.0, 3.0]).value, 2.0)


def test_students_interval_for_few_and_for_many_values():
    for count, level, t in ((2, 0.95, 12.7062), (2, 0.9999, 6366.198), (3, 0.95, 4.30265), (401, 0.95, 1.965912)):
        values = [0.0, 1.0] * (count // 2) + [0.5] * (count % 2)
        error = float(np.std(values, ddof=1)) / math.sqrt(count)
        assert mean_interval(values, level).high - 0.5 == pytest.approx(t * error, rel=1e-4)
