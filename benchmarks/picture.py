"""Accuracy against speed-up of all samplers, every point with its name beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.transforms import Bbox

from recdepth.reporting.style import GREY, INK, PALETTE, figure, save

Row = Mapping[str, Any]

_DIM = "#5f6368"
_FAMILIES = {  # in the legend's order; samplers of other kinds take the colours that are left
    "autoregressive": (GREY, "o"),
    "adaptive": (INK, "D"),
    "diffusion_forcing": (PALETTE[0], "o"),
    "exact": (PALETTE[1], "s"),
    "speculative": (PALETTE[2], "^"),
}
_TITLE: dict[str, Any] = {"x": 0.012, "ha": "left", "fontsize": 11, "color": INK, "linespacing": 1.4}
_HALF_MARKER = 7  # points
# What a label's place costs, in units of 20 points between point and label.
_HIDES, _LEAVES, _CROSSES = 30.0, 50.0, 1.5


def plot(rows: Sequence[Row], head: Row, path: Path) -> Path:
    """Draw the picture: speed-up (log axis) and accuracy, with 95 % intervals on both.

    Args:
        rows: with accuracy and speed, the reference first.
        head: what holds for all samplers.
        path: of the PNG.
    """
    fig, (ax,) = figure(10.5, 6.0)
    _axes(ax, rows)
    line = _frontier(ax, rows)
    note = _beyond(ax, rows)
    for row in rows:
        colour, marker = _look(row)
        x, y = row["speedup"], 100 * row["accuracy"]
        ax.errorbar(
            x,
            y,
            xerr=[[max(0.0, x - row["speedup_low"])], [max(0.0, row["speedup_high"] - x)]],
            yerr=[[max(0.0, y - 100 * row["accuracy_low"])], [max(0.0, 100 * row["accuracy_high"] - y)]],
            color=colour,
            alpha=0.45,
            elinewidth=1.3,
            capsize=2.5,
            fmt="none",
            zorder=2,
        )
        ax.plot(x, y, marker, color=colour, ms=10, mec="white", mew=1.2, zorder=4)
    machine = head["machine"]
    where = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    title = f"{machine['parameters'] / 1e6:.2f} M parameters, {machine['dtype']}, {where}"
    fig.suptitle(f"Samplers: accuracy against speed at batch 1\n{title}; bars: 95 % intervals", **_TITLE)
    fig.draw_without_rendering()  # fixes the layout, so that labels can be placed in pixels
    _label(ax, rows, line, note)
    return save(fig, path)


def _axes(ax: Axes, rows: Sequence[Row]) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g} %"))
    left, right = min(r["speedup_low"] for r in rows), max(r["speedup_high"] for r in rows)
    ax.set_xlim(left / 1.25, right * 1.35)
    low, high = 100 * min(r["accuracy_low"] for r in rows), 100 * max(r["accuracy_high"] for r in rows)
    ax.set_ylim(low - 0.05 * (high - low), high + 0.3 * (high - low))  # room for labels above
    ax.set_yticks([tick for tick in ax.get_yticks() if low - 0.05 * (high - low) <= tick <= 100])
    ax.set_xlabel(f"speed-up over {rows[0]['sampler']} (median of {rows[0]['speed_n']} prompts, samplers in turn)")
    ax.set_ylabel(f"accuracy on {rows[0]['n']} held-out prompts")
    ax.grid(color="#eceff1", zorder=0)
    ax.set_axisbelow(True)


def _frontier(ax: Axes, rows: Sequence[Row]) -> list[tuple[float, float]]:
    """AR at all depths, joined; returns its points."""
    line = sorted((r["speedup"], 100 * r["accuracy"]) for r in rows if r["settings"]["name"] == "autoregressive")
    ax.plot(*zip(*line, strict=True), color=GREY, lw=1.3, zorder=1)
    return line


def _beyond(ax: Axes, rows: Sequence[Row]) -> Text:
    """What lies beyond the fastest AR of equal accuracy, and a note that says so."""
    baseline = next(r for r in rows if r["sampler"] == rows[0]["equal_accuracy_baseline"])
    ax.axvspan(baseline["speedup"], ax.get_xlim()[1], color="#e8f0fe", alpha=0.55, lw=0, zorder=0)
    return ax.text(
        0.995,
        0.985,
        f"shaded: faster than {baseline['sampler']}, the fastest AR\nwhose accuracy is no worse",
        transform=ax.transAxes,
        ha="right",
        va="top",
        fontsize=9,
        color=_DIM,
    )


def _look(row: Row) -> tuple[str, str]:
    return _FAMILIES.get(row["settings"]["name"], (PALETTE[3], "P"))


def _label(ax: Axes, rows: Sequence[Row], line: Sequence[tuple[float, float]], note: Text) -> None:
    """Name every point, each name where it hides least: near the point, off other points, names and bars."""
    canvas = ax.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()
    scale = ax.figure.dpi / 72
    points = [ax.transData.transform((r["speedup"], 100 * r["accuracy"])) for r in rows]
    markers = [_box(x, y, _HALF_MARKER * scale) for x, y in points]
    bars = [bar for row in rows for bar in _bars(ax, row)] + list(_along(ax, line))
    taken = [note.get_window_extent(renderer)]
    frame = ax.get_window_extent(renderer)
    for row, (x, y) in sorted(zip(rows, points, strict=True), key=lambda pair: -pair[1][0]):
        text = f"{row['sampler']}  {row['speedup']:.1f}×"
        label = ax.annotate(
            text,
            (row["speedup"], 100 * row["accuracy"]),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9.5,
            color=_look(row)[0] if row["settings"]["name"] != "autoregressive" else _DIM,
            zorder=5,
            path_effects=[withStroke(linewidth=3, foreground="white")],  # legible across lines
        )
        size = label.get_window_extent(renderer)
        best = min(
            _places(size.width / scale, size.height / scale),
            key=lambda place: _cost(place, (x, y), size, scale, markers, taken, bars, frame),
        )
        taken.append(_at(best, (x, y), size, scale))
        label.set_position(best)
        if _gap(best, size.width / scale) > 25:  # far: a line to its point
            _lead(ax, label, best, _look(row)[0])


def _places(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Offsets of a label's centre from its point, in points, near ones first."""
    for gap in (4, 14, 26, 40, 56, 74):
        for degrees in (90, 270, 60, 120, 240, 300, 30, 150, 330, 210, 0, 180):
            c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            yield c * (width / 2 + _HALF_MARKER + gap), s * (height / 2 + _HALF_MARKER + gap)


def _cost(
    place: tuple[float, float],
    point: tuple[float, float],
    size: Bbox,
    scale: float,
    markers: Sequence[Bbox],
    taken: Sequence[Bbox],
    bars: Sequence[Bbox],
    frame: Bbox,
) -> float:
    box = _at(place, point, size, scale)
    hidden = sum(box.overlaps(other) for other in [*markers, *taken])
    outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
    far = _gap(place, size.width / scale) / 20
    return far + _HIDES * hidden + _LEAVES * outside + _CROSSES * sum(box.overlaps(bar) for bar in bars)


def _gap(place: tuple[float, float], width: float) -> float:
    """How far a point lies from the nearest place of its label, in points; the label has no height here."""
    return math.hypot(max(0.0, abs(place[0]) - width / 2), place[1])


def _at(place: tuple[float, float], point: tuple[float, float], size: Bbox, scale: float) -> Bbox:
    x, y = point[0] + place[0] * scale, point[1] + place[1] * scale
    return Bbox.from_bounds(x - size.width / 2, y - size.height / 2, size.width, size.height)


def _lead(ax: Axes, label: Annotation, place: tuple[float, float], colour: str) -> None:
    arrow = {"arrowstyle": "-", "color": colour, "lw": 0.8, "alpha": 0.6, "shrinkA": 7, "shrinkB": 6}
    ax.annotate("", label.xy, xytext=place, textcoords="offset points", arrowprops=arrow, zorder=1)


def _along(ax: Axes, line: Sequence[tuple[float, float]]) -> Iterator[Bbox]:
    """Boxes along a line, in pixels."""
    corners = ax.transData.transform(list(line))
    for (x0, y0), (x1, y1) in pairwise(corners):
        steps = max(1, int(math.hypot(x1 - x0, y1 - y0) / 20))
        for i in range(steps):
            ends = [(x0 + (x1 - x0) * j / steps, y0 + (y1 - y0) * j / steps) for j in (i, i + 1)]
            yield Bbox.from_extents(*map(min, zip(*ends, strict=True)), *map(max, zip(*ends, strict=True)))


def _bars(ax: Axes, row: Row) -> Iterator[Bbox]:
    """The boxes of a point's intervals, in pixels."""
    x, y = row["speedup"], 100 * row["accuracy"]
    for low, high in (
        ((row["speedup_low"], y), (row["speedup_high"], y)),
        ((x, 100 * row["accuracy_low"]), (x, 100 * row["accuracy_high"])),
    ):
        (x0, y0), (x1, y1) = ax.transData.transform([low, high])
        yield Bbox.from_extents(x0 - 1, y0 - 1, x1 + 1, y1 + 1)


def _box(x: float, y: float, half: float) -> Bbox:
    return Bbox.from_extents(x - half, y - half, x + half, y + half)
