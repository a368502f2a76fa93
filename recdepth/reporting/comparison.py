"""The comparison of samplers: JSON, picture, and table on the console."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .files import write_whole
from .style import GREY, INK, PALETTE, figure, save

Row = Mapping[str, Any]

_MARKERS = "oDs^vPX*<>"


def write_comparison(rows: Sequence[Row], run_dir: Path | str) -> tuple[Path, Path]:
    """Write ``comparison.json`` (the rows, a plain list) and ``comparison.png`` into a folder.

    Args:
        rows: from :func:`recdepth.evaluation.compare`.
        run_dir: made if it does not exist.

    Returns:
        the two paths.
    """
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "comparison.json"
    write_whole(path, json.dumps(list(rows), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path, plot_comparison(rows, folder / "comparison.png")


def plot_comparison(rows: Sequence[Row], path: Path | str) -> Path:
    """Accuracy against speed-up, with 95 % intervals on both; AR samplers grey and joined.

    Args:
        rows: from :func:`recdepth.evaluation.compare`; the first is the reference.
        path: of the PNG.
    """
    return save(draw_comparison(rows), path)


def draw_comparison(rows: Sequence[Row]) -> Figure:
    """The figure of :func:`plot_comparison`."""
    fig, (ax,) = figure(9.5, 5.2)
    _draw_ar_line(ax, rows)
    colours = iter(PALETTE * (1 + len(rows) // len(PALETTE)))
    for i, row in enumerate(rows):
        ar = _kind(row) == "autoregressive"
        x, y = row["speedup"], row["accuracy"]
        ax.errorbar(
            x,
            y,
            xerr=[[max(0.0, x - row["speedup_low"])], [max(0.0, row["speedup_high"] - x)]],
            yerr=[[max(0.0, y - row["accuracy_low"])], [max(0.0, row["accuracy_high"] - y)]],
            fmt="o" if ar else _MARKERS[i % len(_MARKERS)],
            color=GREY if ar else next(colours),
            markeredgecolor="white",
            ms=8 if ar else 11,
            elinewidth=1.4,
            capsize=3,
            label=f"{row['sampler']}: {x:.1f}×, {_percent(y)}",
            zorder=2 if ar else 3,
        )
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    low, high = min(row["accuracy_low"] for row in rows), max(row["accuracy_high"] for row in rows)
    ax.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    reference = rows[0]["sampler"]
    ax.set_xlabel(f"speed-up over {reference} at batch 1 (median of {rows[0]['speed_n']} prompts, in turn)")
    ax.set_ylabel(f"accuracy on {_counts(rows)} held-out prompts")
    ax.grid(color="#eceff1", zorder=0)
    ax.set_axisbelow(True)
    fig.legend(loc="outside right center", frameon=False, fontsize=10, labelspacing=0.9)
    fig.suptitle("bars: 95 % intervals", x=0.01, ha="left", fontsize=10, color=INK)
    return fig


def print_comparison(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the table, with what its columns mean.

    Args:
        rows: from :func:`recdepth.evaluation.compare`; the first is the reference.
        console: None for standard output.
    """
    console = console or Console()
    reference, baseline = rows[0]["sampler"], rows[0]["equal_accuracy_baseline"]
    table = Table(
        title="Samplers compared", title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("sampler", no_wrap=True)
    for header in ("accuracy, %", "agree", "tok/s", f"× {reference}", f"× {baseline}", "core", "work"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*table_cells(row))
    console.print(table)
    console.print(
        f"accuracy: with its 95 % interval, on {_counts(rows)} prompts. agree: % of tokens equal to {reference}'s.\n"
        f"× {reference}: speed-up at batch 1, median over {rows[0]['speed_n']} prompts in turn.\n"
        f"× {baseline}: speed-up over the fastest one-token-at-a-time sampler whose accuracy is not distinguishable "
        f"from that of {reference}.\n"
        "core: sequential core passes per token. work: recurrences × positions per token.",
        style="dim",
        highlight=False,
    )


def table_cells(row: Row) -> tuple[str, ...]:
    """The cells of a row: sampler, accuracy, agreement, tokens/s, both speed-ups, core and token passes."""
    return (
        str(row["sampler"]),
        f"{100 * row['accuracy']:.1f} ({100 * row['accuracy_low']:.1f}-{100 * row['accuracy_high']:.1f})",
        f"{100 * row['agreement']:.1f}",
        f"{row['tokens_per_second']:.0f}",
        f"{row['speedup']:.2f}",
        f"{row['speedup_equal_accuracy']:.2f}",
        f"{row['core_passes_per_token']:.2f}",
        f"{row['token_passes_per_token']:.1f}",
    )


def _draw_ar_line(ax: Any, rows: Sequence[Row]) -> None:
    line = sorted((row["speedup"], row["accuracy"]) for row in rows if _kind(row) == "autoregressive")
    ax.plot(*zip(*line, strict=True), color=GREY, lw=1.2, zorder=1)


def _kind(row: Row) -> str:
    return str(row["settings"]["name"])


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _counts(rows: Sequence[Row]) -> str:
    low, high = min(row["n"] for row in rows), max(row["n"] for row in rows)
    return str(low) if low == high else f"{low} to {high}"
