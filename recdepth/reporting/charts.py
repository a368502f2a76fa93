"""Figures for pages: SVG that takes the colours and the font of the page around it, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .style import GREY, INK, PALETTE, figure

GRID = "#eceff1"
CHART_SIZE = (5.6, 3.1)  # inches
MOST_POINTS = 400  # of a curve: more cannot be seen, and each makes the page larger
DASHES = ("-", "--", ":", "-.")
_THEME: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "svg.fonttype": "none",
    "svg.hashsalt": "recdepth",
}
_VARIABLES = {INK: "currentColor", GRID: "var(--line)", GREY: "var(--faint)", "#ffffff": "var(--paper)"}
_VARIABLES |= {colour: f"var(--c{i})" for i, colour in enumerate(PALETTE)}
_COLOUR = re.compile("|".join(_VARIABLES), re.IGNORECASE)


@dataclass(frozen=True)
class Curve:
    """A line of a figure: its values at steps; ``style`` numbers its colour and dashes."""

    steps: Sequence[float]
    values: Sequence[float]
    style: int = 0
    marked: bool = False


@overload
def svg(draw: Callable[..., Figure], *arguments: Any, label: str) -> Markup: ...
@overload
def svg(draw: Callable[..., Figure | None], *arguments: Any, label: str) -> Markup | None: ...
def svg(draw: Callable[..., Figure | None], *arguments: Any, label: str) -> Markup | None:
    """A figure as inline SVG; None where there is nothing to draw.

    Args:
        draw: makes the figure, from the arguments.
        label: what it shows, for those who do not see it.
    """
    text = io.StringIO()
    with matplotlib.rc_context(_THEME):
        if (fig := draw(*arguments)) is None:
            return None
        fig.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    body = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    body = body[body.index("<svg") :]
    used = set(re.findall(r"#([\w-]+)", body))
    body = re.sub(r' id="([\w.-]+)"', lambda m: m[0] if m[1] in used else "", body)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[\d.]+pt"', lambda m: m[1] or "", body)
    body = _COLOUR.sub(lambda m: _VARIABLES[m[0].lower()], body)
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))


def draw_curves(curves: Sequence[Curve], ylabel: str, log: bool = False) -> Figure:
    """Lines against optimizer steps; the legend is the page's."""
    fig, (ax,) = figure(*CHART_SIZE)
    for curve in curves:
        every = max(1, len(curve.steps) // MOST_POINTS)
        keep = slice((len(curve.steps) - 1) % every, None, every)  # the last one always
        colour, dashes = PALETTE[curve.style % len(PALETTE)], DASHES[curve.style // len(PALETTE) % len(DASHES)]
        marker = "o" if curve.marked or len(curve.steps) == 1 else None
        ax.plot(curve.steps[keep], curve.values[keep], dashes, color=colour, lw=1.5, marker=marker, ms=4)
    values = [value for curve in curves for value in curve.values]
    if log and 0 < 10 * min(values) <= max(values):
        ax.set_yscale("log")
        if max(values) < 100 * min(values):  # plain numbers; powers of ten would be too few
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
    finish(ax, "optimizer steps", ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return fig


def finish(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Labels and grid."""
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(color=GRID)
    ax.set_axisbelow(True)
