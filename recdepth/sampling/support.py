"""What samplers ask of a model beyond its seams, and what to say of a model that lacks some of it."""

from __future__ import annotations

from collections.abc import Mapping

from recdepth.models import RecurrentDepthConfig


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
