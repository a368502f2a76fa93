"""Confidence intervals for accuracies, their paired differences, and ratios of times."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate between its confidence limits."""

    value: float
    low: float
    high: float


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level={level} is no confidence level; give a number between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson_interval(successes: float, n: int, level: float = 0.95) -> Interval:
    """The score interval of a proportion (Wilson 1927).

    Unlike the textbook interval it stays inside [0, 1] and does not shrink to a point when all or none succeed.

    Args:
        successes: number of successes; a sum of scores in [0, 1] may stand for it (the interval is then wider than
            it need be, since no score in [0, 1] varies more than a coin of the same mean).
        n: number of trials.
        level: coverage.

    Raises:
        ValueError: for no trials, or successes outside 0 … n.
    """
    if n < 1:
        raise ValueError(f"n={n} trials give no interval; evaluate at least one prompt")
    if not 0 <= successes <= n:
        raise ValueError(f"successes={successes} must lie between 0 and n={n}; scores must lie between 0 and 1")
    z2 = _quantile(level) ** 2
    p = successes / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def paired_difference(scores: Sequence[float], reference: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of ``scores - reference`` over the same prompts, with Tango's (1998) score interval.

    The interval holds every difference Δ that a score test of paired proportions does not reject. With no discordant
    pair among n it is ±z²/(n + z²), where a bootstrap or Wald interval would pretend to certainty. Fractional scores
    count as parts of a discordant pair, which widens the interval.

    Args:
        scores, reference: scores in [0, 1], prompt by prompt.
        level: coverage.

    Raises:
        ValueError: for different or zero lengths.
    """
    n = len(scores)
    if n != len(reference) or n == 0:
        raise ValueError(f"{n} scores against {len(reference)} of the reference; score the same prompts, at least one")
    differences = np.asarray(scores, dtype=float) - np.asarray(reference, dtype=float)
    better = float(differences.clip(min=0).sum())
    worse = float((-differences).clip(min=0).sum())
    z = _quantile(level)
    value = (better - worse) / n
    # The statistic falls as Δ grows: it is +z at the lower limit and -z at the upper one.
    low = _bisect(lambda d: _tango(better, worse, n, d) - z, -1.0, value)
    high = _bisect(lambda d: _tango(better, worse, n, d) + z, value, 1.0)
    return Interval(value, low, high)


def _tango(better: float, worse: float, n: int, delta: float) -> float:
    """Tango's statistic: the discordance, less its expectation under Δ, in standard errors under Δ."""
    a = 2 * n
    b = -better - worse + (2 * n - better + worse) * delta
    c = -worse * delta * (1 - delta)
    q21 = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # P(only the reference is right), given Δ
    variance = n * (2 * q21 + delta * (1 - delta))
    gap = better - worse - n * delta
    if variance <= 0:
        return math.copysign(math.inf, gap) if gap else 0.0
    return gap / math.sqrt(variance)


def _bisect(f: Callable[[float], float], low: float, high: float, rounds: int = 60) -> float:
    """The zero of a falling function, which lies in [low, high]."""
    for _ in range(rounds):
        middle = (low + high) / 2
        if f(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def median_interval(values: Sequence[float], level: float = 0.95, draws: int = 2000) -> Interval:
    """The median with its percentile bootstrap interval (Efron 1979); the draws come from a fixed seed.

    Args:
        values: at least one.
        level: coverage.
        draws: bootstrap resamples.
    """
    if not len(values):
        raise ValueError("no values to take the median of; time at least one prompt")
    sample = np.asarray(values, dtype=float)
    picks = np.random.default_rng(0).integers(len(sample), size=(draws, len(sample)))
    low, high = np.quantile(np.median(sample[picks], axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.median(sample)), float(low), float(high))


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean of a few values, such as those of several seeds, with Student's t interval.

    One value has no interval: its limits are nan.

    Args:
        values: at least one.
        level: coverage.
    """
    sample = np.asarray(values, dtype=float)
    if not len(sample):
        raise ValueError("no values to take the mean of; give those of at least one seed")
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean, math.nan, math.nan)
    half = _student(level, len(sample) - 1) * float(sample.std(ddof=1)) / math.sqrt(len(sample))
    return Interval(mean, mean - half, mean + half)


@functools.cache
def _student(level: float, degrees: int) -> float:
    """The t beyond which, on both sides together, lies what the level leaves; by Simpson's rule and bisection.

    Over the angle of which t is √degrees times the tangent: there the density is a power of a cosine, without tails.
    """
    _quantile(level)  # complains
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)

    def inside(angle: float) -> float:
        y = scale * np.cos(np.linspace(0.0, angle, 4001)) ** (degrees - 1)
        return float(2 * (angle / 4000) / 3 * (y[0] + 4 * y[1::2].sum() + 2 * y[2:-1:2].sum() + y[-1]))

    return math.sqrt(degrees) * math.tan(_bisect(lambda angle: level - inside(angle), 0.0, math.pi / 2))
