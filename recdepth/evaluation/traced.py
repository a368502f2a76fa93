"""Traced calls of samplers, timed so that they can be laid beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recdepth.models import RecurrentDepthForCausalLM
from recdepth.sampling import Autoregressive, Sampler, SampleStats, Trace, Tracer, Tracers


@dataclass(frozen=True)
class Traced:
    """A call of a sampler on one batch of prompts, with its trace."""

    sampler: Sampler
    trace: Trace
    tokens: list[list[int]]
    stats: SampleStats


def trace_call(
    sampler: Sampler,
    model: RecurrentDepthForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    watching: Tracer | None = None,
    **call: Any,
) -> Traced:
    """Call a sampler with a trace.

    It is called before that with another one, untimed, so that the trace's seconds hold neither compilation nor a cold
    start: on a few tokens, or on all of them where graphs are compiled for what comes.

    Args:
        sampler, model, prompts, max_new_tokens: of the call; the prompts make one batch.
        watching: another tracer of the same call.
        call: its further arguments.

    Raises:
        ValueError: naming the prompt or setting that is wrong.
    """
    if not len(prompts):
        raise ValueError("prompts is empty; trace at least one")
    call["batch_size"] = len(prompts)
    few = max_new_tokens if sampler.compile else min(8, max_new_tokens)
    sampler(model, prompts, max_new_tokens=few, trace=Trace(), **call)
    trace = Trace()
    tracer = trace if watching is None else Tracers((trace, watching))
    result = sampler(model, prompts, max_new_tokens=max_new_tokens, trace=tracer, **call)
    return Traced(sampler, trace, result.tokens, result.stats)


def autoregressive_baseline(sampler: Sampler) -> Autoregressive | None:
    """One token after the other at the sampler's own r, initial states and compilation; None where it is that already.

    Its keys are per depth, as in training, whatever the sampler's.
    """
    if isinstance(sampler, Autoregressive):
        return None
    return Autoregressive(num_steps=sampler.num_steps, init_scale=sampler.init_scale, compile=sampler.compile)
