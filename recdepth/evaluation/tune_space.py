"""The settings that tuning may try: lists of values by key, and draws from their combinations."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from recdepth.sampling import Autoregressive, DiffusionForcing, Exact, Sampler, Speculative

from .compare import comparison_samplers

#: Values to try, by name of the sampler's setting.
Space = Mapping[str, Sequence[Any]]

PAPER = "df-paper"  # the paper's default, under the name that comparisons have for it

_FIXED = {
    "num_steps": "it is r, the same for the reference; set sampler.num_steps",
    "init_scale": "it is a property of the model; set sampler.init_scale",
    "allow_unsupported": "it is no setting to search; set sampler.allow_unsupported",
    "compile": "it changes no text; set tune.compile",
}
_ATTEMPTS = 100  # draws per setting that is wanted: some combinations are impossible, some come twice


def space_problems(sampler: Sampler, space: Space) -> list[str]:
    """What is wrong with a space for a sampler; every problem begins with ``key=value``.

    A list is wrong when none of its values is possible; for single values see :func:`impossible_values`.
    """
    known = [field.name for field in fields(sampler) if field.name not in _FIXED]
    problems = []
    for key, values in space.items():
        if key in _FIXED:
            problems.append(f"{key}={_shown(values)} cannot be tuned: {_FIXED[key]}")
        elif key not in known:
            problems.append(f"{key}={_shown(values)}: {sampler.name} has no such setting; it has {', '.join(known)}")
        elif not isinstance(values, Sequence) or isinstance(values, str):
            problems.append(f"{key}={values} must be a list; write [{values}]")
        elif not values:
            problems.append(f"{key}=[] is empty; give at least one value, or leave the key out")
    if problems:
        return problems
    for key, values in space.items():
        why = [_impossible(sampler, space, key, value) for value in values]
        if all(why):
            problems.append(f"{key}={_shown(values)}: {why[0]}")
    if not problems and not draw(sampler, space, 1, 0):
        problems.append("no combination of the values is possible; widen the lists")
    return problems


def impossible_values(sampler: Sampler, space: Space) -> list[str]:
    """Values that no setting can have, such as more recurrences than ``num_steps``, each with the reason."""
    return [
        f"{key}={_shown([value])[1:-1]}: {why}"
        for key, values in space.items()
        for value in values
        if (why := _impossible(sampler, space, key, value))
    ]


def size_of(space: Space) -> int:
    """How many combinations a space has, impossible ones included."""
    return math.prod(len(values) for values in space.values())


def draw(sampler: Sampler, space: Space, count: int, seed: int) -> list[Sampler]:
    """Different samplers of the space: all of them if there are no more than ``count``, else that many at random.

    Args:
        sampler: gives the settings that the space leaves alone.
        space: one without problems, see :func:`space_problems`.
        count: samplers at most; combinations that are impossible are left out.
        seed: of the draws; a larger ``count`` goes on where a smaller one stopped.
    """
    keys = list(space)
    if size_of(space) <= count:
        combinations = itertools.product(*space.values())
    else:
        rng = random.Random(seed)
        combinations = ([rng.choice(space[key]) for key in keys] for _ in range(_ATTEMPTS * count))  # type: ignore[assignment]
    found: dict[Sampler, None] = {}
    for values in combinations:
        if len(found) == count:
            break
        made = _made(sampler, dict(zip(keys, values, strict=True)))
        if isinstance(made, Sampler):
            found[made] = None
    return list(found)


def draw_near(samplers: Sequence[Sampler], space: Space, count: int, seed: int) -> list[Sampler]:
    """Different samplers, none of those given, that differ from one of them in one or two of the space's settings."""
    rng, found = random.Random(seed), dict[Sampler, None]()
    for _ in range(_ATTEMPTS * count):
        if len(found) == count:
            break
        keys = rng.sample(list(space), min(len(space), rng.choice((1, 2))))
        made = _made(rng.choice(samplers), {key: rng.choice(space[key]) for key in keys})
        if isinstance(made, Sampler) and made not in samplers:
            found[made] = None
    return list(found)


def candidates(sampler: Sampler, space: Space, count: int, seed: int) -> tuple[dict[str, Sampler], list[Sampler]]:
    """What to try: the known samplers by name, and ``count`` others.

    Those are all of the space if it has no more, else half of them near a known one and half from anywhere.
    """
    known = known_samplers(sampler)
    near = [] if size_of(space) <= count else draw_near(list(known.values()), space, count // 2, seed)
    drawn = dict.fromkeys([*near, *draw(sampler, space, count, seed)])
    return known, [one for one in drawn if one not in known.values()][:count]


def known_samplers(sampler: Sampler) -> dict[str, Sampler]:
    """The standard comparison's samplers of the same class, and the given one: always worth a try."""
    standard = comparison_samplers(sampler.num_steps)
    same: dict[str, Any] = {"init_scale": sampler.init_scale}
    if hasattr(sampler, "allow_unsupported"):
        same["allow_unsupported"] = sampler.allow_unsupported
    known = {name: replace(s, **same) for name, s in standard.items() if type(s) is type(sampler)}
    given = replace(sampler, compile=False)
    return known if given in known.values() else {**known, "given": given}


def reference_of(sampler: Sampler) -> Autoregressive:
    """Autoregressive decoding at the same r."""
    return Autoregressive(num_steps=sampler.num_steps, init_scale=sampler.init_scale)


def paper_default(sampler: Sampler) -> Sampler:
    """The paper's setting of diffusion forcing at the same r, to be timed on any model."""
    standard = comparison_samplers(sampler.num_steps)[PAPER]
    assert isinstance(standard, DiffusionForcing)
    return replace(standard, init_scale=sampler.init_scale, allow_unsupported=True)


def is_lossless(sampler: Sampler) -> bool:
    """Whether the text is autoregressive decoding's by construction: the prompt gets all r, beforehand or with the
    lanes."""
    return isinstance(sampler, (Exact, Speculative)) and sampler.prefill_steps in (None, 0, sampler.num_steps)


def _made(sampler: Sampler, settings: Mapping[str, Any]) -> Sampler | str:
    """The sampler with these settings, or why there is none."""
    try:
        return replace(sampler, compile=False, **settings)
    except (ValueError, TypeError) as error:
        return " ".join(str(error).split())


def _impossible(sampler: Sampler, space: Space, key: str, value: Any) -> str:
    """Why a value is possible neither with the sampler's other settings nor with any of the space; or ``""``."""
    made = _made(sampler, {key: value})
    return made if isinstance(made, str) and not draw(sampler, {**space, key: [value]}, 1, 0) else ""


def _shown(values: Any) -> str:
    if isinstance(values, Sequence) and not isinstance(values, str):
        return f"[{','.join('null' if value is None else str(value) for value in values)}]"
    return str(values)
