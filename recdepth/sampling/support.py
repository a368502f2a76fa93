"""What samplers ask of a model and of a call, and what to say where some of it is missing."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM


def capabilities(config: RecurrentDepthConfig) -> dict[str, bool]:
    """What a model can do: ``injection``, ``decodable_at_depth``, ``kv_sharing_safe``.

    Without injection, a state that has begun never sees that its token has changed. Decodable at depth: states can be
    read out before the last recurrence. KV sharing safe: one key/value slot per position will do.
    """
    return {
        "injection": config.injection != "none",
        "decodable_at_depth": config.decodable_at_depth,
        "kv_sharing_safe": config.kv_sharing_safe,
    }


def unsupported(needs: Mapping[str, str], config: RecurrentDepthConfig, init_scale: float, allowed: bool) -> list[str]:
    """What a sampler needs and a model lacks, with remedies; empty if it suits.

    Args:
        needs: why the sampler needs a capability, and what to do without it, by name of the capability.
        config: the model's.
        init_scale: the sampler's; a model without injection has no noise to scale.
        allowed: whether the user wants it all the same.
    """
    can = capabilities(config)
    problems = [] if allowed else [f"{need} is missing: {why}" for need, why in needs.items() if not can[need]]
    if problems:
        problems[-1] += "; or try it all the same with allow_unsupported=true, though the text may be of no use"
    if not can["injection"] and init_scale not in (0, 1):
        problems.append(f"init_scale={init_scale} has no effect: states begin as embeddings, without noise; leave it")
    return problems


def token_ids(name: str, given: Any) -> list[int]:
    """A prompt, or stop tokens, as a list of Python's integers.

    Raises:
        ValueError: for text, a number alone, or numbers that are no integers.
    """
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ValueError(f"cannot sample: {name}={given!r} must be a list of token ids, made by a tokenizer")
    return [integer(f"{name}: a token id", token) for token in given]


def integer(name: str, given: Any) -> int:
    """A number as Python's integer: NumPy's and PyTorch's are taken.

    Raises:
        ValueError: for what is none.
    """
    try:
        return operator.index(given)
    except TypeError:
        raise ValueError(f"cannot sample: {name} is {given!r} and must be an integer") from None


def check_call(
    model: RecurrentDepthForCausalLM,
    prompts: list[list[int]],
    streams: list[int],
    max_new_tokens: int,
    batch_size: int | None,
    longest_prompt: int | None,
) -> None:
    """Check what a sampler is called with; all that is wrong at once.

    Args:
        model: its context and vocabulary are what must suffice.
        prompts, streams, max_new_tokens, batch_size: the call.
        longest_prompt: what the wavefront can hold, or None if any.

    Raises:
        ValueError: naming each problem and its remedy.
    """
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
        elif longest_prompt is not None and len(prompt) > longest_prompt:
            problems.append(
                f"prompt {i} has {len(prompt)} tokens, more than the wavefront's {longest_prompt}, and prefill_steps=0"
                " opens it over all of them; raise prefill_steps, or max_wavefront where the sampler has it"
            )
    if problems:
        raise ValueError("cannot sample:\n" + "\n".join(f"  - {p}" for p in problems[:10]))
