"""How many recurrences a training step gets."""

from __future__ import annotations

import math

import torch


def sample_depth(mean: float, generator: torch.Generator | None = None, sigma: float = 0.5) -> int:
    """Draw a training depth ``r ~ Poisson(LogNormal(log mean - sigma²/2, sigma)) + 1`` (2502.05171, section 3.3).

    Args:
        mean: mean of the log-normal rate, in recurrences; the depth's own mean is ``mean + 1``.
        generator: torch's random source; None for the global one.
        sigma: spread of the log-normal.

    Raises:
        ValueError: for a mean that is not positive.
    """
    if not mean > 0:
        raise ValueError(f"mean_recurrence={mean} must be positive")
    normal = torch.randn((), generator=generator, dtype=torch.float64).item()
    rate = math.exp(math.log(mean) - sigma**2 / 2 + sigma * normal)
    return int(torch.poisson(torch.tensor(rate, dtype=torch.float64), generator=generator).item()) + 1
