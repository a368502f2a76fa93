"""What all samplers share: settings that are checked when one is made, and the call."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM, can_compile

from .decoding import Request
from .policies import Policy
from .result import SampleResult, SampleStats
from .spare import keep_cache
from .support import check_call, integer, token_ids, unsupported
from .tokens import TokenChooser
from .trace import Tracer
from .wavefront import Wavefront

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler: settings that are checked when it is made, and a call that every sampler shares."""

    name: ClassVar[str]

    num_steps: int = 32
    init_scale: float = 1.0
    prefill_steps: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        self.policy()  # checks the settings

    @abstractmethod
    def policy(self, model: RecurrentDepthForCausalLM | None = None) -> Policy:
        """The engine's settings; ``max_wavefront=auto`` is measured on the model (without one it stands for 128)."""

    def needs(self) -> dict[str, str]:
        """Capabilities that a model must have (see :func:`capabilities`), each with the reason and the remedy."""
        if getattr(self, "kv", "per_depth") == "shared":
            return {"kv_sharing_safe": "kv=shared keeps the newest recurrence's keys alone; set kv=per_depth"}
        return {}

    def unsupported(self, config: RecurrentDepthConfig) -> list[str]:
        """What this needs and a model of that configuration lacks, with remedies."""
        return unsupported(self.needs(), config, self.init_scale, getattr(self, "allow_unsupported", False))

    def _shared(self) -> dict[str, Any]:
        """The settings that every sampler hands on."""
        return {name: getattr(self, name) for name in ("num_steps", "init_scale", "prefill_steps", "compile")}

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
        if problems := self.unsupported(model.config):
            raise ValueError(f"{self.name} does not suit this model:\n" + "\n".join(f"  - {p}" for p in problems))
        choose = TokenChooser(temperature, integer("top_k", top_k), top_p, min_p, integer("seed", seed))
        if isinstance(prompts, str):
            raise ValueError("cannot sample: prompts are lists of token ids, made by a tokenizer, not text")
        texts = [token_ids(f"prompt {i}", p) for i, p in enumerate(prompts)]
        stops = frozenset(token_ids("stop_tokens", stop_tokens))
        streams = list(range(len(texts))) if rows is None else list(rows)
        policy = _compilable(self.policy(model), model)
        check_call(model, texts, streams, max_new_tokens, batch_size, self._longest_prompt(policy))
        result = SampleResult([[] for _ in texts], SampleStats())
        if max_new_tokens == 0 or not texts:
            return result
        size = batch_size or 64
        # a row that has finished serves the next prompt; a tracer sees batches that stay together
        chunk = size if trace is not None else len(texts)
        for begin in range(0, len(texts), chunk):
            part = slice(begin, begin + chunk)
            request = Request(texts[part], streams[part], max_new_tokens, stops)
            wavefront = self._engine(model, policy, choose, request, size, trace)
            result.tokens[part] = wavefront.run()
            keep_cache(model, wavefront.cache)
            result.stats = result.stats.add(wavefront.stats)
        return result

    def _longest_prompt(self, policy: Policy) -> int | None:
        """Tokens of a prompt that the wavefront can open over; None for any."""
        return None if policy.prefill or getattr(self, "max_wavefront", None) == "auto" else policy.max_wavefront

    def _engine(self, *call: Any) -> Wavefront:
        return Wavefront(*call)


def _compilable(policy: Policy, model: RecurrentDepthForCausalLM) -> Policy:
    if policy.compile:
        able, reason = can_compile(model.device)
        if not able:
            log.warning(f"compile=true: {reason}")
            return replace(policy, compile=False)
    return policy
