"""Successive halving over prompts: bad settings die early, the others are measured on more and more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np

from recdepth.sampling import Sampler

from .intervals import Interval, paired_difference
from .speed import Timings
from .tune_space import is_lossless

_BLOCK = 500  # fresh prompts between two looks at whether a finalist is clearly beyond the budget


class Fate(StrEnum):
    """What became of a setting."""

    UNMEASURED = "not measured to the end"
    BEYOND = "beyond the budget"
    OUTDONE = "slower, or further from the reference"
    SLOWER = "slower than the finalists"
    FINALIST = "finalist"
    REFUTED = "beyond the budget on fresh prompts"
    CONFIRMED = "confirmed on fresh prompts"


#: Told before each part of the work: what it is, and how many calls of :class:`Bench` it makes.
Announce = Callable[[str, int], Callable[[], None]]


@dataclass(frozen=True)
class Scored:
    """A sampler and the reference on the same prompts.

    Attributes:
        scores, reference: in [0, 1], prompt by prompt.
        same: whether the text is the reference's, token for token.
    """

    scores: list[float]
    reference: list[float]
    same: list[bool]


class Bench(Protocol):
    """What halving needs to measure; prompts are numbered, and all samplers get the same ones."""

    def score(self, sampler: Sampler, begin: int, end: int) -> Scored:
        """Sample the prompts ``begin … end - 1`` in batches."""
        ...

    def time(self, samplers: Mapping[str, Sampler], begin: int, end: int) -> tuple[Timings, dict[str, Timings]]:
        """Time the reference and the samplers on these prompts, at batch 1 and in turn."""
        ...


@dataclass(eq=False)
class Tried:
    """What is known of one setting.

    Attributes:
        name, sampler: which it is.
        scores, reference, same: see :class:`Scored`, of all prompts of the search that it was scored on; of a lossless
            sampler, which is not scored, ``same`` is of those that it was timed on.
        timings, clock: its own and the reference's at batch 1, in turn on the same prompts.
        rung: how many rungs it was measured in.
        fate: why it went no further, or what became of it.
        known: it is one of the standard settings, or the one given, and was not drawn.
    """

    name: str
    sampler: Sampler
    scores: list[float] = field(default_factory=list, repr=False)
    reference: list[float] = field(default_factory=list, repr=False)
    same: list[bool] = field(default_factory=list, repr=False)
    timings: Timings = field(default_factory=Timings, repr=False)
    clock: Timings = field(default_factory=Timings, repr=False)
    rung: int = 0
    fate: Fate = Fate.UNMEASURED
    known: bool = False

    @property
    def difference(self) -> Interval:
        """Of mean scores to the reference, paired; none for a lossless sampler, which is not scored."""
        return paired_difference(self.scores, self.reference) if self.scores else Interval(0.0, 0.0, 0.0)

    @property
    def speed(self) -> float:
        """Over the reference at batch 1: the median over prompts."""
        return float(np.median(self.timings.rates / self.clock.rates))

    def closeness(self) -> tuple[float, float]:
        """What it loses (negative; a gain is none), then the share of texts that are the reference's."""
        return min(self.difference.value, 0.0), sum(self.same) / len(self.same) if self.same else 1.0

    def add(self, scored: Scored) -> None:
        """Note further prompts."""
        self.scores += scored.scores
        self.reference += scored.reference
        self.same += scored.same


@dataclass(frozen=True)
class Checked:
    """A finalist on fresh prompts.

    Attributes:
        tried: which it is.
        scored: all fresh prompts, or fewer if it was clearly beyond the budget before.
        fits: its paired difference is within the budget, on all prompts.
    """

    tried: Tried
    scored: Scored
    fits: bool

    @property
    def difference(self) -> Interval:
        """Of mean scores to the reference, paired."""
        return paired_difference(self.scored.scores, self.scored.reference)


def halve(
    tried: Sequence[Tried],
    bench: Bench,
    *,
    rungs: Sequence[int],
    timed: Sequence[int],
    budget: float,
    keep: int,
    finalists: int,
    announce: Announce,
) -> list[Tried]:
    """Measure all settings on few prompts, the better ones on more, and so on.

    At each rung a setting is out whose loss is beyond the budget for all of its 95 % interval. Of the others one in
    ``keep`` goes on, by layers: first those that no other one beats both in speed and in closeness to the reference's
    scores and texts, then those that only the first ones beat, and so on, the fastest first within a layer. So both
    the fast and the close survive as long as few prompts cannot tell which of the fast ones lose.

    Args:
        tried: filled in as measurements come, for callers that may be interrupted.
        bench: measures.
        rungs: prompts that a setting has been scored on after each rung, rising.
        timed: prompts that it has been timed on after each rung, not falling.
        budget: the largest loss in mean score that is within it, such as 0.005.
        keep: one setting in so many goes on, at least 2.
        finalists: settings that are returned at most, and that go on at least.
        announce: see :data:`Announce`.

    Returns:
        the finalists: those within the budget on the prompts of the search, the fastest first, then those that may
        still be; the last one of a full list is the closest of all. Empty if all are beyond the budget.
    """
    alive, scored, clocked = list(tried), 0, 0
    for number, (end, until) in enumerate(zip(rungs, timed, strict=True), start=1):
        where = f"rung {number} of {len(rungs)}"
        _score(alive, bench, scored, end, announce, where)
        _time(alive, bench, clocked, until, announce, where)
        scored, clocked = end, until
        for one in alive:
            one.rung = number
        out = [one for one in alive if one.difference.high < -budget]
        for one in out:
            one.fate = Fate.BEYOND
        alive = [one for one in alive if one.difference.high >= -budget]
        if number < len(rungs):
            count = max(finalists, math.ceil(len(alive) / keep))
            alive = _best(alive, count)
    return _finalists(alive, budget, finalists)


def confirm(
    finalists: Sequence[Tried],
    bench: Bench,
    count: int,
    budget: float,
    announce: Announce,
    checked: list[Checked],
) -> None:
    """Check finalists on fresh prompts, in their order, until one is within the budget.

    A finalist that is clearly beyond it (for all of the 95 % interval) is given up before it has had all prompts.

    Args:
        finalists: in the order in which they are to be tried.
        bench: with prompts that the search has not seen.
        count: prompts.
        budget: as in :func:`halve`.
        announce: see :data:`Announce`.
        checked: gets those that were checked; only the last one can fit.
    """
    for one in finalists:
        found = Checked(one, Scored([], [], []), fits=False)
        step = announce(f"fresh prompts: {one.name}", math.ceil(count / _BLOCK))
        for begin in range(0, count, _BLOCK):
            part = bench.score(one.sampler, begin, min(begin + _BLOCK, count))
            for mine, new in (
                (found.scored.scores, part.scores),
                (found.scored.reference, part.reference),
                (found.scored.same, part.same),
            ):
                mine += new
            step()
            if found.difference.high < -budget:
                break
        fits = len(found.scored.scores) == count and found.difference.value >= -budget
        one.fate = Fate.CONFIRMED if fits else Fate.REFUTED
        checked.append(Checked(one, found.scored, fits))
        if fits:
            break


def pareto_front(points: Sequence[tuple[float, tuple[float, ...]]]) -> list[int]:
    """Which points no other one beats: at least as good in both parts and better in one.

    Args:
        points: (speed, closeness) of each; more is better in both.
    """

    def beats(a: tuple[float, tuple[float, ...]], b: tuple[float, tuple[float, ...]]) -> bool:
        return a[0] >= b[0] and a[1] >= b[1] and a != b

    return [i for i, point in enumerate(points) if not any(beats(other, point) for other in points)]


def _score(alive: Sequence[Tried], bench: Bench, begin: int, end: int, announce: Announce, where: str) -> None:
    lossy = [one for one in alive if not is_lossless(one.sampler)]
    if not lossy:
        return
    step = announce(f"{where}: scores on {end} prompts", len(lossy))
    for one in lossy:
        one.add(bench.score(one.sampler, begin, end))
        step()


def _time(alive: Sequence[Tried], bench: Bench, begin: int, end: int, announce: Announce, where: str) -> None:
    if begin == end:
        return
    step = announce(f"{where}: speed on {end} prompts", end - begin)
    samplers = {one.name: one.sampler for one in alive}
    for prompt in range(begin, end):
        clock, timings = bench.time(samplers, prompt, prompt + 1)
        for one in alive:
            one.timings.extend(timings[one.name])
            one.clock.extend(clock)
            if is_lossless(one.sampler):
                one.same += [
                    ours == theirs for ours, theirs in zip(timings[one.name].tokens, clock.tokens, strict=True)
                ]
        step()


def _best(alive: Sequence[Tried], count: int) -> list[Tried]:
    """The best ``count`` by layers, in their old order; the others' fate is noted."""
    rest, best = list(alive), list[Tried]()
    while rest and len(best) < count:
        front = [rest[i] for i in pareto_front([(one.speed, one.closeness()) for one in rest])]
        front.sort(key=lambda one: -one.speed)
        best += front[: count - len(best)]
        rest = [one for one in rest if one not in front]
    for one in alive:
        if one not in best:
            one.fate = Fate.OUTDONE
    return [one for one in alive if one in best]


def _finalists(alive: Sequence[Tried], budget: float, count: int) -> list[Tried]:
    def rank(one: Tried) -> tuple[bool, float, float]:
        fits = one.difference.value >= -budget
        return not fits, 0.0 if fits else -one.difference.value, -one.speed

    ranked = sorted(alive, key=rank)
    chosen = ranked[:count]
    closest = max(ranked, key=Tried.closeness, default=None)
    if len(ranked) > count > 1 and closest is not None and closest not in chosen:
        chosen[-1] = closest
    for one in alive:
        one.fate = Fate.FINALIST if one in chosen else Fate.SLOWER
    return chosen
