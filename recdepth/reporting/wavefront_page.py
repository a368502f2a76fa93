"""The wavefront of one or more samples as one self-contained HTML page: to step and play through, against AR."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from recdepth.evaluation import Traced
from recdepth.sampling import LaneView, Replay

from .files import write_whole
from .pieces import Pieces

MOST_ROWS, MOST_BYTES = 8, 4_000_000
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
_DECADES = 12.0  # residuals from 1e-8 to 1e4, in 4095 steps: within 0.4 %


@dataclass(frozen=True)
class WavefrontBatch:
    """One traced batch for the page.

    Args:
        traced: the sampler's call.
        prompts: their texts.
        baseline: the same prompts one token at a time, on the same machine; None where the sampler does just that.
        verdicts: what is said of each answer, "right" for instance; None where there is nothing to say.
    """

    traced: Traced
    prompts: Sequence[str]
    baseline: Traced | None = None
    verdicts: Sequence[str | None] = ()


def write_wavefront_page(
    path: Path | str,
    batches: Sequence[WavefrontBatch],
    decode: Callable[[list[int]], str],
    stop_tokens: Sequence[int] = (),
    facts: Mapping[str, Any] | None = None,
    more: int = 0,
) -> Path:
    """Write the page. It needs no network, and holds up to 8 prompts and about 4 MB; it says what it leaves out.

    Args:
        path: of the HTML file.
        batches: what was sampled, in order.
        decode: from token ids to text.
        stop_tokens: ids that end a continuation.
        facts: shown with the settings: machine, versions, model.
        more: how many further prompts were sampled without a trace.

    Raises:
        ValueError: if no prompt has a step: there were none, or every first token ended its text.
    """
    data = wavefront_data(batches, decode, stop_tokens, facts)
    data["left_out"] += more
    if not data["rows"]:
        raise ValueError("the trace has no steps: it is empty, or the first token ended the text")
    here = files(__package__) / "templates"
    parts = {name: (here / name).read_text(encoding="utf-8") for name in ("wavefront.html", "wavefront.css")}
    script = "\n".join((here / f"wavefront_{name}.js").read_text(encoding="utf-8") for name in ("data", "map", "view"))
    page = parts["wavefront.html"]
    fills = {"style": parts["wavefront.css"], "script": script, "data": _embeddable(data)}
    fills["title"] = escape(f"Wavefront: {data['sampler']['name']}")
    pieces = page.split("%%")  # text, name, text, name, … text: what is filled in is never looked through
    pieces[1::2] = [fills[name] for name in pieces[1::2]]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, "".join(pieces))


def _embeddable(data: Any) -> str:
    """JSON that may stand in a script element, whatever is in its strings."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def wavefront_data(
    batches: Sequence[WavefrontBatch],
    decode: Callable[[list[int]], str],
    stop_tokens: Sequence[int] = (),
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the page is made of, as plain JSON types; ``templates/wavefront_data.js`` reads it.

    ``pieces`` are [text, token id, whether it ends a text]; tokens below are indices into them. Of each row, ``steps``
    holds what changed: seconds and core passes since the prompt was given (t, p), lanes (w), commits (c), recurrences
    (g), the first lane whose depth began anew (r) or all depths (d), lanes whose piece is new, each followed by it (s),
    flipped lanes, with the piece that they had where that has not been on show (f), whether there is a draft behind the
    last lane (x), and residuals (e, two digits of base 64 each, see :func:`_residuals`).
    """
    table = _Table(Pieces(decode), frozenset(stop_tokens))
    rows: list[dict[str, Any]] = []
    size = 0
    shown = [(batch, i) for batch in batches for i in range(len(batch.prompts)) if batch.traced.trace.steps_of(i)]
    for batch, i in shown[:MOST_ROWS]:
        row = _row(batch, i, table)
        size += len(json.dumps(row))
        if rows and size > MOST_BYTES:
            break
        rows.append(row)
    sampler, baseline = batches[0].traced.sampler, batches[0].baseline
    return {
        "sampler": _described(sampler),
        "baseline": None if baseline is None else _described(baseline.sampler),
        "facts": {key: str(value) for key, value in (facts or {}).items()},
        "pieces": table.entries,
        "rows": rows,
        "left_out": len(shown) - len(rows),
        "empty": sum(len(batch.prompts) for batch in batches) - len(shown),
    }


def _described(sampler: Any) -> dict[str, Any]:
    return {"name": sampler.name, "settings": {k: v for k, v in asdict(sampler).items() if v is not None}}


@dataclass
class _Table:
    """The distinct pieces of text, by number."""

    decoder: Pieces
    stop_tokens: frozenset[int]
    entries: list[list[Any]] = field(default_factory=list)
    _numbers: dict[tuple[str, int], int] = field(default_factory=dict)

    def number(self, text: str, token: int) -> int:
        key = text, token
        if key not in self._numbers:
            self._numbers[key] = len(self.entries)
            self.entries.append([text, token, int(token in self.stop_tokens)])
        return self._numbers[key]

    def draft(self, before: int | None, token: int) -> int:
        if token in self.stop_tokens:
            return self.number("", token)
        return self.number(self.decoder.draft(None if before in self.stop_tokens else before, token), token)

    def final(self, tokens: list[int]) -> list[int]:
        pieces = self.decoder.split([t for t in tokens if t not in self.stop_tokens])
        rest = iter(pieces)
        return [self.number("" if t in self.stop_tokens else next(rest), t) for t in tokens]


def _row(batch: WavefrontBatch, row: int, table: _Table) -> dict[str, Any]:
    traced = batch.traced
    prompt, steps = traced.trace.prompts[row], traced.trace.steps_of(row)
    replay = Replay(prompt, row)
    replay.open(steps[0])
    began = traced.trace.steps.index(steps[0])
    assert began == 0, "every row of a traced batch is there from the first step on"
    verdicts = [*batch.verdicts, *[None] * len(batch.prompts)]
    encoder = _Steps(replay, table, traced.stats.prefill_seconds, traced.stats.prefill_passes)
    same = None if batch.baseline is None else _same(traced.tokens[row], batch.baseline.tokens[row])
    return {
        "prompt": batch.prompts[row],
        "prompt_tokens": len(prompt),
        "batch": len(batch.prompts),
        "verdict": verdicts[row],
        "start": encoder.start(),
        "steps": [encoder.encode(step) for step in steps],
        "final": table.final(traced.tokens[row]),
        "baseline": None if batch.baseline is None else _baseline(batch.baseline, row, table),
        "same": same,
    }


def _same(one: list[int], other: list[int]) -> int | None:
    """How many tokens two texts share from the start; None where they are the same."""
    if one == other:
        return None
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _baseline(traced: Traced, row: int, table: _Table) -> dict[str, Any]:
    """When each new token was final: seconds and core passes since the prompt was given."""
    seconds, passes = traced.stats.prefill_seconds, traced.stats.prefill_passes
    replay = Replay(traced.trace.prompts[row], row)
    t, p = [_micro(seconds)], [passes]
    for step in traced.trace.steps_of(row):
        replay.advance(step)
        new = len(replay.committed) - len(t)
        t += [_micro(seconds + step.seconds)] * new
        p += [passes + step.core_passes] * new
    return {"t": t, "p": p, "final": table.final(traced.tokens[row]), "prefill": passes}


class _Steps:
    """Writes steps as what they change; everything is as the trace has it."""

    def __init__(self, replay: Replay, table: _Table, seconds: float, passes: int):
        self.replay, self.table, self.seconds, self.passes = replay, table, seconds, passes
        self._shown: dict[int, int] = {}  # piece by position
        self._depth: dict[int, int] = {}

    def start(self) -> dict[str, Any]:
        """Where the row stands before its first step."""
        replay = self.replay
        return {"t": _micro(self.seconds), "p": self.passes, "front": replay.front, "count": len(replay.committed)}

    def encode(self, step: Any) -> dict[str, Any]:
        """A step's changes; see :func:`wavefront_data` for the names."""
        replay = self.replay
        replay.advance(step)
        lanes = replay.lanes
        assert lanes is not None
        width = len(lanes.tokens)
        found: dict[str, Any] = {"t": _micro(self.seconds + step.seconds), "p": self.passes + step.core_passes}
        found |= {"w": width, "c": int(lanes.committed.sum()), **self._depths(lanes)}
        old = [self._drafted(lanes, i) for i in np.nonzero(lanes.flipped)[0].tolist()]
        behind = replay.token(lanes.first + width)
        texts = [*lanes.tokens.tolist(), *([] if behind is None else [behind])]
        sets = []
        for i, token in enumerate(texts):
            position = lanes.first + i
            number = self.table.draft(replay.token(position - 1), token)
            if self._shown.get(position) != number:
                self._shown[position] = number
                sets += [i, number]
        found |= {"s": sets} if sets else {}
        found |= {"f": old} if old else {}
        found |= {} if behind is None else {"x": 1}
        if np.isfinite(lanes.residual).any():
            found["e"] = _residuals(lanes.residual)
        return found

    def _drafted(self, lanes: LaneView, i: int) -> int | list[int]:
        """A flipped lane, and the piece that it had if that is not the one last shown there."""
        known = self._shown.get(lanes.first + i)
        token = int(lanes.before[i])
        if known is not None and self.table.entries[known][1] == token:
            return i
        return [i, self.table.draft(self.replay.token(lanes.first + i - 1), token)]

    def _depths(self, lanes: LaneView) -> dict[str, Any]:
        depth = lanes.depth.tolist()
        before = [self._depth.get(lanes.first + i, 0) for i in range(len(depth))]
        self._depth |= {lanes.first + i: d for i, d in enumerate(depth)}
        for gain in dict.fromkeys((depth[0] - before[0], depth[-1], depth[0])):
            grown = [b + gain for b in before]
            anew = next((i for i, d in enumerate(depth) if d != grown[i]), len(depth))
            if all(d == gain for d in depth[anew:]):
                return {"g": gain, **({"r": anew} if anew < len(depth) else {})}
        return {"g": depth[0] - before[0], "d": depth}


def _residuals(values: np.ndarray) -> str:
    """Residuals on a logarithmic scale; "00" stands for none."""
    digits = []
    for value in values.tolist():
        level = 0
        if math.isfinite(value):
            level = 1 + round(4094 * (math.log10(max(value, 1e-8)) + 8) / _DECADES)
        level = min(max(level, 0), 4095)
        digits.append(_DIGITS[level // 64] + _DIGITS[level % 64])
    return "".join(digits)


def _micro(seconds: float) -> float:
    return round(seconds, 6)
