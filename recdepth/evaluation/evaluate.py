"""One sampler on held-out prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from recdepth.models import RecurrentDepthForCausalLM
from recdepth.sampling import Sampler, SampleStats

from .held_out import HeldOut
from .intervals import wilson_interval


@dataclass
class Evaluation:
    """What a sampler achieved.

    Attributes:
        n: prompts.
        accuracy: mean score, with ``low`` and ``high``, its 95 % Wilson interval.
        scores, tokens: per prompt, in order.
        stats: of all calls together; passes of a batch count once.
        seconds: wall-clock time of the calls.
    """

    n: int
    accuracy: float
    low: float
    high: float
    scores: list[float] = field(repr=False)
    tokens: list[list[int]] = field(repr=False)
    stats: SampleStats = field(repr=False)
    seconds: float


def evaluate(
    sampler: Sampler,
    model: RecurrentDepthForCausalLM,
    held_out: HeldOut,
    *,
    batch_size: int = 64,
    seed: int = 0,
    temperature: float = 0.0,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Sample a continuation of every prompt, in batches, and score it.

    Args:
        sampler: any sampler.
        model: put into eval mode meanwhile.
        held_out: the prompts, where their texts end and how these are scored.
        batch_size: prompts sampled together.
        seed: of noise and draws.
        temperature: 0 for greedy.
        on_batch: called with the number of prompts done, after every batch.

    Raises:
        ValueError: for no prompts, or a batch size below 1.
    """
    if not len(held_out):
        raise ValueError("held_out is empty; evaluate on at least one prompt")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    tokens: list[list[int]] = []
    stats = SampleStats()
    seconds = 0.0
    with evaluating(model):
        for begin in range(0, len(held_out), batch_size):
            batch = held_out.part(begin, begin + batch_size)
            started = time.perf_counter()
            result = batch.sample(sampler, model, temperature=temperature, seed=seed, batch_size=len(batch))
            seconds += time.perf_counter() - started
            tokens += result.tokens
            stats = stats.add(result.stats)
            if on_batch is not None:
                on_batch(len(tokens))
    scores = [float(held_out.score(item, new)) for item, new in zip(held_out.items, tokens, strict=True)]
    interval = wilson_interval(sum(scores), len(scores))
    return Evaluation(len(scores), *interval, scores, tokens, stats, seconds)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; the mode it had, after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def agreement(tokens: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """How much of the text is the reference's: the mean over prompts of the fraction of equal places.

    A place is equal when both have the same token there; the fraction is of the longer of the two. Two empty
    continuations agree. 1.0 means token for token.

    Args:
        tokens, reference: new tokens, prompt by prompt.

    Raises:
        ValueError: for different or zero numbers of prompts.
    """
    if len(tokens) != len(reference) or not tokens:
        raise ValueError(
            f"{len(tokens)} continuations against {len(reference)} of the reference; compare the same prompts"
        )
    fractions = []
    for ours, theirs in zip(tokens, reference, strict=True):
        longer = max(len(ours), len(theirs))
        equal = sum(a == b for a, b in zip(ours, theirs, strict=False))
        fractions.append(equal / longer if longer else 1.0)
    return sum(fractions) / len(fractions)
