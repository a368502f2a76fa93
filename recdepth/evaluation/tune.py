"""From a loss that is acceptable to the fastest sampler settings that keep within it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from recdepth.models import RecurrentDepthConfig
from recdepth.sampling import Sampler

from .compare import EQUAL_PROMPTS, Row, verdict
from .intervals import Interval, wilson_interval
from .speed import Timings
from .tune_bench import ModelBench, settings_of
from .tune_halving import Announce, Checked, Fate, Tried, confirm, halve, pareto_front
from .tune_space import PAPER, candidates, is_lossless, paper_default


@dataclass(frozen=True, kw_only=True)
class Search:
    """How settings are searched; see :func:`recdepth.evaluation.tune_halving.halve`.

    Args:
        settings: tried besides the known ones; see :func:`recdepth.evaluation.tune_space.candidates`.
        rungs: prompts that a setting has been scored on after each rung, rising.
        keep: after a rung one setting in so many goes on, at least 2.
        finalists: settings that may come to the final check, and that go on at least.
        timed_prompts: prompts for speed, at batch 1: a quarter of a rung's, at most so many.

    Raises:
        ValueError: for values out of range, all at once.
    """

    settings: int = 32
    rungs: Sequence[int] = (16, 64, 256)
    keep: int = 3
    finalists: int = 3
    timed_prompts: int = 24

    def __post_init__(self) -> None:
        wrong = _too_small(
            ("settings", self.settings, 0),
            ("keep", self.keep, 2),
            ("finalists", self.finalists, 1),
            ("timed_prompts", self.timed_prompts, 1),
        )
        rungs = list(self.rungs)
        if not rungs or rungs[0] < 1 or any(a >= b for a, b in pairwise(rungs)):
            wrong.append(f"rungs={rungs} must be rising numbers of prompts, such as [16,64,256]")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def timed(self) -> list[int]:
        """Prompts that a setting has been timed on after each rung."""
        return [min(max(1, prompts // 4), self.timed_prompts) for prompts in self.rungs]


@dataclass(frozen=True, kw_only=True)
class FinalCheck:
    """How the winner is checked, on prompts that the search has not seen.

    Args:
        accuracy_prompts: in batches; with fewer than 2000 nothing is called equal.
        speed_prompts: at batch 1, in turn with the reference and the paper's default.

    Raises:
        ValueError: for values out of range, all at once.
    """

    accuracy_prompts: int = 2000
    speed_prompts: int = 100

    def __post_init__(self) -> None:
        wrong = _too_small(("accuracy_prompts", self.accuracy_prompts, 1), ("speed_prompts", self.speed_prompts, 1))
        if wrong:
            raise ValueError("; ".join(wrong))


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What ``experiment=tune_sampler`` asks for.

    Args:
        max_loss: points (hundredths) of mean score that may be lost against autoregressive decoding at the same r.
        search, check: how much is measured.
        space: by name of the sampler its :data:`recdepth.evaluation.tune_space.Space`.
        compile: time the winner in compiled graphs, against compiled others, and write it so.
        name: of the file with the winner.
        overwrite: an older file of that name may be replaced.
        resume: folder of a tuning that was interrupted; what it measured is taken over.

    Raises:
        ValueError: for values out of range, all at once.
    """

    max_loss: float = 0.5
    search: Search = field(default_factory=Search)
    check: FinalCheck = field(default_factory=FinalCheck)
    space: Mapping[str, Any] = field(default_factory=dict)
    compile: bool = False
    name: str = "tuned"
    overwrite: bool = False
    resume: str | None = None

    def __post_init__(self) -> None:
        wrong = []
        if not 0 <= self.max_loss < 100:
            wrong.append(f"max_loss={self.max_loss} must be at least 0 and below 100 points")
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            wrong.append(f"name={self.name} must be a file's name of letters, digits, '_', '-' and '.'")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def budget(self) -> float:
        """The largest loss of mean score."""
        return self.max_loss / 100


class Tuner:
    """A search and its check; what is known can be asked for at any time, also after an interruption.

    Args:
        tuning: what is wanted.
        sampler: the kind of sampler, and the settings that the space leaves alone.
        search: measures on the prompts of the search.
        fresh: measures on other ones.
        seed: of the settings that are drawn.
        config: of the model; settings that it lacks something for are left out.
    """

    def __init__(
        self,
        tuning: Tuning,
        sampler: Sampler,
        search: ModelBench,
        fresh: ModelBench,
        seed: int,
        config: RecurrentDepthConfig | None = None,
    ):
        self.tuning, self.search, self.fresh = tuning, search, fresh
        known, new = candidates(sampler, tuning.space[sampler.name], tuning.search.settings, seed)
        self.tried = [Tried(name, one, known=True) for name, one in known.items()]
        self.tried += [Tried(f"s{number:02d}", one) for number, one in enumerate(new, start=1)]
        if config is not None:
            self.tried = [one for one in self.tried if not one.sampler.unsupported(config)]
        self.paper = paper_default(sampler)
        self.finalists: list[Tried] = []
        self.checked: list[Checked] = []
        self.final: dict[str, Timings] = {}

    def run(self, announce: Announce) -> None:
        """Search, check the finalists on fresh prompts, time the winner. Afterwards :attr:`winner` is known."""
        plan, check = self.tuning.search, self.tuning.check
        self.finalists = halve(
            self.tried,
            self.search,
            rungs=plan.rungs,
            timed=plan.timed,
            budget=self.tuning.budget,
            keep=plan.keep,
            finalists=plan.finalists,
            announce=announce,
        )
        for one in self.finalists:
            one.sampler = replace(one.sampler, compile=self.tuning.compile)
        confirm(self.finalists, self.fresh, check.accuracy_prompts, self.tuning.budget, announce, self.checked)
        if self.winner is not None:
            self._time_winner(self.winner, announce)

    @property
    def reference(self) -> str:
        """The name of autoregressive decoding."""
        return f"ar-{self.paper.num_steps}"

    @property
    def winner(self) -> Checked | None:
        """The finalist that was confirmed, if one was."""
        return next((one for one in self.checked if one.fits), None)

    def _time_winner(self, winner: Checked, announce: Announce) -> None:
        count = self.tuning.check.speed_prompts
        step = announce(f"final speed: {self.reference}, {PAPER}, {winner.tried.name}", count)
        turn = {PAPER: replace(self.paper, compile=self.tuning.compile), winner.tried.name: winner.tried.sampler}
        final = {name: Timings() for name in (self.reference, *turn)}
        for prompt in range(count):
            clock, timings = self.fresh.time(turn, prompt, prompt + 1)
            for name, more in {**timings, self.reference: clock}.items():
                final[name].extend(more)
            step()
        self.final = final

    # ------------------------------------------------------------------------------------------------ what is known

    def facts(self) -> Row:
        """Everything as plain values: ``budget``, ``tried``, ``checked``, and with a winner ``winner`` and ``final``.

        Differences are of mean scores, in [-1, 1]; all intervals are 95 %.
        """
        measured = [one for one in self.tried if one.timings.seconds]
        front = pareto_front([(one.speed, one.closeness()) for one in measured])
        names = {measured[i].name for i in front}
        winner = self.winner
        return {
            "budget": self.tuning.budget,
            "reference": self.reference,
            "paper": PAPER,
            "compile": self.tuning.compile,
            "rungs": list(self.tuning.search.rungs),
            "tried": [_tried_row(one) | {"front": one.name in names} for one in measured],
            "finalists": [one.name for one in self.finalists],
            "checked": [_checked_row(one) for one in self.checked],
            "winner": winner.tried.name if winner else None,
            "final": self._final_rows(winner) if winner and self.final else [],
        }

    def _final_rows(self, winner: Checked) -> list[Row]:
        return [
            {
                "sampler": name,
                "speed_n": len(timings.seconds),
                **_spread("tokens_per_second", Interval(*(timings.quartiles()[i] for i in (1, 0, 2)))),
                **_spread("speedup", timings.speedup_over(self.final[self.reference])),
                **_spread("speedup_paper", timings.speedup_over(self.final[PAPER])),
                "core_passes_per_token": timings.stats.core_passes / timings.stats.new_tokens,
                "token_passes_per_token": timings.stats.token_passes / timings.stats.new_tokens,
                "same_texts": sum(
                    a == b for a, b in zip(timings.tokens, self.final[self.reference].tokens, strict=True)
                ),
            }
            for name, timings in self.final.items()
        ]


def _tried_row(one: Tried) -> Row:
    stats = one.timings.stats
    return {
        "name": one.name,
        "settings": settings_of(one.sampler),
        "rung": one.rung,
        "fate": one.fate.value,
        "beyond": one.fate in (Fate.BEYOND, Fate.REFUTED),
        "known": one.known,
        "lossless": is_lossless(one.sampler),
        "n": len(one.scores),
        **_spread("difference", one.difference),
        "same": one.closeness()[1],
        "speed_n": len(one.timings.seconds),
        **_spread("speedup", one.timings.speedup_over(one.clock)),
        "core_passes_per_token": stats.core_passes / stats.new_tokens,
        "token_passes_per_token": stats.token_passes / stats.new_tokens,
    }


def _checked_row(one: Checked) -> Row:
    scored = one.scored
    n = len(scored.scores)
    return {
        "name": one.tried.name,
        "settings": settings_of(one.tried.sampler),
        "fits": one.fits,
        "n": n,
        **_spread("accuracy", wilson_interval(sum(scored.scores), n)),
        **_spread("reference_accuracy", wilson_interval(sum(scored.reference), n)),
        **_spread("difference", one.difference),
        "verdict": verdict(one.difference, n),
        "enough_for_equal": n >= EQUAL_PROMPTS,
        "same_texts": sum(scored.same),
        "lossless": is_lossless(one.tried.sampler),
    }


def _spread(name: str, interval: Interval) -> dict[str, Any]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _too_small(*values: tuple[str, int, int]) -> list[str]:
    return [f"{name}={value} must be at least {least}" for name, value, least in values if value < least]
