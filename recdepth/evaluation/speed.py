"""Speed at batch 1, the samplers in turn, and the machine it was measured on."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import transformers

from recdepth.models import RecurrentDepthForCausalLM
from recdepth.models.cpu import cpu_name
from recdepth.sampling import Sampler, SampleResult, SampleStats

from .evaluate import evaluating
from .held_out import HeldOut
from .intervals import Interval, median_interval


@dataclass
class Timings:
    """Batch-1 timings of one sampler, prompt by prompt.

    Attributes:
        seconds: wall-clock time of the whole call, prefill included.
        new_tokens: how many tokens it returned (at least 1: a stop token counts).
        tokens: the tokens themselves.
        stats: of all calls together.
    """

    seconds: list[float] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list, repr=False)
    stats: SampleStats = field(default_factory=SampleStats)

    def add(self, seconds: float, result: SampleResult) -> None:
        """Note a call with one prompt."""
        self.seconds.append(seconds)
        self.new_tokens.append(result.stats.new_tokens)
        self.tokens += result.tokens
        self.stats = self.stats.add(result.stats)

    def extend(self, more: Timings) -> None:
        """Note the calls of others behind these."""
        self.seconds += more.seconds
        self.new_tokens += more.new_tokens
        self.tokens += more.tokens
        self.stats = self.stats.add(more.stats)

    @property
    def rates(self) -> np.ndarray:
        """Tokens per second, per prompt."""
        return np.asarray(self.new_tokens) / np.asarray(self.seconds)

    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the tokens per second."""
        low, median, high = np.quantile(self.rates, (0.25, 0.5, 0.75))
        return float(low), float(median), float(high)

    def speedup_over(self, other: Timings) -> Interval:
        """Median over prompts of the ratio of tokens per second, with its 95 % bootstrap interval.

        Ratios are taken prompt by prompt, between calls made one after the other, so that neither a slow prompt nor a
        slow minute of the machine counts for one sampler alone.
        """
        return median_interval(list(self.rates / other.rates))


def time_in_turn(
    samplers: Mapping[str, Sampler],
    model: RecurrentDepthForCausalLM,
    held_out: HeldOut,
    *,
    seed: int = 0,
    warmup: int = 1,
    on_prompt: Callable[[int], None] | None = None,
    timings: dict[str, Timings] | None = None,
) -> dict[str, Timings]:
    """Time every sampler on every prompt, one prompt at a time, greedily.

    Prompt by prompt each sampler has its turn, starting with another one each time. Before, every sampler runs
    unmeasured, to warm up; a call that has to wait for torch.compile is made again.

    Args:
        samplers: by name.
        model: put into eval mode meanwhile.
        held_out: at least one prompt.
        seed: of the states' noise.
        warmup: prompts to warm up with.
        on_prompt: called with the number of prompts done.
        timings: an empty dict to be filled, prompt by prompt, for callers that may be interrupted.

    Returns:
        the timings by name.
    """
    if not len(held_out):
        raise ValueError("held_out is empty; time at least one prompt")
    names = list(samplers)
    timings = {} if timings is None else timings
    timings.update({name: Timings() for name in names})
    with evaluating(model):
        for i in range(-warmup, len(held_out)):  # below 0: warms up
            row = i if i >= 0 else (i + warmup) % len(held_out)
            prompt = held_out.part(row, row + 1)
            turn = (held_out.first + max(i, 0)) % len(names)
            measured = {}
            for name in names[turn:] + names[:turn]:
                measured[name] = _timed(partial(prompt.sample, samplers[name], model, seed=seed), model.device)
            if i < 0:
                continue
            for name, taken in measured.items():
                timings[name].add(*taken)
            if on_prompt is not None:
                on_prompt(i + 1)
    return timings


def _timed(call: Callable[[], SampleResult], device: torch.device) -> tuple[float, SampleResult]:
    """Seconds and result of a call; one in which a graph was compiled does not count, and is made again."""
    while True:
        graphs = _graphs()
        wait(device)
        started = time.perf_counter()
        result = call()
        wait(device)
        seconds = time.perf_counter() - started
        if _graphs() == graphs:
            return seconds, result
        if device.type == "cuda":
            call()  # new graphs are captured


def _graphs() -> int:
    """How many graphs torch.compile has made in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # slow to import; not there: nothing was compiled
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo is not None else 0


def wait(device: torch.device) -> None:
    """Let the device finish what it was given, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine_stamp(model: RecurrentDepthForCausalLM) -> dict[str, str | int]:
    """The machine, dtype and versions that a speed belongs to."""
    device = model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "torch_threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(terse=True),
    }
