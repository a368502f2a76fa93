"""The choices that tell samplers apart, each a small piece: settings, noise schedules, what happens on a flip."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from recdepth.models import KVPolicy

from .exits import Exit

OnFlip = Literal["keep", "renoise", "reset"]
Schedule = Literal["inverse", "linear", "constant"]

Ages = Int[np.ndarray, "batch lanes"]
Weights = Float[np.ndarray, "batch lanes"]

#: Noise added to a state before a step, β_a, over its age a in recurrences: (β, a, r) -> β_a.
NOISE_SCHEDULES: dict[str, Callable[[float, Ages, int], Weights]] = {
    "inverse": lambda beta, age, r: beta / (1.0 + age),
    "linear": lambda beta, age, r: beta * np.maximum(0.0, 1.0 - age / r),
    "constant": lambda beta, age, r: np.full(age.shape, beta),
}


@functools.cache
def _growing_depths(num_steps: int, first: int, growth: float) -> tuple[int, ...]:
    """Depths from the first one on, each larger than the last by a factor or by one, and r."""
    depths, depth = [], first
    while depth < num_steps:
        depths.append(depth)
        depth = max(depth + 1, math.ceil(depth * growth))
    return *depths, num_steps


@dataclass(frozen=True)
class Policy:
    """Everything the engine asks of a sampler. Depths and steps are recurrences, widths are lanes.

    Args:
        num_steps: r, recurrences after which a lane is done in any case.
        inner_steps: r', recurrences between two read-outs.
        kv: ``shared`` (the newest recurrence overwrites) or ``per_depth`` (one slot per recurrence, as in training).
        exit: criterion by which a lane may be done before r; None commits by depth alone.
        on_flip: what happens to the states from a changed draft on: ``keep`` them, ``renoise`` them by the fraction
            ``renoise`` (otherwise unused), or ``reset`` them to noise.
        renoise: see ``on_flip``.
        momentum: η, weight of the previous embedding.
        noise, noise_schedule: β and how it falls with a lane's age (see ``NOISE_SCHEDULES``); 0 adds none.
        headway: lanes opened per step.
        max_wavefront: most lanes at once.
        draft_depth: recurrences after which a lane is read out for the first time; the next lane opens then.
        readout_growth: a lane is read out again when its depth has grown by this factor (1: after every step), and at
            r in any case. Lanes that have an exit criterion are read out after every step.
        confirm_flips: a draft changes only when two read-outs in a row propose the same other token, or the one at r.
        prefill_steps: recurrences of the parallel pass over the prompt; None takes r, 0 opens the wavefront over the
            whole prompt instead.
        settle: of rounds: a lane rests once a recurrence moves its state by at most so many units of rounding, and all
            before it have settled too; 0 for never.
        init_scale: factor on the initial states' σ; 0 for zero states.
        compile: run compiled graphs of static shapes; lanes are padded to their widths.

    Raises:
        ValueError: naming every impossible setting at once.
    """

    num_steps: int
    inner_steps: int
    kv: KVPolicy = "shared"
    exit: Exit | None = None
    on_flip: OnFlip = "keep"
    renoise: float = 0.5
    momentum: float = 0.0
    noise: float = 0.0
    noise_schedule: Schedule = "inverse"
    headway: int = 1
    max_wavefront: int = 1
    draft_depth: int = 1
    readout_growth: float = 1.0
    confirm_flips: bool = False
    prefill_steps: int | None = None
    settle: float = 0.0
    init_scale: float = 1.0
    compile: bool = False

    def __post_init__(self) -> None:
        rules = {
            "num_steps": (self.num_steps >= 1, "at least 1"),
            "inner_steps": (self.inner_steps >= 1, "at least 1"),
            "kv": (self.kv in ("shared", "per_depth"), "'shared' or 'per_depth'"),
            "on_flip": (self.on_flip in ("keep", "renoise", "reset"), "'keep', 'renoise' or 'reset'"),
            "renoise": (0 <= self.renoise <= 1, "between 0 and 1"),
            "momentum": (0 <= self.momentum < 1, "at least 0 and below 1"),
            "noise": (0 <= self.noise <= 1, "between 0 and 1"),
            "noise_schedule": (self.noise_schedule in NOISE_SCHEDULES, f"one of {sorted(NOISE_SCHEDULES)}"),
            "headway": (self.headway >= 1, "at least 1"),
            "max_wavefront": (self.max_wavefront >= 1, "at least 1"),
            "draft_depth": (1 <= self.draft_depth <= self.num_steps, f"between 1 and num_steps={self.num_steps}"),
            "readout_growth": (1 <= self.readout_growth < math.inf, "at least 1 (1: after every step), and finite"),
            "settle": (0 <= self.settle < math.inf, "at least 0 (0: lanes never rest), and finite"),
            "init_scale": (0 <= self.init_scale < math.inf, "at least 0, and finite"),
        }
        problems = [f"{k}={getattr(self, k)!r} must be {rule}" for k, (ok, rule) in rules.items() if not ok]
        if self.inner_steps > self.num_steps:
            problems.append(f"inner_steps={self.inner_steps} exceeds num_steps={self.num_steps}; lower it")
        if self.prefill_steps is not None and not 0 <= self.prefill_steps <= self.num_steps:
            problems.append(f"prefill_steps={self.prefill_steps} must lie between 0 and num_steps={self.num_steps}")
        if self.exit is not None and not self.exit.threshold >= 0:
            problems.append(f"exit_threshold={self.exit.threshold} must be at least 0")
        if problems:
            raise ValueError("impossible sampler settings:\n" + "\n".join(f"  - {p}" for p in problems))

    @property
    def prefill(self) -> int:
        """Recurrences of the prefill; 0 for none."""
        return self.num_steps if self.prefill_steps is None else self.prefill_steps

    def due(self, before: Ages, after: Ages) -> Bool[np.ndarray, "batch lanes"]:
        """Whether a lane that went from one depth to another is to be read out."""
        return self._readouts_by[after] > self._readouts_by[before]

    @cached_property
    def always_due(self) -> bool:
        """Whether every step ends with a read-out of all lanes."""
        at_once = self.max_wavefront == 1 and self.inner_steps == self.num_steps
        return at_once or len(self.readout_depths) == self.num_steps

    @property
    def readout_depths(self) -> tuple[int, ...]:
        """Depths at which a lane is read out that gets one recurrence at a time."""
        if self.exit is not None:
            return _growing_depths(self.num_steps, 1, 1.0)
        first = self.draft_depth if self.max_wavefront > 1 else self.num_steps  # a lone lane has nothing to draft
        return _growing_depths(self.num_steps, first, self.readout_growth)

    @cached_property
    def _readouts_by(self) -> Int[np.ndarray, " depth"]:
        """How many read-outs a lane has had by each depth, 0 to r."""
        return np.isin(np.arange(self.num_steps + 1), self.readout_depths).cumsum()

    def noise_weights(self, age: Ages) -> Weights:
        """β_a for each lane."""
        return NOISE_SCHEDULES[self.noise_schedule](self.noise, age, self.num_steps)
