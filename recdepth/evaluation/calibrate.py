"""From a wanted agreement with full depth to the exit threshold that keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recdepth.models import RecurrentDepthForCausalLM
from recdepth.sampling import Adaptive, Autoregressive, DiffusionForcing, SampleResult

from .evaluate import agreement as token_agreement
from .evaluate import evaluating


@dataclass(frozen=True)
class CalibrationLook:
    """What one threshold gave.

    Attributes:
        threshold: the exit threshold that was tried.
        agreement: with full depth, in [0, 1]; see :func:`recdepth.evaluation.agreement`.
        recurrences_per_token: mean recurrences of a committed position.
        core_passes_per_token: sequential core passes while decoding over new tokens; a batch shares its passes.
    """

    threshold: float
    agreement: float
    recurrences_per_token: float
    core_passes_per_token: float


@dataclass(frozen=True)
class ExitCalibration:
    """A threshold, and how it was found.

    Attributes:
        threshold: give it to the sampler as ``exit_threshold``.
        agreement: of this threshold with full depth, on the prompts of the calibration.
        recurrences_per_token: of this threshold.
        looks: everything that was tried, by rising threshold (for a table or a plot).
    """

    threshold: float
    agreement: float
    recurrences_per_token: float
    looks: tuple[CalibrationLook, ...]


def calibrate_exit(
    model: RecurrentDepthForCausalLM,
    sampler: Adaptive | DiffusionForcing,
    prompts: Sequence[Sequence[int]],
    *,
    agreement: float = 0.99,
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    batch_size: int | None = None,
    seed: int = 0,
    low: float = 1e-5,
    high: float = 1.0,
    looks: int = 10,
) -> ExitCalibration:
    """Find the largest exit threshold whose greedy text agrees well enough with full depth.

    Full depth is ``Autoregressive`` with the sampler's ``num_steps``, ``kv`` and ``init_scale`` and a prefill at full
    depth. ``high`` is tried first, and returned if it will do; then ``low``; then the range between them is halved in
    log space.

    Agreement need not fall steadily with the threshold. Guaranteed is: the threshold that is returned was tried, and
    it reached the agreement on these prompts; none that was tried above it did. A larger one that was not tried may
    reach it too, and other prompts may agree less: a check on held-out prompts is worth its time, since one early
    difference changes all of the text behind it. Where only a threshold between ``low`` and ``high`` reaches the
    agreement, and ``low`` does not, the search gives up.

    Args:
        model: put into eval mode meanwhile.
        sampler: with any criterion; its own threshold is ignored.
        prompts: token ids, one non-empty list per prompt.
        agreement: wanted agreement, above 0 and at most 1.
        max_new_tokens: per prompt.
        stop_tokens: ids that end a continuation.
        batch_size: prompts sampled together; None for up to 64.
        seed: of the states' noise.
        low, high: the range of thresholds, in the unit of the criterion's score.
        looks: thresholds to try, the two ends among them; each costs a run over the prompts.

    Raises:
        ValueError: for no prompts or impossible settings, naming each; for a sampler without an exit criterion; where
            no position is decoded; where ``low`` does not reach the agreement, naming the best that was reached.
    """
    if problems := _problems(sampler, prompts, agreement, low, high, looks):
        raise ValueError("cannot calibrate:\n" + "\n".join(f"  - {p}" for p in problems))
    call: dict[str, Any] = {"max_new_tokens": max_new_tokens, "stop_tokens": stop_tokens}
    call |= {"seed": seed, "batch_size": batch_size}
    with evaluating(model):
        reference = _full_depth(sampler)(model, prompts, **call)
        if not reference.stats.committed:
            raise ValueError(
                f"every continuation ends with the token that the prefill gives, so there is nothing to calibrate on;"
                f" raise max_new_tokens={max_new_tokens} (to 2 at least), or give other prompts or stop_tokens"
            )

        def look(threshold: float) -> CalibrationLook:
            return _look(threshold, replace(sampler, exit_threshold=threshold)(model, prompts, **call), reference)

        tried = _search(look, agreement, low, high, looks)
    chosen = max((one for one in tried if one.agreement >= agreement), key=lambda one: one.threshold)
    return ExitCalibration(chosen.threshold, chosen.agreement, chosen.recurrences_per_token, tuple(tried))


def _full_depth(sampler: Adaptive | DiffusionForcing) -> Autoregressive:
    """What the sampler is to agree with."""
    return Autoregressive(
        num_steps=sampler.num_steps,
        kv=sampler.kv,
        init_scale=sampler.init_scale,
        allow_unsupported=sampler.allow_unsupported,
    )


def _look(threshold: float, result: SampleResult, reference: SampleResult) -> CalibrationLook:
    stats, agreed = result.stats, token_agreement(result.tokens, reference.tokens)
    passes = stats.core_passes / max(stats.new_tokens, 1)
    return CalibrationLook(threshold, agreed, stats.recurrences_per_token, passes)


def _search(
    look: Callable[[float], CalibrationLook], agreement: float, low: float, high: float, looks: int
) -> list[CalibrationLook]:
    """Look at both ends, then halve the range between one that reaches the agreement and one that does not.

    Returns:
        what was tried, by rising threshold; at least one of them reaches the agreement.

    Raises:
        ValueError: where ``low`` does not.
    """
    top = look(high)
    if top.agreement >= agreement:
        return [top]
    bottom = look(low)
    tried = [bottom, top]
    if bottom.agreement < agreement:
        best = max(tried, key=lambda one: one.agreement)
        raise ValueError(
            f"no threshold reaches agreement={agreement}: even low={low:g} gives {bottom.agreement:.4f}"
            f" (best: {best.agreement:.4f}, at {best.threshold:g}); lower low or agreement, or change what else"
            " differs from full depth, such as prefill_steps, momentum, noise or max_wavefront"
        )
    reached, failed = bottom, top
    for _ in range(looks - 2):
        middle = look(math.sqrt(reached.threshold * failed.threshold))
        tried.append(middle)
        if middle.agreement >= agreement:
            reached = middle
        else:
            failed = middle
    return sorted(tried, key=lambda one: one.threshold)


def _problems(
    sampler: Adaptive | DiffusionForcing,
    prompts: Sequence[Sequence[int]],
    agreement: float,
    low: float,
    high: float,
    looks: int,
) -> list[str]:
    """What is wrong with a call, each with its remedy."""
    problems = []
    if not isinstance(sampler, (Adaptive, DiffusionForcing)):
        problems.append(f"the sampler {sampler.name} has no exit criterion; take Adaptive or DiffusionForcing")
    elif sampler.policy().exit is None:
        problems.append(
            f"the sampler {sampler.name} commits by depth alone, without an exit criterion;"
            " set commit to a criterion, 'latent_diff' for instance"
        )
    if not prompts:
        problems.append("prompts is empty; give at least one prompt")
    if not 0 < agreement <= 1:
        problems.append(f"agreement={agreement} must be above 0 and at most 1, such as 0.99")
    if not 0 < low < high < math.inf:
        problems.append(f"low={low} and high={high} must be finite and above 0, low below high")
    if looks < 2:
        problems.append(f"looks={looks} must be at least 2: low and high")
    return problems
