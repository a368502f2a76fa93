"""The samplers, as named settings of the one engine."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import torch

from recdepth.models import KVPolicy, RecurrentDepthForCausalLM, compiled_width

from .base import Sampler
from .exits import EXITS, Criterion, Exit
from .policies import OnFlip, Policy, Schedule
from .speculative import Speculation
from .wavefront import Wavefront
from .width import MEASURED_WIDTHS, auto_width


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Sampler):
    """One token after the other, each with all ``num_steps`` recurrences: the baseline.

    Args:
        num_steps: r, recurrences per token.
        kv: ``per_depth`` (what training computes) or ``shared``.
        prefill_steps: recurrences over the prompt; None takes r, 0 opens the wavefront over the whole prompt, which
            only prompts of one token fit here.
        init_scale: factor on the initial states' σ.
        compile: run compiled graphs (the first calls wait for the compiler); the same tokens but for rounding. Falls
            back to eager, with a warning, where nothing can be compiled.
        allow_unsupported: run on a model that lacks a capability that this needs: see :func:`capabilities`.
    """

    name: ClassVar[str] = "autoregressive"
    kv: KVPolicy = "per_depth"
    allow_unsupported: bool = False

    def policy(self, model: RecurrentDepthForCausalLM | None = None) -> Policy:
        return Policy(inner_steps=self.num_steps, kv=self.kv, **self._shared())


@dataclass(frozen=True, kw_only=True)
class Adaptive(Sampler):
    """One token after the other, each until it has settled by an exit criterion, or has had ``num_steps``.

    Args:
        num_steps: r, most recurrences per token.
        inner_steps: recurrences between two looks.
        commit: the criterion: ``latent_diff``, ``cosine`` (on states), ``entropy_diff``, ``kl`` or
            ``argmax_stability`` (on what is read out, at every look); see :data:`EXITS` for each one's maths.
        exit_threshold: a token is done when the criterion's score falls below; None for the criterion's usual one.
            :func:`recdepth.evaluation.calibrate_exit` finds one for a wanted agreement with full depth.
        kv: ``shared`` or ``per_depth`` (slots that were never written read as the deepest one).
        prefill_steps, init_scale, compile, allow_unsupported: as in :class:`Autoregressive`.
    """

    name: ClassVar[str] = "adaptive"
    inner_steps: int = 1
    commit: Criterion = "latent_diff"
    exit_threshold: float | None = None
    kv: KVPolicy = "shared"
    allow_unsupported: bool = False

    def needs(self) -> dict[str, str]:
        return {**super().needs(), **_EARLY}

    def policy(self, model: RecurrentDepthForCausalLM | None = None) -> Policy:
        return Policy(
            inner_steps=self.inner_steps,
            kv=self.kv,
            exit=_criterion(self.commit, self.exit_threshold),
            **self._shared(),
        )


@dataclass(frozen=True, kw_only=True)
class DiffusionForcing(Sampler):
    """Draft a token at every step while earlier states are still being refined (2510.14961).

    The defaults are the paper's, but for the width.

    Args:
        num_steps: r, recurrences after which a lane is committed in any case.
        inner_steps: r', recurrences between two read-outs.
        exit_threshold: ε: a lane is done when the score of ``commit`` over one step falls below; None for the
            criterion's usual one (0.03 for ``latent_diff``).
        momentum: η, weight of the previous embedding.
        noise: β, noise mixed into the states before each step.
        noise_schedule: how β falls with a lane's age: ``inverse``, ``linear`` or ``constant``.
        headway: lanes opened per step; tokens of further lanes are looked up in the text so far.
        max_wavefront: most lanes at once; ``auto`` is the width from which wider passes hardly do more per second on
            this machine (:func:`auto_width`).
        kv: ``shared``, or ``per_depth`` (slower: every lane has keys of its own).
        on_flip: states behind a changed draft: ``keep``, ``renoise``, ``reset``.
        renoise: share of fresh noise with ``on_flip=renoise``.
        commit: ``latent_diff``, another criterion as in :class:`Adaptive`, or ``depth`` (after r recurrences only).
        prefill_steps: recurrences over the prompt; None takes r, 0 opens the wavefront over the whole prompt.
        init_scale, compile, allow_unsupported: as in :class:`Autoregressive`.
    """

    name: ClassVar[str] = "diffusion_forcing"
    inner_steps: int = 4
    exit_threshold: float | None = None
    momentum: float = 0.1
    noise: float = 0.0
    noise_schedule: Schedule = "inverse"
    headway: int = 1
    max_wavefront: int | Literal["auto"] = "auto"
    kv: KVPolicy = "shared"
    on_flip: OnFlip = "keep"
    renoise: float = 0.5
    commit: Criterion | Literal["depth"] = "latent_diff"
    allow_unsupported: bool = False

    def needs(self) -> dict[str, str]:
        why = "it is how a changed draft reaches states that have begun; take sampler=exact or speculative"
        return {"injection": why, **super().needs(), **(_EARLY if self.commit != "depth" else {})}

    def policy(self, model: RecurrentDepthForCausalLM | None = None) -> Policy:
        if self.commit == "depth" and self.exit_threshold is not None:
            raise ValueError(
                f"exit_threshold={self.exit_threshold} has no effect with commit=depth; leave it at null or choose"
                f" another commit"
            )
        return Policy(
            inner_steps=self.inner_steps,
            kv=self.kv,
            exit=None if self.commit == "depth" else _criterion(self.commit, self.exit_threshold, others=("depth",)),
            on_flip=self.on_flip,
            renoise=self.renoise,
            momentum=self.momentum,
            noise=self.noise,
            noise_schedule=self.noise_schedule,
            headway=self.headway,
            max_wavefront=_wavefront(self.max_wavefront, model, self.kv, self.compile),
            **self._shared(),
        )


@dataclass(frozen=True, kw_only=True)
class Exact(Sampler):
    """Pipelined decoding without loss: the text of ``Autoregressive(kv="per_depth")``, in fewer sequential passes.

    Every lane keeps keys of its own depth, is committed after exactly ``num_steps`` recurrences from its last input,
    and starts anew from noise when a draft before it, or its own, changes (compare LoopSpec, arXiv 2609.17184). "Same
    text" holds token for token up to rounding, which depends on the width of a pass (see docs/sampler.md).

    Args:
        num_steps: r, recurrences of every committed token.
        inner_steps: recurrences between two read-outs.
        headway: lanes opened per step; tokens of further lanes are looked up in the text so far.
        max_wavefront: most lanes at once; ``auto`` as in :class:`DiffusionForcing`.
        draft_depth: recurrences after which a lane is read out for the first time, and the next lane opens.
        readout_growth: a lane is read out again when its depth has grown by this factor; 1 re-drafts at every step. In
            a group, until a read-out leaves all drafts as they are: the next one is the last.
        confirm_flips: a draft changes (and the lanes behind it start anew) only when two read-outs in a row propose the
            same other token, or the final one does.
        group: lanes that climb together. 1: every lane for itself, one depth ahead of the next, which keeps the number
            of sequential passes lowest. More: rounds, in which so many lanes are drafted one by one at ``draft_depth``
            and then take their other recurrences at once, all at one depth, so that a pass reads each key once: the
            faster way where a wider pass takes longer, as on a CPU. A round takes ``group · draft_depth + num_steps``
            sequential passes at most, and those of lanes that start anew on the way.
        settle: with a ``group``: a lane rests once a recurrence moves its state by at most so many units of rounding
            (``‖s−s_prev‖ / ‖s‖ ≤ settle · eps``), and all before it have settled too: what is left would repeat it, but
            for rounding, which alone moves settled states by some units: 16 suits float32, 4 bfloat16. 0: every lane
            takes all its recurrences.
        prefill_steps: as in :class:`Autoregressive`; with a ``group``, None lets the first round of a single row take
            its prompt along.
        init_scale, compile: as in :class:`Autoregressive`.
    """

    name: ClassVar[str] = "exact"
    inner_steps: int = 1
    headway: int = 1
    max_wavefront: int | Literal["auto"] = "auto"
    draft_depth: int = 1
    readout_growth: float = 1.0
    confirm_flips: bool = False
    group: int = 1
    settle: float | Literal["auto"] = 0.0

    def policy(self, model: RecurrentDepthForCausalLM | None = None) -> Policy:
        alone = self.group == 1
        unused = {"inner_steps": 1, "headway": 1, "max_wavefront": "auto"}
        problems = [
            f"{key}={getattr(self, key)!r} has no effect with group={self.group}; leave it at {usual} or take group=1"
            for key, usual in unused.items()
            if not alone and getattr(self, key) != usual
        ]
        if alone and self.settle:
            problems.append(f"settle={self.settle!r} has no effect with group=1; leave it at 0 or take a larger group")
        if self.group < 1:
            problems = [f"group={self.group} must be at least 1"]
        if problems:
            raise ValueError("impossible sampler settings:\n" + "\n".join(f"  - {p}" for p in problems))
        return Policy(
            inner_steps=self.inner_steps if alone else self.num_steps,
            kv="per_depth",
            on_flip="reset",
            headway=self.headway,
            max_wavefront=_wavefront(self.max_wavefront, model, "per_depth", self.compile) if alone else self.group,
            draft_depth=self.draft_depth,
            readout_growth=self.readout_growth,
            confirm_flips=self.confirm_flips,
            settle=_rest(self.settle, model),
            **self._shared(),
        )

    def _engine(self, *call: Any) -> Wavefront:
        return Wavefront(*call) if self.group == 1 else Speculation(*call)


@dataclass(frozen=True, kw_only=True)
class Speculative(Sampler):
    """Draft tokens with few recurrences each, then verify them in parallel at full depth; lossless like ``Exact``.

    A round takes ``draft_tokens · draft_depth + num_steps − draft_depth`` sequential core passes and commits at least
    one token.

    Args:
        num_steps: r, recurrences of every committed token.
        draft_depth: recurrences of a drafted token, at most ``num_steps``.
        draft_tokens: tokens drafted per round.
        prefill_steps: recurrences of a parallel pass over the prompt before the first draft; 0 lets the first
            verification take the prompt along, with the same text: faster for one prompt, slower in batches, whose
            other rows wait for it. None chooses: 0 for a single row, else r.
        settle: as in :class:`Exact`.
        init_scale, compile: as in :class:`Autoregressive`.
    """

    name: ClassVar[str] = "speculative"
    draft_depth: int = 1
    draft_tokens: int = 16
    settle: float | Literal["auto"] = 0.0

    def policy(self, model: RecurrentDepthForCausalLM | None = None) -> Policy:
        problems = []
        if not 1 <= self.draft_depth <= self.num_steps:
            problems.append(f"draft_depth={self.draft_depth} must lie between 1 and num_steps={self.num_steps}")
        if self.draft_tokens < 1:
            problems.append(f"draft_tokens={self.draft_tokens} must be at least 1")
        if problems:
            raise ValueError("impossible sampler settings:\n" + "\n".join(f"  - {p}" for p in problems))
        return Policy(
            inner_steps=self.num_steps,
            kv="per_depth",
            on_flip="reset",
            max_wavefront=self.draft_tokens,
            draft_depth=self.draft_depth,
            readout_growth=float(self.num_steps),  # the next read-out is the last
            settle=_rest(self.settle, model),
            **self._shared(),
        )

    def _longest_prompt(self, policy: Policy) -> int | None:
        return None

    def _engine(self, *call: Any) -> Wavefront:
        return Speculation(*call)


_EARLY = {"decodable_at_depth": "tokens are committed before the last recurrence; take sampler=autoregressive"}

#: Usual thresholds, of looks one to four recurrences apart (see the criteria's own words).
USUAL_THRESHOLDS = {"latent_diff": 0.03, "cosine": 1e-3, "entropy_diff": 1e-3, "kl": 5e-4, "argmax_stability": 0.2}


def _criterion(commit: str, threshold: float | None, others: tuple[str, ...] = ()) -> Exit:
    if commit not in EXITS:
        raise ValueError(f"commit={commit!r} is unknown; take one of {', '.join((*EXITS, *others))}")
    return EXITS[commit](USUAL_THRESHOLDS[commit] if threshold is None else threshold)


def _wavefront(
    width: int | Literal["auto"], model: RecurrentDepthForCausalLM | None, kv: KVPolicy, compile: bool
) -> int:
    if width != "auto":
        if not isinstance(width, Integral) or isinstance(width, bool):
            raise ValueError(f"max_wavefront={width!r} must be a number of lanes, or 'auto'")
        return int(width)
    lanes = MEASURED_WIDTHS[-1] if model is None else auto_width(model, kv)
    return compiled_width(lanes) if compile else lanes


def _rest(settle: float | Literal["auto"], model: RecurrentDepthForCausalLM | None) -> float:
    if settle == "auto":
        return 4.0 if model is not None and torch.finfo(model.dtype).eps > 1e-4 else 16.0
    if not isinstance(settle, Real) or isinstance(settle, bool):
        raise ValueError(f"settle={settle!r} must be a number of units of rounding, or 'auto'")
    return float(settle)
