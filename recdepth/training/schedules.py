"""Learning-rate schedules: the factor on every group's rate, as a function of the progress of training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """Maps progress (0 at the start, 1 at the end of training) to a factor on the learning rate."""

    def __call__(self, progress: float) -> float: ...


def _check_fractions(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must be a fraction between 0 and 1")


def _warm(progress: float, warmup: float) -> float:
    return min(1.0, progress / warmup) if warmup else 1.0


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warmup, constant rate, linear decay to ``final``.

    Args:
        warmup: fraction of training.
        decay: fraction of training, at its end.
        final: factor at the end.

    Raises:
        ValueError: for values that are no fractions, or if warmup and decay overlap.
    """

    warmup: float = 0.02
    decay: float = 0.2
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_fractions(warmup=self.warmup, decay=self.decay, final=self.final)
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup={self.warmup} and decay={self.decay} overlap; their sum must be at most 1")

    def __call__(self, progress: float) -> float:
        if progress > 1 - self.decay:
            return 1 - (1 - self.final) * (progress - 1 + self.decay) / self.decay
        return _warm(progress, self.warmup)


@dataclass(frozen=True)
class Cosine:
    """Linear warmup, then half a cosine from 1 to ``final``.

    Args:
        warmup: fraction of training.
        final: factor at the end.

    Raises:
        ValueError: for values that are no fractions.
    """

    warmup: float = 0.02
    final: float = 0.1

    def __post_init__(self) -> None:
        _check_fractions(warmup=self.warmup, final=self.final)

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return _warm(progress, self.warmup)
        along = (progress - self.warmup) / (1 - self.warmup) if self.warmup < 1 else 1.0
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * along)) / 2


@dataclass(frozen=True)
class Constant:
    """Linear warmup, then a constant rate.

    Args:
        warmup: fraction of training.

    Raises:
        ValueError: if it is no fraction.
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_fractions(warmup=self.warmup)

    def __call__(self, progress: float) -> float:
        return _warm(progress, self.warmup)
