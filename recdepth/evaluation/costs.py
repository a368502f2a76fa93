"""Where a sampler's time and memory go: shares of the seams, bare core passes as a bound, peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from recdepth.models import Buffers
from recdepth.models.products import packed_products
from recdepth.sampling import Trace
from recdepth.sampling.fused import FusedLook, FusedStep
from recdepth.sampling.spare import forget_caches

from .speed import wait

#: What a sampler calls; ``draft`` is the other three in one, and ``step`` these with the front's bookkeeping.
SEAMS = ("embed", "recur", "decode", "draft", "step")

Wrap = Callable[[str, Callable[..., Any]], Callable[..., Any]]


@contextmanager
def wrapped_seams(seams: Sequence[Any], wrap: Wrap) -> Iterator[None]:
    """Let the seams be wrapped inside; as they were, after.

    Args:
        seams: the objects whose attributes the sampler calls: the model, and its compiled seams if it uses them.
        wrap: (name, seam) -> what to call instead.
    """
    places = [(owner, name) for owner in seams for name in SEAMS if hasattr(owner, name)]
    own = [vars(owner).get(name) for owner, name in places]
    try:
        for owner, name in places:
            setattr(owner, name, wrap(name, getattr(owner, name)))
        yield
    finally:
        for (owner, name), before in zip(places, own, strict=True):
            if before is not None:
                setattr(owner, name, before)
            elif name in vars(owner):  # the class has it
                delattr(owner, name)


@dataclass(frozen=True)
class Shares:
    """Fractions of a call's time; together 1.

    Attributes:
        core, embed, decode: inside the seams ``recur``, ``embed`` and ``decode``.
        fused: inside ``draft`` and ``step``, several at once; in ``step`` with flips and commits, or exit scores.
        bookkeeping: all the rest: choosing tokens, flips and commits, buffers, noise, transfers.
        seconds: what the call took, waits for the device around every seam included.
    """

    core: float
    embed: float
    decode: float
    fused: float
    bookkeeping: float
    seconds: float


def draft_steps(trace: Trace, text: Sequence[int]) -> tuple[int, int]:
    """How long a sampler waits for tokens that it has already drafted.

    Args:
        trace: of the one prompt.
        text: its new tokens.

    Returns:
        the steps that the text took, and after how many of them every draft was the token that came of it, for good;
        tokens of the prefill take no step.
    """
    first, steps, tokens = len(trace.prompts[0]) - 1, trace.steps_of(0), np.asarray(text)
    complete = wrong = 0  # the first step by which every token has a draft; the last one with a wrong draft
    for number, step in enumerate(steps, 1):
        lanes, drafts = step.positions[0] - first, step.proposals[0]
        read = (drafts >= 0) & (lanes >= 0) & (lanes < len(text))
        if not complete and (lanes[read] == len(text) - 1).any():
            complete = number
        if (drafts[read] != tokens[lanes[read]]).any():
            wrong = number
    return len(steps), min(max(complete, wrong + 1), len(steps))


def time_shares(seams: Sequence[Any], call: Callable[[], object], device: torch.device) -> Shares:
    """Time the seams inside a call. On a GPU every seam is waited for, so the call as a whole is slower than unwatched.

    Args:
        seams: as in :func:`wrapped_seams`.
        call: runs a sampler.
        device: the model's.
    """
    spent = dict.fromkeys(SEAMS, 0.0)

    def timed(name: str, seam: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            wait(device)
            began = time.perf_counter()
            out = seam(*args, **kwargs)
            wait(device)
            spent[name] += time.perf_counter() - began
            return out

        return run

    with wrapped_seams(seams, timed):
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        seconds = time.perf_counter() - began
    shares = {name: spent[name] / seconds for name in SEAMS}
    rest = max(0.0, 1 - sum(shares.values()))
    fused = shares["draft"] + shares["step"]
    return Shares(shares["recur"], shares["embed"], shares["decode"], fused, rest, seconds)


@dataclass(frozen=True)
class CorePass:
    """One recurrence: its arguments, with ``e`` and ``s`` replaced by copies that passes of a shape share.

    Attributes:
        recur: the seam that was called, eager or compiled.
        args: as the sampler gave them: embedding, states, cache, span, depth.
    """

    recur: Callable[..., Tensor]
    args: tuple[Any, ...]

    @property
    def rows(self) -> int:
        return int(self.args[0].shape[0])

    @property
    def width(self) -> int:
        return int(self.args[0].shape[1])

    @property
    def cache_bytes(self) -> int:
        """Memory of the key/value cache that the pass used."""
        return max((int(getattr(a, "nbytes", 0)) for a in self.args[2:] if not isinstance(a, Tensor)), default=0)


def record_passes(seams: Sequence[Any], call: Callable[[], object]) -> list[CorePass]:
    """Every core pass of a call, in order; the cache that they name stays filled.

    Args:
        seams: as in :func:`wrapped_seams`.
        call: runs a sampler.
    """
    passes: list[CorePass] = []
    kept: dict[tuple[str, torch.Size], Tensor] = {}

    def copies(e: Tensor, s: Tensor) -> list[Tensor]:
        return [kept.setdefault((key, x.shape), x.clone()) for key, x in (("e", e), ("s", s))]

    def recorded(name: str, seam: Callable[..., Any]) -> Callable[..., Any]:
        def recur(e: Tensor, s: Tensor, cache: Any, places: Any, depth: Any, **several: int) -> Any:
            depths = range(depth, depth + several["steps"]) if several else [depth]
            pair = copies(e, s)
            passes.extend(CorePass(seam, (*pair, cache, places, each)) for each in depths)
            return seam(e, s, cache, places, depth, **several)

        def fused(step: FusedStep | FusedLook, inputs: tuple[Tensor, ...], cache: Any, length: int) -> Any:
            e, s, positions = step.lanes(*inputs)
            places = seam.__self__.span(positions, cache, length=length)  # type: ignore[attr-defined]
            pair = copies(e, s)
            passes.extend(CorePass(plain, (*pair, cache, places, 0)) for _ in range(step.recurrences))
            return seam(step, inputs, cache, length)

        def draft(ids: Tensor, buffers: Buffers, cache: Any, places: Any, steps: int, **more: Any) -> Any:
            pair = copies(*(buffer[:, :1] for buffer in (buffers.embedded, buffers.states)))
            for lane in range(places.positions.shape[1]):
                place = places.part(lane, lane + 1)
                if (place.positions >= 0).any():  # else padding
                    passes.extend(CorePass(plain, (*pair, cache, place, step)) for step in range(steps))
            return seam(ids, buffers, cache, places, steps, **more)

        if name in ("step", "draft"):
            plain = seam.__self__.recur.__wrapped__  # type: ignore[attr-defined]
            return fused if name == "step" else draft
        recur.__wrapped__ = seam  # type: ignore[attr-defined]
        return recur if name == "recur" else seam

    with wrapped_seams(seams, recorded):
        call()
    return passes


@torch.inference_mode()
def replay(passes: Sequence[CorePass], device: torch.device) -> float:
    """Seconds of the same core passes and nothing else: the same widths, keys and depths, on the filled cache."""
    wait(device)
    began = time.perf_counter()
    for each in passes:
        each.recur(*each.args)
    wait(device)
    return time.perf_counter() - began


@dataclass(frozen=True)
class Bound:
    """A sampler against its own core passes, run bare: what is left to gain without changing what it computes.

    Attributes:
        passes: core passes, those of the prefill included.
        mean_width, max_width: positions per pass.
        sampler_seconds, bare_seconds: medians.
        ratio: median of the ratio of each call to the bare passes timed right after it.
    """

    passes: int
    mean_width: float
    max_width: int
    sampler_seconds: float
    bare_seconds: float
    ratio: float


def measure_bound(
    seams: Sequence[Any], calls: Sequence[Callable[[], object]], device: torch.device, repeats: int = 5
) -> Bound:
    """Time calls and their bare core passes in turn.

    Args:
        seams: as in :func:`wrapped_seams`.
        calls: each runs the sampler on a prompt of its own; the times of all prompts are added up.
        device: the model's.
        repeats: rounds; one more warms up.
    """
    passes = [record_passes(seams, call) for call in calls]
    model = next(seam for seam in seams if isinstance(seam, nn.Module))
    sampled, bare = [], []
    for repeat in range(-1, repeats):
        seconds = [0.0, 0.0]
        for call, recorded in zip(calls, passes, strict=True):
            wait(device)
            began = time.perf_counter()
            call()
            wait(device)
            seconds[0] += time.perf_counter() - began
            with packed_products(model):  # as the sampler had them
                seconds[1] += replay(recorded, device)
        if repeat >= 0:
            sampled.append(seconds[0])
            bare.append(seconds[1])
    widths = [each.width for recorded in passes for each in recorded]
    return Bound(
        passes=len(widths),
        mean_width=statistics.fmean(widths),
        max_width=max(widths),
        sampler_seconds=statistics.median(sampled),
        bare_seconds=statistics.median(bare),
        ratio=statistics.median(a / b for a, b in zip(sampled, bare, strict=True)),
    )


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most memory that torch's allocator held during a call, above what it held before.

    On a GPU as ``torch.cuda.max_memory_allocated`` counts it; on the CPU from the same allocator events, which
    torch's profiler records. Neither holds what libraries allocate for themselves (workspaces of matrix products),
    nor fragmentation. The CPU's call runs several times slower than usual. Caches that earlier calls have left do not
    serve it.
    """
    forget_caches()
    if device.type == "cuda":
        wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        wait(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
