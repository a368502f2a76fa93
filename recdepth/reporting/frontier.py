"""Speed-up against accuracy for all objectives of a study, in one picture."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import FuncFormatter

from .study import PLAIN, Cell, StudyRun, cell, grouped, read_run
from .style import GREY, INK, PALETTE, figure, save

_MARKERS = [*"<>os^vDPpXhd*", (4, 1, 0), *"8H", (6, 1, 0), (8, 1, 0)]  # filled: their edges are white
FAR = 0.05  # below the best accuracy: samplers that are not drawn


class Frontier:
    """Draws the runs of a study; what ``experiment=df_aware/frontier`` does instead of training.

    Args:
        runs: run folders; patterns such as ``outputs/df_aware/*`` are expanded, folders without a comparison skipped.

    Raises:
        ValueError: for no pattern.
    """

    def __init__(self, runs: Sequence[str]):
        if not runs:
            raise ValueError("runs=[] names no run folder; give some, or a pattern such as outputs/df_aware/*")
        self.runs = list(runs)

    def folders(self) -> list[Path]:
        """Finished runs.

        Raises:
            ValueError: if there is none.
        """
        found = sorted({Path(path) for pattern in self.runs for path in glob.glob(pattern)})
        finished = [folder for folder in found if (folder / "comparison.json").is_file()]
        if not finished:
            raise ValueError(f"runs={self.runs} hold no run with a comparison.json; run benchmarks/df_aware.py first")
        return finished

    def __call__(self, folder: Path) -> Path:
        """Draw ``frontier.png`` into a folder; returns its path."""
        return plot_frontier([read_run(each) for each in self.folders()], folder / "frontier.png")


def plot_frontier(runs: Sequence[StudyRun], path: Path | str) -> Path:
    """A panel per setting: a colour per training, a marker per sampler.

    Strong, joined and, from three seeds on, with 95 % intervals over them: samplers that no other one beats in both
    speed and accuracy, on the models of the same training. The others are faint; those more than five points below the
    best are left out.

    Args:
        runs: from :func:`recdepth.reporting.study.read_run`.
        path: of the PNG.
    """
    groups = grouped(runs)
    trainings = list(dict.fromkeys(name for group in groups.values() for name in group))
    samplers = list(dict.fromkeys(name for run in runs for name in run.rows if name != run.reference))
    colours, markers = _colours(trainings), {name: _MARKERS[i % len(_MARKERS)] for i, name in enumerate(samplers)}
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    fig, axes = figure(6.4 * columns + 2.6, 4.8 * rows, columns, rows)
    for ax in axes[len(groups) :]:
        ax.set_visible(False)
    for ax, (setting, by_training) in zip(axes, groups.items(), strict=False):
        for training, several in by_training.items():
            cells = {name: cell(several, name) for name in samplers if all(name in run.rows for run in several)}
            _draw(ax, _near(cells), colours[training], markers)
        _label(ax, str(setting), next(iter(by_training.values()))[0].reference)
    handles = [axes[0].plot([], [], color=colours[name], lw=3, label=name)[0] for name in trainings]
    handles += [
        axes[0].plot([], [], color=INK, marker=markers[name], ls="", label=name, markeredgecolor="white", ms=8)[0]
        for name in samplers
    ]
    fig.legend(handles=handles, loc="outside right center", frameon=False, fontsize=10)
    seeds = sorted({len(several) for by_training in groups.values() for several in by_training.values()})
    counted = " or ".join(map(str, seeds)) + (" seed" if seeds == [1] else " seeds")
    fig.suptitle(
        f"{counted}; bars: 95 % intervals of the mean over three seeds or more",
        x=0.01,
        ha="left",
        fontsize=10,
        color=INK,
    )
    return save(fig, path)


def _near(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    best = max(each.accuracy.value for each in cells.values())
    return {name: each for name, each in cells.items() if each.accuracy.value >= best - FAR}


def _colours(trainings: Sequence[str]) -> dict[str, str]:
    """Greys for plain training, a colour for each other one; beyond the palette darker ones."""
    dark = [to_hex((0.5 * r, 0.5 * g, 0.5 * b)) for r, g, b in map(to_rgb, PALETTE)]
    plain, other = iter((GREY, INK)), iter([*PALETTE, *dark])
    return {name: next(plain) if name.startswith(PLAIN) else next(other) for name in trainings}


def _label(ax: Axes, title: str, reference: str) -> None:
    ax.set_title(title, loc="left")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.5g} %"))
    ax.set_xlabel(f"speed-up over {reference} of the same model, batch 1")
    ax.set_ylabel("accuracy on held-out prompts")
    ax.grid(color="#eceff1", zorder=0)
    ax.set_axisbelow(True)


def _draw(ax: Axes, cells: Mapping[str, Cell], colour: str, markers: Mapping[str, Any]) -> None:
    """One training's samplers; the best of them are joined from slow to fast."""
    best = [name for name, each in cells.items() if not any(_beats(other, each) for other in cells.values())]
    line = sorted((cells[name].speedup.value, cells[name].accuracy.value) for name in best)
    ax.plot(*zip(*line, strict=True), color=colour, lw=1.4, zorder=2)
    for name, each in cells.items():
        x, y = each.speedup, each.accuracy
        bars = each.seeds > 2 and name in best  # those of two are too wide to tell anything
        ax.errorbar(
            x.value,
            y.value,
            xerr=[[x.value - max(x.low, x.value / 8)], [x.high - x.value]] if bars else None,
            yerr=[[y.value - max(y.low, 0.0)], [min(y.high, 1.0) - y.value]] if bars else None,
            marker=markers[name],
            ls="",
            color=colour,
            alpha=1.0 if name in best else 0.4,
            markeredgecolor="white",
            ms=9 if name in best else 6,
            elinewidth=0.9,
            capsize=2,
            zorder=3 if name in best else 1,
        )


def _beats(one: Cell, other: Cell) -> bool:
    return one.speedup.value > other.speedup.value and one.accuracy.value >= other.accuracy.value
