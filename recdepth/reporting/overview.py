"""Several runs and sweeps on one page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from recdepth.settings import shown

from .charts import DASHES
from .files import write_whole
from .html import Cell, Chart, Key, Table, Tile, duration, moment, number, render
from .page import comparison_chart, comparison_table, metric_chart, reproduce, write_report
from .runs import RunFolder, flat, higher_is_better, is_run_folder, overridden, read_run
from .style import PALETTE
from .sweep_page import SweepView, is_sweep_folder, view_sweep

MOST_CURVES = len(PALETTE) * len(DASHES)  # lines that can be told apart
MOST_KEYS = 12  # columns of differing settings
_IGNORED = ("paths.", "hydra.", "sweep.", "report", "resume", "tags", "task_name")


@dataclass(frozen=True)
class Overview:
    """What a page over several folders shows; made by :func:`read_overview`.

    Attributes:
        title: of the page.
        runs: all of them, those of sweeps included, each once.
        labels: short names, one a run.
        sweeps: with their own tables and figures.
    """

    title: str
    runs: list[RunFolder]
    labels: list[str]
    sweeps: list[SweepView]


def read_overview(folders: Sequence[Path | str], title: str | None = None) -> Overview:
    """Read run and sweep folders.

    Args:
        folders: of runs, of sweeps, or above some of them.
        title: of the page; None: made from the folders' names.

    Raises:
        ValueError: naming every folder that is neither.
    """
    if not folders:
        raise ValueError("no folder was given: name folders of runs or of sweeps")
    found, sweeps, problems = [], [], []
    for folder in dict.fromkeys(Path(os.path.normpath(f)) for f in folders):
        if is_sweep_folder(folder):
            sweep = view_sweep(folder)
            sweeps.append(sweep)
            found += [job.run for job in sweep.jobs if job.run is not None]
        elif is_run_folder(folder):
            found.append(read_run(folder))
        else:
            problems.append(_what_it_is(folder))
    if problems:
        raise ValueError("\n".join(problems))
    runs = list({run.path.resolve(): run for run in found}.values())
    names = [str(Path(os.path.normpath(folder))) for folder in folders]
    return Overview(title or _title(names), runs, short_names([run.path for run in runs]), sweeps)


def write_overview(overview: Overview, path: Path | str) -> Path:
    """Write the page, and the reports of single runs that it links to where they are missing or out of date.

    Args:
        overview: from :func:`read_overview`.
        path: of the HTML file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for run in overview.runs:
        if run.path.resolve() != path.parent.resolve() and _out_of_date(run.path):
            write_report(run.path)
    return write_whole(path, render("overview.html.jinja", **_contents(overview, path.parent)))


def write_sweep_report(folder: Path | str) -> Path:
    """Write ``report.html`` into a sweep folder, however far the sweep got; jobs' own reports are brought up to date.

    Raises:
        ValueError: if the folder is none of a sweep.
    """
    folder = Path(folder)
    if not is_sweep_folder(folder):
        raise ValueError(_what_it_is(folder))
    return write_overview(read_overview([folder], f"Sweep {folder.resolve().name}"), folder / "report.html")


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of paths, two or as many as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(2, max(map(len, parts), default=1) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def differences(runs: Sequence[RunFolder]) -> dict[str, list[str]]:
    """Settings that are not the same in all the runs that have them, those of the command line first.

    Returns:
        by key, a value a run; "" where a run lacks the key, as one of sample.py lacks those of training.
    """
    settings = [dict(flat(run.config)) for run in runs]
    given = [key for run in runs for key in overridden(run.overrides)]
    keys = dict.fromkeys([*given, *(key for one in settings for key in one)])
    found = {}
    for key in keys:
        values = [shown(one[key]) if key in one else "" for one in settings]
        own = {value for value, one in zip(values, settings, strict=True) if key in one}
        if len(own) > 1 and not key.startswith(_IGNORED) and not key.endswith("._target_"):
            found[key] = values
    return found


def runs_table(overview: Overview, base: Path) -> Table:
    """A row a run: status, settings that differ, metrics (the best of a column marked), time."""
    runs = overview.runs
    differing = differences(runs)
    keys = list(islice(differing, MOST_KEYS))
    metrics = _metrics_shown(runs)
    best = {name: _best(runs, name) for name in metrics}
    rows = []
    for i, run in enumerate(runs):
        cells = [Cell(overview.labels[i], link=_link(run, base)), Cell(state=run.status.state, kind="text")]
        cells += [Cell(differing[key][i], kind="text") for key in keys]
        for name in metrics:
            value = run.last(name)
            cells.append(Cell(number(value), value, "best" if best[name] is not None and value == best[name] else ""))
        rows.append([*cells, Cell(duration(run.seconds), run.seconds)])
    notes = ["Metrics: the last value of each. Marked: the best of its column. A click on a head sorts."]
    if len(differing) > MOST_KEYS:
        rest = ", ".join(islice(differing, MOST_KEYS, 2 * MOST_KEYS))
        more = len(differing) - 2 * MOST_KEYS
        notes.append(f"{len(differing)} settings differ; not shown: {rest}{f' and {more} more' if more > 0 else ''}.")
    return Table("Runs", ["run", "status", *keys, *metrics, "time"], rows, notes, range(2 + len(keys)))


def failures_table(overview: Overview, base: Path) -> Table | None:
    """The runs that did not finish, with their errors."""
    rows = [
        [
            Cell(label, link=_link(run, base)),
            Cell(state=run.status.state, kind="text"),
            Cell(run.status.error or "", kind="text wrap"),
        ]
        for run, label in zip(overview.runs, overview.labels, strict=True)
        if run.status.state in ("failed", "killed", "interrupted")
    ]
    return Table("Runs that did not finish", ["run", "status", "error"], rows, text_columns=(0, 1, 2)) if rows else None


def _contents(overview: Overview, base: Path) -> dict[str, Any]:
    trained = [(label, run) for label, run in zip(overview.labels, overview.runs, strict=True) if run.steps]
    labels = [label for label, _ in trained[:MOST_CURVES]]
    runs = [run for _, run in trained[:MOST_CURVES]]
    wanted = [("train/loss", "nats per token", True), ("val/loss", "nats per token", True)]
    wanted += [("train/token_accuracy", "share", False), ("train/lr", "learning rate", False)]
    wanted += [("train/tokens_per_second", "tokens per second", False)]
    charts = [c for n, unit, log in wanted if (c := metric_chart(runs, n, unit, [n], log, labels))]
    compared = [(label, run) for label, run in zip(overview.labels, overview.runs, strict=True) if run.comparison]
    return {
        "title": overview.title,
        "lead": _lead(overview),
        "summary": summary(overview),
        "sweeps": overview.sweeps,
        "sweep_tables": [sweep.table(base) for sweep in overview.sweeps],
        "sweep_links": [os.path.relpath(sweep.path, base) for sweep in overview.sweeps],
        "runs": runs_table(overview, base),
        "folded": bool(overview.sweeps) and not alone(overview),
        "failures": None if overview.sweeps else failures_table(overview, base),
        "keys": [Key(label, i) for i, label in enumerate(labels)] if charts else [],
        "charts": charts,
        "left_out": len(trained) - len(runs),
        "comparisons": [(label, *_compared(run)) for label, run in compared],
        "commands": [(label, text) for label, run in alone(overview) if (text := reproduce(run))],
        "problems": [
            f"{label}: {problem}"
            for label, run in zip(overview.labels, overview.runs, strict=True)
            for problem in run.problems
        ],
    }


def alone(overview: Overview) -> list[tuple[str, RunFolder]]:
    """The runs that belong to no sweep, by label."""
    jobs = {view.job.folder.resolve() for sweep in overview.sweeps for view in sweep.jobs}
    named = zip(overview.labels, overview.runs, strict=True)
    return [(label, run) for label, run in named if run.path.resolve() not in jobs]


def _compared(run: RunFolder) -> tuple[Table, Chart]:
    return comparison_table(run.comparison), comparison_chart(run.comparison)


def summary(overview: Overview) -> list[Tile]:
    """How many runs, how they ended, the best metrics, and all their time."""
    states = [run.status.state for run in overview.runs]
    planned = sum(job.run is None for sweep in overview.sweeps for job in sweep.jobs)
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    tiles = [Tile("runs", number(len(states) + planned), f"{planned} not started" if planned else "")]
    tiles += [Tile(state, number(count)) for state, count in counts.items() if state != "unknown"]
    ids = {run.wandb.id for run in overview.runs if run.wandb is not None}
    tiles += [Tile("W&B runs", number(len(ids)))] if ids else []
    for name in _metrics_shown(overview.runs)[:2]:
        value = _best(overview.runs, name)
        if value is not None:
            label = next(x for x, run in zip(overview.labels, overview.runs, strict=True) if run.last(name) == value)
            tiles.append(Tile(f"best {name}", number(value), label))
    seconds = sum(run.seconds or 0 for run in overview.runs)
    return [*tiles, Tile("time, all runs", duration(seconds))]


def _lead(overview: Overview) -> str:
    started = sorted(moment(str(run.provenance["started"])) for run in overview.runs if "started" in run.provenance)
    when = f"{started[0]} to {started[-1]}" if len(started) > 1 else "".join(started)
    devices = dict.fromkeys(str(run.provenance["device"]) for run in overview.runs if "device" in run.provenance)
    return " · ".join(part for part in (when, ", ".join(devices)) if part)


def _metrics_shown(runs: Sequence[RunFolder]) -> list[str]:
    """The metric that each run optimized, losses, and test accuracies and speeds: what some run has of them."""
    logged = {name for run in runs for name in run.metric_names()}
    optimized = [name for run in runs for name in run.optimized]
    tests = sorted(n for n in logged if n.startswith(("test/accuracy/", "test/tokens_per_second/")))
    wanted = dict.fromkeys([*optimized, "val/loss", "train/loss", *tests, "train/tokens_per_second"])
    return [name for name in wanted if name in logged]


def _best(runs: Sequence[RunFolder], name: str) -> float | None:
    """The best last value; runs that did not come to their end do not count."""
    done = [run for run in runs if run.status.state in ("finished", "unknown")]
    values, higher = [v for run in done if (v := run.last(name)) is not None], higher_is_better(name)
    if higher is None or len(set(values)) < 2:
        return None
    return max(values) if higher else min(values)


def _out_of_date(folder: Path) -> bool:
    page = folder / "report.html"
    sources = [folder / n for n in ("status.json", "metrics.jsonl", "samples.jsonl", "comparison.json", "stats.json")]
    newest = max((path.stat().st_mtime for path in sources if path.is_file()), default=0.0)
    return not page.is_file() or page.stat().st_mtime < newest


def _link(run: RunFolder, base: Path) -> str:
    return Path(os.path.relpath(run.path / "report.html", base)).as_posix()


def _title(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} folders: {names[0]} … {names[-1]}"


def _what_it_is(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: there is no such folder"
    near = sorted({p.parents[1] for p in islice(folder.glob("*/**/.hydra/config.yaml"), 50)})[:3]
    hint = f"; there are runs below it: {', '.join(map(str, near))} …" if near else ""
    return f"{folder}: neither a run folder (no metrics.jsonl, no .hydra) nor a sweep folder (no sweep.json){hint}"
