"""Pictures of a sweep: metric against each swept key, parallel coordinates, and what is best of two metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .style import GREY, INK, PALETTE, figure
from .sweep import Job, Sweep

_KEYS = 12  # more than this many swept keys do not fit on one picture
_NAMED = 12  # jobs of a Pareto front that are written out
_WIDE = 20.0  # positive numbers whose largest is so many times the smallest are drawn on a logarithmic axis


@dataclass(frozen=True)
class _Scale:
    """Where the values of one key or metric lie on an axis: numbers as they are or by logarithm, others in order."""

    ticks: list[tuple[float, str]]
    log: bool
    ordered: bool
    places: list[float]


def plot_metric_by_key(sweep: Sweep) -> Figure | None:
    """The first optimized metric against each swept key, one panel a key; None with nothing to draw.

    Each point is a finished job; bars are medians of the jobs with the same value, joined where the key is a number.
    """
    metric, jobs = sweep.metrics[0] if sweep.metrics else "", _with(sweep.finished, sweep.metrics[:1])
    keys = _varied(sweep.swept, jobs)[:_KEYS]
    if not jobs or not keys:
        return None
    columns = min(3, len(keys))
    rows = math.ceil(len(keys) / columns)
    fig, axes = _panels(rows, columns)
    for ax, key in zip(axes, keys, strict=False):
        with_key = [job for job in jobs if key in job.settings]
        scale = _scale([job.settings[key] for job in with_key])
        values = [job.metrics[metric] for job in with_key]
        ax.plot(scale.places, values, "o", color=PALETTE[0], alpha=0.65, ms=6, mec="white", mew=0.6)
        places = sorted(set(scale.places))
        middle = [float(np.median([v for p, v in zip(scale.places, values, strict=True) if p == at])) for at in places]
        if len(places) < len(values):
            ax.plot(
                places, middle, color=PALETTE[1], lw=1.6 if scale.ordered else 0, marker="_", ms=16, mew=2, zorder=1
            )
        _label_x(ax, scale)
        ax.set_xlabel(key + (" (log)" if scale.log else ""))
        ax.grid(axis="y", color="#eceff1")
    for ax in axes[len(keys) :]:
        ax.set_visible(False)
    for row in range(rows):
        axes[row * columns].set_ylabel(metric)
    note = "points: finished jobs;" + (" " if columns > 1 else "\n") + "bars: medians of those with the same value"
    fig.suptitle(note, x=0.01, ha="left", fontsize=10, color=INK)
    return fig


def plot_parallel(sweep: Sweep) -> Figure | None:
    """Parallel coordinates: a line a finished job through its settings to its metrics, coloured by the first metric.

    None with nothing to draw.
    """
    jobs = _with(sweep.finished, sweep.metrics)
    keys = _varied(sweep.swept, jobs)[:_KEYS]
    if not jobs or not keys or not sweep.metrics:
        return None
    jobs = [job for job in jobs if all(key in job.settings for key in keys)]
    if not jobs:
        return None
    columns = [(key, _scale([job.settings[key] for job in jobs])) for key in keys]
    columns += [(name, _scale([job.metrics[name] for job in jobs])) for name in sweep.metrics]
    values = [job.metrics[sweep.metrics[0]] for job in jobs]
    colours = ScalarMappable(Normalize(min(values), max(values)), "viridis")
    fig, (ax,) = figure(max(6.5, 1.8 * len(columns) + 1.5), 4.6)
    heights = np.array([_unit(scale) for _, scale in columns])  # [columns, jobs]
    best_last = np.argsort([-v if sweep.directions[0] == "minimize" else v for v in values])
    for i in best_last:
        ax.plot(range(len(columns)), heights[:, i], color=colours.to_rgba(values[i]), lw=1.6, alpha=0.85)
    for place, (_, scale) in enumerate(columns):
        ax.axvline(place, color=GREY, lw=0.8, zorder=0)
        for height, text in _unit_ticks(scale):
            ax.annotate(
                text,
                (place, height),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color=INK,
                bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
            )
    ax.set_xticks(range(len(columns)), [_broken(name) for name, _ in columns], fontsize=9)
    ax.set_yticks([])
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_ylim(-0.06, 1.06)
    ax.set_xlim(-0.15, len(columns) - 1 + 0.45)
    fig.colorbar(colours, ax=ax, label=sweep.metrics[0], pad=0.01, fraction=0.04)
    return fig


def plot_pareto(sweep: Sweep) -> Figure | None:
    """The first optimized metric against the second, with the jobs that no other beats in both; None without two."""
    if len(sweep.metrics) < 2:
        return None
    across, up = sweep.metrics[1], sweep.metrics[0]
    jobs = _with(sweep.finished, [across, up])
    if not jobs:
        return None
    front = pareto_front(sweep)
    fig, (ax,) = figure(10.5, 5.2)
    rest = [job for job in jobs if job not in front]
    ax.plot(*_points(rest, across, up), "o", color=GREY, ms=7, mec="white", label="beaten by the front", ls="none")
    line = sorted(zip(*_points(front, across, up), strict=True))
    ax.plot(*zip(*line, strict=True), color=PALETTE[0], lw=1.4, drawstyle="default", zorder=2)
    ax.plot(*zip(*line, strict=True), "D", color=PALETTE[0], ms=9, mec="white", zorder=3, label="Pareto front")
    shown = sorted(front, key=lambda job: job.metrics[across])
    swept = _varied(sweep.swept, jobs)
    handles: list[Any] = ax.get_legend_handles_labels()[0]
    for letter, job in zip(_letters(len(shown)), shown, strict=True):
        point = (job.metrics[across], job.metrics[up])
        ax.annotate(
            letter, point, xytext=(7, 6), textcoords="offset points", fontsize=10, color=PALETTE[0], weight="bold"
        )
        own = ", ".join(f"{key.rsplit('.', 1)[-1]}={_short(job.settings[key])}" for key in swept if key in job.settings)
        text = _wrapped(f"{letter}  job {job.status.job}: {own}")
        handles.append(Line2D([], [], ls="none", label=text))
    ax.set_xlabel(f"{across} ({_better(sweep, 1)})")
    ax.set_ylabel(f"{up} ({_better(sweep, 0)})")
    ax.margins(0.08)
    ax.grid(color="#eceff1")
    ax.set_axisbelow(True)
    fig.legend(handles=handles[: _NAMED + 2], loc="outside right upper", frameon=False, fontsize=9, handlelength=1.0)
    return fig


def pareto_front(sweep: Sweep) -> list[Job]:
    """The finished jobs that no other equals or beats in all optimized metrics while beating it in one."""
    jobs = _with(sweep.finished, sweep.metrics)
    signs = [1.0 if direction == "maximize" else -1.0 for direction in sweep.directions]
    scores = [[sign * job.metrics[name] for sign, name in zip(signs, sweep.metrics, strict=True)] for job in jobs]

    def beaten(mine: list[float]) -> bool:
        return any(other != mine and all(o >= m for o, m in zip(other, mine, strict=True)) for other in scores)

    return [job for job, score in zip(jobs, scores, strict=True) if not beaten(score)]


def ranked(sweep: Sweep) -> list[Job]:
    """The finished jobs, best first by the first optimized metric; those without it, or with no number, last."""
    if not sweep.metrics:
        return sweep.finished
    name, sign = sweep.metrics[0], -1.0 if sweep.directions[0] == "maximize" else 1.0
    scores = {id(job): sign * job.metrics.get(name, math.nan) for job in sweep.finished}
    return sorted(sweep.finished, key=lambda job: s if math.isfinite(s := scores[id(job)]) else math.inf)


def _with(jobs: Sequence[Job], names: Sequence[str]) -> list[Job]:
    return [job for job in jobs if all(math.isfinite(job.metrics.get(name, math.nan)) for name in names)]


def _varied(keys: Sequence[str], jobs: Sequence[Job]) -> list[str]:
    return [key for key in keys if len({str(job.settings.get(key)) for job in jobs}) > 1]


def _points(jobs: Sequence[Job], across: str, up: str) -> tuple[list[float], list[float]]:
    return [job.metrics[across] for job in jobs], [job.metrics[up] for job in jobs]


def _panels(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    fig, first = figure(4.2 * columns, 3.3 * rows + 0.3)
    first[0].remove()
    axes = fig.subplots(rows, columns, squeeze=False, sharey=True).ravel().tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def _scale(values: Sequence[Any]) -> _Scale:
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) == len(values) and all(map(math.isfinite, numbers)):
        low, high = min(numbers), max(numbers)
        log = low > 0 and high / low >= _WIDE
        places = [math.log10(v) if log else float(v) for v in numbers]
        distinct = sorted(set(numbers))
        few = len(distinct) <= 6
        at = distinct if few else (np.geomspace if log else np.linspace)(low, high, 5).tolist()
        digits = 4 if few else 2 if log else 3
        return _Scale([(math.log10(v) if log else float(v), _short(v, digits)) for v in at], log, True, places)
    order = {text: float(i) for i, text in enumerate(dict.fromkeys(map(str, values)))}
    return _Scale([(place, text) for text, place in order.items()], False, False, [order[str(v)] for v in values])


def _label_x(ax: Axes, scale: _Scale) -> None:
    places, texts = zip(*scale.ticks, strict=True)
    ax.set_xticks(places, texts)
    if max(map(len, texts)) * len(texts) > 30:
        ax.tick_params(axis="x", rotation=30)
    span = max(scale.places) - min(scale.places) or 1.0
    ax.set_xlim(min(scale.places) - 0.1 * span, max(scale.places) + 0.1 * span)


def _unit(scale: _Scale) -> list[float]:
    low, span = min(scale.places), max(scale.places) - min(scale.places)
    return [(place - low) / span if span else 0.5 for place in scale.places]


def _unit_ticks(scale: _Scale) -> list[tuple[float, str]]:
    low, span = min(scale.places), max(scale.places) - min(scale.places)
    return [((place - low) / span if span else 0.5, text) for place, text in scale.ticks]


def _short(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _broken(name: str) -> str:
    """A dotted or slashed name over several lines."""
    return name.replace(".", ".\n").replace("/", "/\n")


def _wrapped(text: str, width: int = 40) -> str:
    lines, line = [], ""
    for part in text.split(" "):
        if line and len(line) + len(part) > width:
            lines.append(line)
            line = "      " + part
        else:
            line = f"{line} {part}" if line else part
    return "\n".join([*lines, line])


def _letters(count: int) -> list[str]:
    return [chr(ord("A") + i) if i < 26 else f"A{i - 25}" for i in range(count)]


def _better(sweep: Sweep, index: int) -> str:
    return "higher is better" if sweep.directions[index] == "maximize" else "lower is better"
