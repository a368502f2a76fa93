"""The samplers, as named settings of the one engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from recdepth.models import KVPolicy, RecurrentDepthForCausalLM

from .exits import LatentDiff
from .policies import OnFlip, Policy, Schedule
from .result import SampleResult, SampleStats
from .speculative import Speculation
from .tokens import TokenChooser
from .trace import Tracer
from .wavefront import Wavefront


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler: settings that are checked when it is made, and a call that every sampler shares."""

    name: ClassVar[str]

    num_steps: int = 32
    init_scale: float = 1.0
    prefill_steps: int | None = None

    def __post_init__(self) -> None:
        self.policy()  # checks the settings

    @abstractmethod
    def policy(self) -> Policy:
        """The engine's settings."""

    def __call__(
        self,
        model: RecurrentDepthForCausalLM,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_tokens: Sequence[int] = (),
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        batch_size: int | None = None,
        rows: Sequence[int] | None = None,
        trace: Tracer | None = None,
    ) -> SampleResult:
        """Continue prompts.

        Args:
            model: the model; put into eval mode by the caller.
            prompts: token ids; every prompt has at least one.
            max_new_tokens: at most so many tokens per prompt; 0 returns empty continuations.
            stop_tokens: ids that end a continuation (returned, last).
            temperature, top_k, top_p, min_p: see :class:`TokenChooser`.
            seed: of the states' noise and the token draws.
            batch_size: rows decoded together; None for up to 64.
            rows: random-stream id of each prompt; None for 0 … n-1.
            trace: sees every step.

        Raises:
            ValueError: naming the prompt or setting that is wrong.
        """
        choose = TokenChooser(temperature, top_k, top_p, min_p, seed)
        texts = [list(map(int, p)) for p in prompts]
        streams = list(range(len(texts))) if rows is None else list(rows)
        policy = self.policy()
        _check_call(model, policy, texts, streams, max_new_tokens, batch_size)
        result = SampleResult([[] for _ in texts], SampleStats())
        if max_new_tokens == 0 or not texts:
            return result
        size = batch_size or 64
        # a row that has finished serves the next prompt; a tracer sees batches that stay together
        chunk = size if trace is not None else len(texts)
        for begin in range(0, len(texts), chunk):
            part = slice(begin, begin + chunk)
            wavefront = self._engine(
                model, policy, choose, texts[part], streams[part], max_new_tokens, set(stop_tokens), size, trace
            )
            result.tokens[part] = wavefront.run()
            result.stats = result.stats.add(wavefront.stats)
        return result

    def _engine(self, *call: Any) -> Wavefront:
        return Wavefront(*call)


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Sampler):
    """One token after the other, each with all ``num_steps`` recurrences: the baseline.

    Args:
        num_steps: r, recurrences per token.
        kv: ``per_depth`` (what training computes) or ``shared``.
        prefill_steps: recurrences over the prompt; None takes r, 0 feeds the prompt through the wavefront.
        init_scale: factor on the initial states' σ.
    """

    name: ClassVar[str] = "autoregressive"
    kv: KVPolicy = "per_depth"

    def policy(self) -> Policy:
        return Policy(
            num_steps=self.num_steps,
            inner_steps=self.num_steps,
            kv=self.kv,
            prefill_steps=self.prefill_steps,
            init_scale=self.init_scale,
        )


@dataclass(frozen=True, kw_only=True)
class Adaptive(Sampler):
    """One token after the other, each until its state stops moving (``latent_diff``) or has had ``num_steps``.

    Args:
        num_steps: r, most recurrences per token.
        inner_steps: recurrences between two looks at the state.
        exit_threshold: ε of ``‖s − s_prev‖/‖s‖`` over one look.
        kv: ``shared`` or ``per_depth`` (slots that were never written read as the deepest one).
        prefill_steps, init_scale: as in :class:`Autoregressive`.
    """

    name: ClassVar[str] = "adaptive"
    inner_steps: int = 1
    exit_threshold: float = 0.03
    kv: KVPolicy = "shared"

    def policy(self) -> Policy:
        return Policy(
            num_steps=self.num_steps,
            inner_steps=self.inner_steps,
            kv=self.kv,
            exit=LatentDiff(self.exit_threshold),
            prefill_steps=self.prefill_steps,
            init_scale=self.init_scale,
        )


@dataclass(frozen=True, kw_only=True)
class DiffusionForcing(Sampler):
    """Draft a token at every step while earlier states are still being refined (2510.14961).

    The defaults are the paper's.

    Args:
        num_steps: r, recurrences after which a lane is committed in any case.
        inner_steps: r', recurrences between two read-outs.
        exit_threshold: ε of ``‖s − s_prev‖/‖s‖`` over one step; unused with ``commit=depth``.
        momentum: η, weight of the previous embedding.
        noise: β, noise mixed into the states before each step.
        noise_schedule: how β falls with a lane's age: ``inverse``, ``linear`` or ``constant``.
        headway: lanes opened per step.
        max_wavefront: most lanes at once.
        kv: ``shared``, or ``per_depth`` (slower: every lane has keys of its own).
        on_flip: states behind a changed draft: ``keep``, ``renoise`` (half), ``reset``.
        commit: ``latent_diff`` or ``depth``.
        prefill_steps: recurrences over the prompt; None takes r, 0 opens the wavefront over the whole prompt.
        init_scale: factor on the initial states' σ.
    """

    name: ClassVar[str] = "diffusion_forcing"
    inner_steps: int = 4
    exit_threshold: float = 0.03
    momentum: float = 0.1
    noise: float = 0.0
    noise_schedule: Schedule = "inverse"
    headway: int = 1
    max_wavefront: int = 128
    kv: KVPolicy = "shared"
    on_flip: OnFlip = "keep"
    commit: Literal["latent_diff", "depth"] = "latent_diff"

    def policy(self) -> Policy:
        if self.commit not in ("latent_diff", "depth"):
            raise ValueError(f"commit={self.commit!r} is unknown; take 'latent_diff' or 'depth'")
        return Policy(
            num_steps=self.num_steps,
            inner_steps=self.inner_steps,
            kv=self.kv,
            exit=LatentDiff(self.exit_threshold) if self.commit == "latent_diff" else None,
            on_flip=self.on_flip,
            momentum=self.momentum,
            noise=self.noise,
            noise_schedule=self.noise_schedule,
            headway=self.headway,
            max_wavefront=self.max_wavefront,
            prefill_steps=self.prefill_steps,
            init_scale=self.init_scale,
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
        max_wavefront: most lanes at once.
        draft_depth: recurrences after which a lane is read out for the first time, and the next lane opens.
        readout_growth: a lane is read out again when its depth has grown by this factor; 1 re-drafts at every step.
        confirm_flips: a draft changes (and the lanes behind it start anew) only when two read-outs in a row propose the
            same other token, or the final one does.
        prefill_steps, init_scale: as in :class:`Autoregressive`.
    """

    name: ClassVar[str] = "exact"
    inner_steps: int = 1
    headway: int = 1
    max_wavefront: int = 32
    draft_depth: int = 1
    readout_growth: float = 1.0
    confirm_flips: bool = False

    def policy(self) -> Policy:
        return Policy(
            num_steps=self.num_steps,
            inner_steps=self.inner_steps,
            kv="per_depth",
            on_flip="reset",
            headway=self.headway,
            max_wavefront=self.max_wavefront,
            draft_depth=self.draft_depth,
            readout_growth=self.readout_growth,
            confirm_flips=self.confirm_flips,
            prefill_steps=self.prefill_steps,
            init_scale=self.init_scale,
        )


@dataclass(frozen=True, kw_only=True)
class Speculative(Sampler):
    """Draft tokens with few recurrences each, then verify them in parallel at full depth; lossless like ``Exact``.

    A round takes ``draft_tokens · draft_depth + num_steps − draft_depth`` sequential core passes and commits at least
    one token.

    Args:
        num_steps: r, recurrences of every committed token.
        draft_depth: recurrences of a drafted token, at most ``num_steps``.
        draft_tokens: tokens drafted per round.
        prefill_steps, init_scale: as in :class:`Autoregressive`; the prefill cannot be off.
    """

    name: ClassVar[str] = "speculative"
    draft_depth: int = 1
    draft_tokens: int = 16

    def policy(self) -> Policy:
        problems = []
        if not 1 <= self.draft_depth <= self.num_steps:
            problems.append(f"draft_depth={self.draft_depth} must lie between 1 and num_steps={self.num_steps}")
        if self.draft_tokens < 1:
            problems.append(f"draft_tokens={self.draft_tokens} must be at least 1")
        if self.prefill_steps == 0:
            problems.append("prefill_steps=0 is for wavefronts; raise it or leave it at null")
        if problems:
            raise ValueError("impossible sampler settings:\n" + "\n".join(f"  - {p}" for p in problems))
        return Policy(
            num_steps=self.num_steps,
            inner_steps=self.num_steps,
            kv="per_depth",
            on_flip="reset",
            max_wavefront=self.draft_tokens,
            prefill_steps=self.prefill_steps,
            init_scale=self.init_scale,
        )

    def _engine(self, *call: Any) -> Wavefront:
        return Speculation(*call, draft_depth=self.draft_depth)


def _check_call(
    model: RecurrentDepthForCausalLM,
    policy: Policy,
    prompts: list[list[int]],
    streams: list[int],
    max_new_tokens: int,
    batch_size: int | None,
) -> None:
    context, vocab = model.config.max_position_embeddings, model.config.vocab_size
    problems = []
    if max_new_tokens < 0:
        problems.append(f"max_new_tokens={max_new_tokens} must be at least 0")
    if batch_size is not None and batch_size < 1:
        problems.append(f"batch_size={batch_size} must be at least 1")
    if len(streams) != len(prompts):
        problems.append(f"rows has {len(streams)} ids for {len(prompts)} prompts")
    for i, prompt in enumerate(prompts):
        if not prompt:
            problems.append(f"prompt {i} is empty; give it at least one token (a start token, for instance)")
        elif min(prompt) < 0 or max(prompt) >= vocab:
            problems.append(f"prompt {i} has token ids outside 0 … {vocab - 1}")
        elif len(prompt) + max_new_tokens > context:
            problems.append(
                f"prompt {i} has {len(prompt)} tokens; with max_new_tokens={max_new_tokens} that exceeds the context"
                f" of {context}; shorten it or lower max_new_tokens"
            )
        elif not policy.prefill and len(prompt) > policy.max_wavefront:
            problems.append(
                f"prompt {i} has {len(prompt)} tokens, more than max_wavefront={policy.max_wavefront}, and"
                " prefill_steps=0 opens the wavefront over all of them; raise max_wavefront or prefill_steps"
            )
    if problems:
        raise ValueError("cannot sample:\n" + "\n".join(f"  - {p}" for p in problems[:10]))
