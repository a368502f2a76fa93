"""What a tracer sees of each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class TraceStep:
    """One step of the wavefront over all rows; lanes a row does not use have position -1.

    Attributes:
        step: counted from 0.
        seconds: since decoding began, without what tracers took so far.
        core_passes: sequential core passes so far.
        positions: where the lanes are.
        tokens: their input tokens during the step.
        proposals: the token each lane proposed for the next position; -1 where it was not read out.
        depth: recurrences since the lane's input last changed, after the step (before flips reset it).
        age: recurrences since the lane was opened.
        residual: the exit criterion's score; nan where there is none.
        flipped: the lane's own input token changed at the end of this step.
        committed: the lane became final at the end of this step.
    """

    step: int
    seconds: float
    core_passes: int
    positions: Int[np.ndarray, "batch lanes"]
    tokens: Int[np.ndarray, "batch lanes"]
    proposals: Int[np.ndarray, "batch lanes"]
    depth: Int[np.ndarray, "batch lanes"]
    age: Int[np.ndarray, "batch lanes"]
    residual: Float[np.ndarray, "batch lanes"]
    flipped: Bool[np.ndarray, "batch lanes"]
    committed: Bool[np.ndarray, "batch lanes"]


class Tracer(Protocol):
    """Anything that wants to see the steps. The time that it takes counts neither in them nor in the statistics."""

    def start(self, prompts: list[list[int]]) -> None:
        """Called once per batch, before the first step."""
        ...

    def record(self, step: TraceStep) -> None:
        """Called after every step."""
        ...


@dataclass(frozen=True)
class Tracers:
    """Several tracers as one."""

    members: Sequence[Tracer]

    def start(self, prompts: list[list[int]]) -> None:
        for member in self.members:
            member.start(prompts)

    def record(self, step: TraceStep) -> None:
        for member in self.members:
            member.record(step)


@dataclass
class Trace:
    """A tracer that keeps everything, for one batch of prompts."""

    steps: list[TraceStep] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)

    @property
    def prompt_lengths(self) -> list[int]:
        return [len(p) for p in self.prompts]

    def start(self, prompts: list[list[int]]) -> None:
        if self.prompts:
            raise ValueError("a Trace holds one batch; pass a new one per call, or a larger batch_size")
        self.prompts = [list(p) for p in prompts]

    def record(self, step: TraceStep) -> None:
        self.steps.append(step)

    def steps_of(self, row: int) -> list[TraceStep]:
        """The steps in which the row had lanes."""
        return [s for s in self.steps if row < len(s.positions) and (s.positions[row] >= 0).any()]
