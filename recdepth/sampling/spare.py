"""The cache of a model's last call, kept for its next one: on a CPU, new memory takes as long as some tokens do."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from recdepth.models import KVCache, KVPolicy, RecurrentDepthForCausalLM

#: Larger caches are not kept: memory is for others, too.
KEPT_UP_TO = 1 << 28

_spare: WeakKeyDictionary[RecurrentDepthForCausalLM, KVCache] = WeakKeyDictionary()


def take_cache(
    model: RecurrentDepthForCausalLM, batch: int, capacity: int, kv: KVPolicy, num_steps: int, unmasked: bool
) -> KVCache:
    """A cache for a call, the kept one if it is such a one; arguments as in :class:`KVCache`.

    Args:
        unmasked: nothing reads what the call has not written. Otherwise that is zero, since a mask lets through what
            is not a number.
    """
    cache = _spare.pop(model, None)  # nobody else takes it meanwhile
    if cache is None or not cache.is_for(batch, capacity, kv, num_steps, model.dtype, model.device):
        return model.new_cache(batch, capacity, kv, num_steps)
    if not unmasked:
        cache.clear()
    return cache


def keep_cache(model: RecurrentDepthForCausalLM, cache: KVCache) -> None:
    """Keep it for the model's next call, as long as there is the model; not on a GPU, whose memory comes at once."""
    if cache.keys.device.type == "cpu" and cache.nbytes <= KEPT_UP_TO:
        _spare[model] = cache


def forget_caches() -> None:
    """Let go of all that are kept."""
    _spare.clear()
