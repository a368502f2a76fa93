"""How many recurrences a training step gets."""

from __future__ import annotations

import math

import torch


def sample_depth(mean: float, generator: torch.Generator | None = None, sigma: float = 0.5, least: int = 1) -> int:
    """Draw a training depth ``r ~ Poisson(LogNormal(log μ - sigma²/2, sigma)) + least``, μ = mean + 1 - least.

    With ``least=1`` this is the distribution of 2502.05171, section 3.3.

    Args:
        mean: in recurrences; the depth's own mean is ``mean + 1``, whatever the least.
        generator: torch's random source; None for the global one.
        sigma: spread of the log-normal.
        least: the smallest depth.

    Raises:
        ValueError: for a mean that is not positive, or below ``least``.
    """
    if not mean > 0:
        raise ValueError(f"mean_recurrence={mean} must be positive")
    if least > 1 and not mean >= least:
        raise ValueError(f"least_recurrence={least} exceeds mean_recurrence={mean}; lower it or raise the mean")
    normal = torch.randn((), generator=generator, dtype=torch.float64).item()
    rate = math.exp(math.log(mean + 1 - least) - sigma**2 / 2 + sigma * normal)
    return int(torch.poisson(torch.tensor(rate, dtype=torch.float64), generator=generator).item()) + least
