"""A sweep on a page: its jobs, why some did not finish, and the pictures of its metrics."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from .charts import svg
from .html import Cell, Chart, Table, duration, number
from .runs import RunFolder, is_run_folder, read_run
from .sweep import PLAN, Job, Sweep, read_sweep
from .sweep_figures import pareto_front, plot_metric_by_key, plot_parallel, plot_pareto, ranked

_PICTURES = {
    "Pareto front": plot_pareto,
    "Parallel coordinates": plot_parallel,
    "Metric against each swept key": plot_metric_by_key,
}


@dataclass(frozen=True)
class JobView:
    """A job with its run folder; run is None where it has not started."""

    job: Job
    run: RunFolder | None


@dataclass(frozen=True)
class SweepView:
    """What a page shows of a sweep."""

    sweep: Sweep
    jobs: list[JobView]
    charts: list[Chart]

    @property
    def path(self) -> Path:
        """The sweep's folder."""
        return self.sweep.folder

    @property
    def name(self) -> str:
        """The sweep's name, which is also that of its W&B group."""
        return self.sweep.name

    def reproduce(self) -> str:
        """The command that starts this sweep again."""
        return shlex.join(["python", f"{self.sweep.program}.py", "-m", *self.sweep.command])

    def resume(self) -> str:
        """The command that runs the jobs that have not finished; "" if all have."""
        if not self.sweep.unfinished:
            return ""
        return shlex.join(["python", f"{self.sweep.program}.py", f"sweep.resume={self.path}"])

    def table(self, base: Path) -> Table:
        """All jobs: the finished ones first, best first, then the others with their errors."""
        runs = {view.job.folder: view.run for view in self.jobs}
        front = {job.folder for job in pareto_front(self.sweep)} if len(self.sweep.metrics) > 1 else set()
        keys, names = self.sweep.swept, self.sweep.metrics
        best = ranked(self.sweep)[:1]
        rows = []
        for job in [*ranked(self.sweep), *self.sweep.unfinished]:
            run = runs.get(job.folder)
            name = Cell(f"job {job.status.job}", job.status.job, link=_link(job, base) if run is not None else None)
            cells = [name, Cell(state=job.status.state, kind="text")]
            cells += [Cell(number(job.settings.get(key)), job.settings.get(key)) for key in keys]
            for metric in names:
                value = job.metrics.get(metric)
                marked = job.folder in front or (metric == names[0] and job in best)
                cells.append(Cell(number(value), value, "best" if marked and value is not None else ""))
            cells += [Cell(duration(job.status.seconds), job.status.seconds)]
            rows.append([*cells, Cell(job.status.error or "", kind="wrap")])
        goals = [f"{name} ({goal})" for name, goal in zip(names, self.sweep.directions, strict=True)]
        notes = [f"Optimized: {', '.join(goals)}. The best is marked{', and the Pareto front' if front else ''}."]
        heads = ["job", "status", *keys, *names, "time", "error"]
        return Table(f"Jobs of {self.name}", heads, rows, notes if names else [], (0, 1, len(heads) - 1))


def is_sweep_folder(folder: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (folder / PLAN).is_file()


def view_sweep(folder: Path | str) -> SweepView:
    """Read a sweep folder and draw its pictures.

    Raises:
        ValueError: if it is none.
    """
    sweep = read_sweep(folder)
    jobs = [JobView(job, read_run(job.folder) if is_run_folder(job.folder) else None) for job in sweep.jobs]
    charts = []
    for title, draw in _PICTURES.items():
        if (figure := svg(draw, sweep, label=f"{title} of sweep {sweep.name}")) is not None:
            charts.append(Chart(title, figure, wide=True, light=draw is plot_parallel))
    return SweepView(sweep, jobs, charts)


def _link(job: Job, base: Path) -> str:
    return Path(os.path.relpath(job.folder / "report.html", base)).as_posix()
