"""What decoding costs in core passes, before anything is run.

Two counts: *core passes* are sequential (they make the waiting time of a small batch on a fast device), *token passes*
are recurrences times positions (they make the work, hence the time of a large batch). Both leave out the prefill,
which yields the first new token; the other L = new_tokens - 1 are decoded.

One token at a time costs L·r of both. A wavefront in which no draft flips, and which commits at depth r, costs the
same work but overlaps the tokens. With S = r/r' steps per token, headway h and at most W lanes, lane i opens at step

    1 + S·⌊i/w⌋ + ⌈(i mod w)/h⌉,   w = min(W, h·S),

since lane i waits for h fewer lanes to have been opened a step before, and for lane i - W to be committed S steps
before. So the speed-up in core passes tends to min(h·r/r', W) for long texts. Flips add core passes (at most up to
L·r), early commits (a smaller effective r) save them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Counts for one row, without the prefill.

    Attributes:
        steps: rounds of refinement and read-out.
        core_passes: sequential core passes.
        token_passes: recurrences, summed over positions.
    """

    steps: int
    core_passes: int
    token_passes: int


def autoregressive_cost(new_tokens: int, num_steps: int) -> Cost:
    """Cost of one token at a time with ``num_steps`` recurrences each.

    Args:
        new_tokens: at least 1; the first one comes from the prefill.
        num_steps: r.
    """
    _check(new_tokens=new_tokens, num_steps=num_steps)
    decoded = new_tokens - 1
    return Cost(decoded, decoded * num_steps, decoded * num_steps)


def wavefront_cost(
    new_tokens: int, num_steps: int, inner_steps: int = 1, headway: int = 1, max_wavefront: int = 128
) -> Cost:
    """Cost of a wavefront that commits at depth ``num_steps`` and whose drafts never flip: the least it can take.

    Args:
        new_tokens: at least 1; the first one comes from the prefill.
        num_steps: r.
        inner_steps: r', a divisor of r.
        headway: h, lanes opened per step.
        max_wavefront: W, most lanes at once.

    Raises:
        ValueError: for values below 1, or an r' that does not divide r.
    """
    _check(
        new_tokens=new_tokens,
        num_steps=num_steps,
        inner_steps=inner_steps,
        headway=headway,
        max_wavefront=max_wavefront,
    )
    if num_steps % inner_steps:
        raise ValueError(
            f"inner_steps={inner_steps} does not divide num_steps={num_steps}: no closed form; take a divisor"
        )
    decoded = new_tokens - 1
    if decoded == 0:
        return Cost(0, 0, 0)
    per_token = num_steps // inner_steps
    wide = min(max_wavefront, headway * per_token)
    rounds, rest = divmod(decoded - 1, wide)
    steps = per_token * (rounds + 1) + -(-rest // headway)
    return Cost(steps, steps * inner_steps, decoded * num_steps)


def speedup_limit(num_steps: int, inner_steps: int = 1, headway: int = 1, max_wavefront: int = 128) -> float:
    """What the ratio of core passes, one token at a time over wavefront, tends to for long texts: min(h·r/r', W)."""
    _check(num_steps=num_steps, inner_steps=inner_steps, headway=headway, max_wavefront=max_wavefront)
    return min(headway * num_steps / inner_steps, float(max_wavefront))


def _check(**settings: int) -> None:
    if wrong := [f"{name}={value} must be at least 1" for name, value in settings.items() if value < 1]:
        raise ValueError("; ".join(wrong))
