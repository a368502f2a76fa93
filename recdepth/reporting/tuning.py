"""A tuning of sampler settings: JSON, picture, tables, and the winner as a file that ``sampler=`` takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import recdepth.sampling
from recdepth.sampling import Sampler

from .files import write_whole
from .style import GREY, INK, PALETTE, RED, figure, save

Facts = Mapping[str, Any]
Row = Mapping[str, Any]

_WINNER, _PAPER, _OTHER = PALETTE[2], PALETTE[1], PALETTE[0]
_LINEAR = 2.0  # points of difference up to which the picture's axis is linear; logarithmic beyond


@dataclass(frozen=True)
class Grid:
    """A table, for the console and for Markdown alike."""

    title: str
    headers: list[str]
    rows: list[list[str]]


def sampler_yaml(sampler: Sampler, comments: Iterable[str] = ()) -> str:
    """A sampler as the text of a file for ``conf/sampler``, with comments above."""
    node = {"_target_": f"recdepth.sampling.{type(sampler).__name__}", **asdict(sampler)}
    return "".join(f"# {line}\n" for line in comments) + str(yaml.safe_dump(node, sort_keys=False, allow_unicode=True))


def write_tuning(facts: Facts, head: Facts, folder: Path) -> tuple[Path, Path | None]:
    """Write ``tune.json`` (``head`` and ``facts`` together) and, if anything was measured, ``tune.png``.

    Args:
        facts: of :meth:`recdepth.evaluation.Tuner.facts`.
        head: command, model, machine.
        folder: exists.

    Returns:
        the two paths.
    """
    path = folder / "tune.json"
    text = json.dumps({**head, **facts}, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")
    return path, plot_tuning(facts, folder / "tune.png") if facts["tried"] else None


# -------------------------------------------------------------------------------------------------------------- tables


def tables(facts: Facts) -> list[Grid]:
    """As far as there are any: the settings that came furthest, the finalists on fresh prompts, the final speeds."""
    found = []
    if furthest := _furthest(facts):
        headers = ["setting", "prompts", "Δ points", "same, %", f"× {facts['reference']}", "core", "what became of it"]
        title = f"Search: {len(facts['tried'])} settings; the known ones, and those of the last rung"
        found.append(Grid(title, headers, [_tried_cells(row) for row in furthest]))
    if facts["checked"]:
        headers = ["finalist", "prompts", "accuracy, %", f"{facts['reference']}, %", "Δ points", "verdict", "fits"]
        found.append(Grid("Finalists on fresh prompts", headers, [_checked_cells(row) for row in facts["checked"]]))
    if facts["final"]:
        names = [facts["reference"], facts["paper"]]
        headers = ["sampler", "tok/s", *(f"× {name}" for name in names), "core", "work", "same texts"]
        mode = "compiled" if facts["compile"] else "eager"
        title = f"Speed on {facts['final'][0]['speed_n']} fresh prompts, batch 1, in turn, {mode}"
        found.append(Grid(title, headers, [_final_cells(row) for row in facts["final"]]))
    return found


def _furthest(facts: Facts) -> list[Row]:
    """The known settings and those of the last rung, the fastest first."""
    last = max((row["rung"] for row in facts["tried"]), default=0)
    return sorted((r for r in facts["tried"] if r["rung"] == last or r["known"]), key=lambda r: -r["speedup"])


def notes(facts: Facts) -> list[str]:
    """What the names stand for, and what the columns mean."""
    reference = facts["reference"]
    return [
        *(f"{row['name']}: {short_settings(row['settings'])}." for row in _furthest(facts)),
        f"Δ: points to {reference}, paired, with its 95 % interval; within the budget: at least "
        f"-{100 * facts['budget']:g}. same: texts that are {reference}'s, token for token.",
        f"× {reference}, × {facts['paper']}: median over prompts of the ratio of tokens per second, with its 95 % "
        "interval. tok/s: median and quartiles. core, work: core passes and token passes per token.",
        "verdict: equal (Δ of at least -0.5 over at least 2000 prompts), not distinguishable (fewer prompts, the "
        "interval holds 0) or different.",
    ]


def conclusion(facts: Facts) -> list[str]:
    """What was found, in sentences."""
    points = f"{100 * facts['budget']:g} points"
    if facts["winner"] is None:
        return [f"No setting is confirmed within the budget of {points}; nothing is written.", *_nearest(facts)]
    checked = facts["checked"][-1]
    difference = f"{_points(checked)} points against {facts['reference']} on {checked['n']} fresh prompts"
    lines = [f"{facts['winner']}: {short_settings(checked['settings'])}"]
    lines.append(f"{difference}: within the budget of {points}; {checked['verdict']}.")
    if checked["lossless"]:
        lines.append(f"{checked['same_texts']} of {checked['n']} texts are {facts['reference']}'s, token for token.")
    if len(facts["checked"]) > 1:
        tries = len(facts["checked"])
        lines.append(f"It is finalist {tries}; {tries - 1} before it failed on the same fresh prompts.")
    if facts["final"]:
        final = facts["final"][-1]
        lines.append(
            f"{_times(final, 'speedup_paper')} times as fast as {facts['paper']}, {_times(final, 'speedup')} times"
            f" as {facts['reference']} (medians, 95 % intervals)."
        )
        if final["speedup_paper_high"] < 1:
            lines.append(f"It is slower than {facts['paper']}.")
        elif final["speedup_paper_low"] <= 1 and facts["winner"] != facts["paper"]:
            lines.append(f"Its speed is not distinguishable from that of {facts['paper']}.")
    return lines


def print_tuning(facts: Facts, console: Console) -> None:
    """Print tables, their notes, and the conclusion."""
    grids = tables(facts)
    for grid in grids:
        table = Table(title=grid.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i, header in enumerate(grid.headers):
            table.add_column(header, justify="right" if i else "left")
        for cells in grid.rows:
            table.add_row(*cells)
        console.print(table)
    if grids:
        console.print("\n".join(notes(facts)), style="dim", highlight=False)


def short_settings(settings: Mapping[str, Any]) -> str:
    """The settings of a sampler that are not its defaults, as overrides; its name alone if there is none."""
    known = {kind.name: kind for kind in vars(recdepth.sampling).values() if _is_sampler(kind)}
    defaults = {f.name: f.default for f in fields(known[settings["name"]])}
    own = {key: value for key, value in settings.items() if key in defaults and value != defaults[key]}
    return " ".join([settings["name"], *(f"{key}={_yaml(value)}" for key, value in own.items())])


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_sampler(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Sampler) and kind is not Sampler


def _nearest(facts: Facts) -> list[str]:
    if facts["checked"]:
        best = max(facts["checked"], key=lambda row: row["difference"])
        return [f"The nearest: {best['name']}, {_points(best)} points on {best['n']} fresh prompts."]
    if facts["tried"]:
        best = max(facts["tried"], key=lambda row: (row["difference"], row["n"]))
        return [f"The nearest: {best['name']}, {_points(best)} points on {best['n']} prompts of the search."]
    return []


def _tried_cells(row: Row) -> list[str]:
    lossless = row["lossless"]
    return [
        row["name"],
        "-" if lossless else str(row["n"]),
        "lossless" if lossless else _points(row),
        f"{100 * row['same']:.1f}",
        _times(row, "speedup"),
        f"{row['core_passes_per_token']:.2f}",
        row["fate"],
    ]


def _checked_cells(row: Row) -> list[str]:
    return [
        row["name"],
        str(row["n"]),
        _share(row, "accuracy"),
        _share(row, "reference_accuracy"),
        _points(row),
        row["verdict"],
        "yes" if row["fits"] else "no",
    ]


def _final_cells(row: Row) -> list[str]:
    low, high = row["tokens_per_second_low"], row["tokens_per_second_high"]
    return [
        row["sampler"],
        f"{row['tokens_per_second']:.0f} ({low:.0f}-{high:.0f})",
        _times(row, "speedup"),
        _times(row, "speedup_paper"),
        f"{row['core_passes_per_token']:.2f}",
        f"{row['token_passes_per_token']:.2f}",
        f"{row['same_texts']} of {row['speed_n']}",
    ]


def _points(row: Row) -> str:
    value, low, high = (100 * row[f"difference{end}"] for end in ("", "_low", "_high"))
    return f"{value + 0.0:+.2f} ({low:+.2f} to {high:+.2f})"


def _times(row: Row, name: str) -> str:
    return f"{row[name]:.2f} ({row[f'{name}_low']:.2f}-{row[f'{name}_high']:.2f})"


def _share(row: Row, name: str) -> str:
    return f"{100 * row[name]:.1f} ({100 * row[f'{name}_low']:.1f}-{100 * row[f'{name}_high']:.1f})"


# ------------------------------------------------------------------------------------------------------------- picture


def plot_tuning(facts: Facts, path: Path | str) -> Path:
    """Loss against speed-up of every setting that was tried: the front, the reference, the paper's default, the winner.

    Args:
        facts: of :meth:`recdepth.evaluation.Tuner.facts`, with at least one setting measured.
        path: of the PNG.
    """
    fig, (ax,) = figure(9.5, 5.4)
    rows: Sequence[Row] = facts["tried"]
    budget = -100 * facts["budget"]
    ax.axhspan(budget, 3, color=_WINNER, alpha=0.07, lw=0)
    ax.axhline(budget, color=_WINNER, lw=1, ls="--", label=f"budget: {budget:g} points")
    _draw_settings(ax, rows)
    front = sorted((row for row in rows if row["front"]), key=lambda row: row["speedup"])
    ax.plot(
        [row["speedup"] for row in front],
        [min(0.0, _y(row)) for row in front],
        color=INK,
        lw=1.1,
        label="front of the search (a gain\ncounts as no loss)",
        zorder=2,
    )
    ax.plot(1, 0, "D", color=GREY, ms=10, markeredgecolor="white", label=facts["reference"], zorder=4)
    for row in rows:
        if row["name"] == facts["paper"]:
            ax.plot(row["speedup"], _y(row), "s", color=_PAPER, ms=11, mec="white", label=facts["paper"], zorder=5)
    _draw_checked(ax, facts)
    _axes(ax, facts, rows)
    fig.legend(loc="outside right center", frameon=False, fontsize=10, labelspacing=0.9)
    counts = ", ".join(map(str, facts["rungs"]))
    fig.suptitle(f"dots grow with the prompts scored ({counts}); bars: 95 % intervals", x=0.01, ha="left", fontsize=10)
    return save(fig, path)


def _draw_settings(ax: Axes, rows: Sequence[Row]) -> None:
    for label, colour, beyond in (("beyond the budget", RED, True), ("tried", _OTHER, False)):
        some = [row for row in rows if row["beyond"] == beyond]
        if some:
            sizes = [18 * row["rung"] for row in some]
            x, y = [row["speedup"] for row in some], [_y(row) for row in some]
            ax.scatter(x, y, s=sizes, color=colour, alpha=0.65, lw=0, label=f"{label} ({len(some)})", zorder=3)


def _draw_checked(ax: Axes, facts: Facts) -> None:
    speeds = {row["name"]: row for row in facts["tried"]} | {row["sampler"]: row for row in facts["final"]}
    for row in facts["checked"]:
        x, y, speed = speeds[row["name"]]["speedup"], _y(row), speeds[row["name"]]
        ax.errorbar(
            x,
            y,
            xerr=[[max(0.0, x - speed["speedup_low"])], [max(0.0, speed["speedup_high"] - x)]],
            yerr=[[y - 100 * row["difference_low"]], [100 * row["difference_high"] - y]],
            fmt="*" if row["fits"] else "x",
            color=_WINNER if row["fits"] else RED,
            ms=17 if row["fits"] else 9,
            mec="white" if row["fits"] else RED,
            elinewidth=1.4,
            capsize=3,
            label=f"{row['name']}, {row['n']} fresh prompts:\n{x:.1f}×, {y + 0.0:+.2f} points",
            zorder=6,
        )


def _axes(ax: Axes, facts: Facts, rows: Sequence[Row]) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
    ax.set_yscale("symlog", linthresh=_LINEAR, linscale=1.5)
    ticks = [-100, -50, -20, -10, -5, -2, -1, 0, 1, 2]
    worst = min(min(map(_y, rows)), -_LINEAR)
    ax.set_yticks([t for t in ticks if t >= worst], [f"{t:+d}" if t else "0" for t in ticks if t >= worst])
    ax.minorticks_off()
    ax.set_ylim(1.25 * worst, 2.2)
    ax.set_xlabel(f"speed-up over {facts['reference']} at batch 1 (median over prompts, in turn)")
    ax.set_ylabel(f"accuracy, points to {facts['reference']} (paired)")
    ax.grid(color="#eceff1", zorder=0)
    ax.set_axisbelow(True)


def _y(row: Row) -> float:
    return float(100 * row["difference"])
