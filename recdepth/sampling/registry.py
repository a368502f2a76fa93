"""Samplers by name, as in ``conf/sampler``."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from .base import Sampler
from .presets import Adaptive, Autoregressive, DiffusionForcing, Exact, Speculative

_FAST: dict[str, Any] = {"inner_steps": 1, "exit_threshold": 0.2, "prefill_steps": 8}

#: What a name stands for: a sampler, and the settings in which it differs from its defaults.
SAMPLERS: dict[str, tuple[type[Sampler], dict[str, Any]]] = {
    **{kind.name: (kind, {}) for kind in (Autoregressive, Adaptive, DiffusionForcing, Exact, Speculative)},
    "diffusion_forcing_fast": (DiffusionForcing, _FAST),
    "diffusion_forcing_headway": (DiffusionForcing, {**_FAST, "headway": 2, "max_wavefront": 8, "prefill_steps": 4}),
}

#: Every setting that some sampler has.
SETTINGS = frozenset(field.name for kind, _ in SAMPLERS.values() for field in fields(kind))


def make_sampler(sampler: str | Sampler, num_steps: int | None = None, **settings: Any) -> Sampler:
    """A sampler by its name, or one with other settings.

    Args:
        sampler: a name of :data:`SAMPLERS`, or a sampler to start from.
        num_steps: recurrences per token; None keeps those of the sampler. Where a name's own ``inner_steps`` or
            ``prefill_steps`` are more, they are cut to it.
        **settings: of the sampler.

    Raises:
        ValueError: for an unknown name, a setting that the sampler lacks, or one that is out of range.
    """
    if not isinstance(sampler, (str, Sampler)):
        raise ValueError(f"sampler={sampler!r} must be a name or a Sampler; the names are {', '.join(SAMPLERS)}")
    if isinstance(sampler, str) and sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r} is unknown; take one of {', '.join(SAMPLERS)}")
    kind, preset = SAMPLERS[sampler] if isinstance(sampler, str) else (type(sampler), {})
    known = settings_of(kind)
    if unknown := sorted(settings.keys() - known):
        others = ", ".join(sorted(known))
        raise ValueError(f"{unknown[0]}={settings[unknown[0]]!r} is not a setting of {kind.name}; there are {others}")
    if num_steps is not None:
        settings["num_steps"] = num_steps
    if isinstance(sampler, Sampler):
        return replace(sampler, **settings)
    chosen: dict[str, Any] = {field.name: field.default for field in fields(kind)} | preset
    steps = settings.get("num_steps", chosen["num_steps"])
    for name in ("inner_steps", "prefill_steps"):
        if chosen.get(name) is not None and isinstance(steps, int):
            chosen[name] = min(chosen[name], max(steps, 1))
    return kind(**{**chosen, **settings})


def settings_of(sampler: str | type[Sampler]) -> set[str]:
    """The names of a sampler's settings; none for a name that is unknown."""
    kind = SAMPLERS[sampler][0] if isinstance(sampler, str) and sampler in SAMPLERS else sampler
    return set() if isinstance(kind, str) else {field.name for field in fields(kind)}
