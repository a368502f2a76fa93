"""The end of a sweep: one table on the screen, ``sweep.csv``, and the pictures."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .style import save
from .sweep import Job, Sweep, write_csv
from .sweep_figures import plot_metric_by_key, plot_parallel, plot_pareto, ranked

#: Each is written to ``<name>.png`` in the sweep folder, where there is something to draw.
FIGURES: dict[str, Callable[[Sweep], Figure | None]] = {
    "metric_by_key": plot_metric_by_key,
    "parallel": plot_parallel,
    "pareto": plot_pareto,
}
_COLOURS = {"failed": "red", "killed": "red", "interrupted": "yellow", "running": "cyan", "pending": "dim"}
_MOST = 40  # finished jobs in the table; sweep.csv has all


def summarize(sweep: Sweep, console: Console | None = None) -> list[Path]:
    """Print the table, write ``sweep.csv`` and the pictures; returns the files written."""
    console = console or Console()
    written = [write_csv(sweep)]
    for name, draw in FIGURES.items():
        fig = draw(sweep)
        if fig is not None:
            written.append(save(fig, sweep.folder / f"{name}.png"))
    print_sweep(sweep, console)
    console.print(f"Sweep folder: {sweep.folder}  ({', '.join(p.name for p in written)})", soft_wrap=True)
    return written


def print_sweep(sweep: Sweep, console: Console | None = None) -> None:
    """Print the jobs, best first, then those that have not finished with why, and how to go on."""
    console = console or Console()
    table = Table(title=f"Sweep {sweep.name}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("job", justify="right")
    table.add_column("state", no_wrap=True)
    keys = sweep.swept
    for name in short_names(keys):
        table.add_column(name, overflow="fold")
    for name in sweep.metrics:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    best = ranked(sweep)
    for job in [*best[:_MOST], *sweep.unfinished]:
        table.add_row(*_cells(job, keys, sweep.metrics))
    console.print(table)
    if len(best) > _MOST:
        console.print(f"{len(best) - _MOST} more finished jobs: sweep.csv", highlight=False)
    troubled = sweep.of_state("failed", "killed", "interrupted")
    for job in troubled:
        head = Text(f"job {job.status.job} {job.status.state}: ", style=_COLOURS[job.status.state])
        console.print(head.append(job.status.error or "", style="default"), soft_wrap=True)
        console.print(Text(f"    {' '.join(job.status.overrides)}", style="dim"), soft_wrap=True)
    counts = {state: len(sweep.of_state(state)) for state in ("finished", *_COLOURS)}  # type: ignore[arg-type]
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    console.print(f"{len(sweep.jobs)} jobs: {said}", highlight=False)
    if sweep.unfinished:
        command = f"python {sweep.program}.py sweep.resume={shlex.quote(str(sweep.folder))}"
        console.print(f"To run what has not finished: {command}", soft_wrap=True, highlight=False)


def short_names(keys: list[str]) -> list[str]:
    """The last parts of dotted keys, as many as tell them apart."""
    parts = [key.split(".") for key in keys]
    names = []
    for own in parts:
        length = next(n for n in range(1, len(own) + 1) if n == len(own) or sum(p[-n:] == own[-n:] for p in parts) == 1)
        names.append(".".join(own[-length:]))
    return names


def _cells(job: Job, keys: list[str], metrics: list[str]) -> list[str | Text]:
    status = job.status
    state = Text(status.state, style=_COLOURS.get(status.state, "green"))
    values = [f"{job.metrics[name]:.5g}" if name in job.metrics else "" for name in metrics]
    seconds = f"{status.seconds:.1f}" if status.seconds is not None else ""
    settings = [_shown(job.settings.get(key, "")) for key in keys]
    return [str(status.job), state, *settings, *values, seconds]


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
