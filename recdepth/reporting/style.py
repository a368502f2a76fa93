"""One look for all figures. Figures are made without pyplot: no window, no global state."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

GREY, INK, RED = "#9aa0a6", "#202124", "#d93025"
#: For samplers and curves, in order; the first six are told apart with common colour blindness (Okabe and Ito 2008).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b3294", "#8c6d31")


def figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches with rows of axes, row by row."""
    canvas = FigureCanvasAgg(Figure(figsize=(width, height), layout="constrained"))
    axes = canvas.figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=10)
        ax.xaxis.label.set_size(11)
        ax.yaxis.label.set_size(11)
        ax.title.set_size(12)
    return canvas.figure, list(axes)


def save(fig: Figure, path: Path | str) -> Path:
    """Write a PNG, making its folder if need be; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150, format="png")
    return path
