"""Speed-up against accuracy for all objectives of a study, in one picture."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from .study import PLAIN, Cell, StudyRun, cell, grouped, read_run
from .style import GREY, INK, PALETTE, figure, save

_MARKERS = "os^vDP*X<>"


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
    """A panel per setting: a colour per objective, a marker per sampler, bars for the 95 % interval over seeds.

    Args:
        runs: from :func:`recdepth.reporting.study.read_run`.
        path: of the PNG.
    """
    groups = grouped(runs)
    objectives = sorted({run.objective for run in runs}, key=lambda name: (name != PLAIN, name))
    colours = {name: GREY if name == PLAIN else PALETTE[i % len(PALETTE)] for i, name in enumerate(objectives, -1)}
    samplers = [
        name
        for name in dict.fromkeys(name for run in runs for name in run.rows)
        if any(run.rows[name]["settings"]["name"] != "autoregressive" for run in runs if name in run.rows)
    ]
    markers = {name: _MARKERS[i % len(_MARKERS)] for i, name in enumerate(samplers)}
    fig, axes = figure(6.2 * len(groups) + 2.4, 5.6, len(groups))
    for ax, (setting, by_objective) in zip(axes, groups.items(), strict=True):
        for objective, several in by_objective.items():
            cells = {name: cell(several, name) for name in samplers if all(name in run.rows for run in several)}
            _draw(ax, cells, colours[objective], markers)
        ax.set_title(str(setting), loc="left")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        reference = next(iter(by_objective.values()))[0].reference
        ax.set_xlabel(f"speed-up over {reference} of the same model, batch 1")
        ax.grid(color="#eceff1", zorder=0)
        ax.set_axisbelow(True)
    axes[0].set_ylabel("accuracy on held-out prompts")
    handles = [axes[0].plot([], [], color=colours[name], lw=3, label=name)[0] for name in objectives]
    handles += [
        axes[0].plot([], [], color=INK, marker=markers[name], ls="", label=name, markeredgecolor="white", ms=8)[0]
        for name in samplers
    ]
    fig.legend(handles=handles, loc="outside right center", frameon=False, fontsize=10)
    seeds = sorted({len(several) for by_objective in groups.values() for several in by_objective.values()})
    counted = " or ".join(map(str, seeds))
    fig.suptitle(
        f"{counted} seeds; bars: 95 % intervals of the mean over seeds", x=0.01, ha="left", fontsize=10, color=INK
    )
    return save(fig, path)


def _draw(ax: Axes, cells: Mapping[str, Cell], colour: str, markers: Mapping[str, str]) -> None:
    """One objective's samplers, joined from slow to fast."""
    line = sorted((each.speedup.value, each.accuracy.value) for each in cells.values())
    ax.plot(*zip(*line, strict=True), color=colour, lw=1.0, alpha=0.5, zorder=1)
    for name, each in cells.items():
        x, y = each.speedup, each.accuracy
        bars = each.seeds > 1
        ax.errorbar(
            x.value,
            y.value,
            xerr=[[x.value - max(x.low, x.value / 8)], [x.high - x.value]] if bars else None,
            yerr=[[y.value - y.low], [y.high - y.value]] if bars else None,
            fmt=markers[name],
            color=colour,
            markeredgecolor="white",
            ms=9,
            elinewidth=1.0,
            capsize=2,
            zorder=2,
        )
