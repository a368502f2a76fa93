"""The same report as a W&B Report: runsets, panels, tables and the text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recdepth.settings import ConfigError

from .markdown import markdown, plain
from .overview import Overview, alone, failures_table, runs_table, summary
from .page import comparison_table, reproduce
from .runs import RunFolder, flat
from .sweep_page import SweepView

_STEP = "trainer/global_step"  # our own axis: W&B's begins at 0 again in every offline folder
_MOST_SCATTERS = 6


def push(overview: Overview, project: str | None, entity: str | None, sync: bool = True) -> str:
    """Upload what is still offline, then make the W&B Report.

    Args:
        overview: from :func:`~recdepth.reporting.read_overview`.
        project, entity: where the report goes; None: where the runs are, and the user's own.
        sync: whether to upload offline runs first.

    Returns:
        the address of the report.

    Raises:
        ConfigError: without login, without the extra ``reports``, without W&B runs, or if W&B refuses; with the remedy.
    """
    os.environ.pop("WANDB_MODE", None)  # offline is for training; here the point is to upload
    runs = [run for run in overview.runs if run.wandb is not None]
    home = project or _project(runs)
    api = _login()
    try:
        owner = entity or _entity(runs) or str(api.default_entity)
        if sync:
            _sync(runs, owner)
        report = _report(overview, home, owner)
        report.save()
    except Exception as error:
        import wandb

        # what the libraries raise when W&B refuses or cannot be reached; anything else is a mistake of ours
        if not isinstance(error, (wandb.Error, ValueError, OSError, TimeoutError)) or isinstance(error, ConfigError):
            raise
        raise ConfigError([f"push=true: W&B refused: {' '.join(str(error).split())}"]) from error
    return str(report.url)


def _login() -> Any:
    try:
        import wandb
        import wandb_workspaces.reports.v2  # noqa: F401
    except ModuleNotFoundError as error:
        remedy = 'pip install -c constraints.txt -e ".[reports]"'
        raise ConfigError([f"push=true needs {error.name}, which is not installed: {remedy}"]) from error
    host = wandb.setup().settings.base_url
    remedy = f"run `wandb login --host {host}`, or set WANDB_API_KEY (a key is at {host}/authorize)"
    try:
        if not wandb.login(prompt=False, verify=True):
            raise ConfigError([f"push=true: not logged in to W&B at {host}: {remedy}; then the same command again"])
        return wandb.Api()
    except wandb.Error as error:
        raise ConfigError([f"push=true: {' '.join(str(error).split())} ({host}): {remedy}"]) from error


def _project(runs: Sequence[RunFolder]) -> str:
    projects = sorted({run.wandb.project for run in runs if run.wandb is not None})
    if not projects:
        raise ConfigError(["push=true: none of these runs was logged to W&B (logger=wandb); there is nothing to show"])
    if len(projects) > 1:
        raise ConfigError([f"push=true: the runs are in several projects, {', '.join(projects)}; give project=…"])
    return projects[0]


def _entity(runs: Sequence[RunFolder]) -> str | None:
    return next((run.wandb.entity for run in runs if run.wandb is not None and run.wandb.entity), None)


def _sync(runs: Sequence[RunFolder], entity: str) -> None:
    """Upload the offline folders that are not uploaded yet, those of one run in one call, oldest first."""
    waiting = {folder: run for run in runs if run.wandb is not None for folder in run.wandb.unsynced()}
    busy = sorted({str(run.path) for run in waiting.values() if run.status.state == "running"})
    if busy:
        raise ConfigError([f"push=true: {path} is still running; wait for it, or set sync=false" for path in busy])
    if not waiting:
        return
    ids = {run.wandb.id for run in waiting.values() if run.wandb is not None}
    print(f"Uploading {len(waiting)} offline folder(s) of {len(ids)} run(s) …", flush=True)
    command = [sys.executable, "-m", "wandb", "sync", "--entity", entity, *map(str, sorted(waiting, key=_started))]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    left = [str(folder) for folder in waiting if not list(folder.glob("*.wandb.synced"))]
    if left:
        why = done.stdout.strip().splitlines()[-1:]
        problem = f"push=true: W&B did not take {', '.join(left)} ({''.join(why)})"
        raise ConfigError([f"{problem}; `wandb sync {left[0]}` says more; sync=false leaves it out"])


def _started(folder: Path) -> str:
    return folder.name  # offline-run-DAY_TIME-ID


# ----------------------------------------------------------------------------------------------------------- the report


def _report(overview: Overview, project: str, entity: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.TableOfContents(), wr.MarkdownBlock(text=_facts(overview))]
    for sweep in overview.sweeps:
        blocks += _sweep_blocks(sweep, project, entity)
    single = alone(overview)
    if single:
        table = runs_table(overview, Path())
        blocks += [wr.H2(text="Runs"), wr.MarkdownBlock(text=markdown(table))]
        logged = [run for _, run in single if run.wandb is not None]
        if logged:
            blocks.append(wr.PanelGrid(runsets=_of_runs(logged, entity), panels=_line_plots(logged)))
    if not overview.sweeps and (failed := failures_table(overview, Path())) is not None:
        blocks += [wr.H2(text="Did not finish"), wr.MarkdownBlock(text=markdown(failed))]
    for label, run in zip(overview.labels, overview.runs, strict=True):
        if run.comparison:
            text = markdown(comparison_table(run.comparison))
            blocks += [wr.H2(text=f"Samplers compared: {label}"), wr.MarkdownBlock(text=text)]
    blocks += _commands([(label, reproduce(run)) for label, run in single])
    return wr.Report(project=project, entity=entity, title=overview.title[:128], width="fluid", blocks=blocks)


def _facts(overview: Overview) -> str:
    lines = [f"- **{plain(tile.label)}**: {plain(tile.value)}" for tile in summary(overview)]
    notes = [f" ({plain(tile.note)})" if tile.note else "" for tile in summary(overview)]
    return "\n".join(line + note for line, note in zip(lines, notes, strict=True))


def _sweep_blocks(sweep: SweepView, project: str, entity: str) -> list[Any]:
    import wandb_workspaces.expr as expr
    import wandb_workspaces.reports.v2 as wr

    runs = [view.run for view in sweep.jobs if view.run is not None and view.run.wandb is not None]
    blocks: list[Any] = [wr.H2(text=f"Sweep {sweep.name}"), wr.MarkdownBlock(text=markdown(sweep.table(Path())))]
    if runs:
        known = {(run.wandb.project, run.wandb.entity or entity) for run in runs if run.wandb is not None}
        group = expr.Metric("Group") == sweep.name
        runsets = [wr.Runset(entity=e, project=p, name=sweep.name, filters=[group]) for p, e in sorted(known)]
        panels = [*_line_plots(runs), *_sweep_plots(sweep, runs)]
        blocks.append(wr.PanelGrid(runsets=runsets, panels=panels))
    return [*blocks, *_commands([("", sweep.reproduce())])]


def _of_runs(runs: Sequence[RunFolder], entity: str) -> list[Any]:
    """A runset a project, of these runs alone."""
    import wandb_workspaces.expr as expr
    import wandb_workspaces.reports.v2 as wr

    ids: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        assert run.wandb is not None
        ids.setdefault((run.wandb.project, run.wandb.entity or entity), []).append(run.wandb.id)
    return [
        wr.Runset(entity=e, project=p, name="Runs", filters=[expr.Metric("ID").isin(sorted(set(found)))])
        for (p, e), found in ids.items()
    ]


def _line_plots(runs: Sequence[RunFolder]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    logged = {name for run in runs for name in run.metric_names()}
    wanted = {"train/loss": True, "val/loss": True, "train/token_accuracy": False, "train/tokens_per_second": False}
    return [
        wr.LinePlot(title=name, x=_STEP, y=[name], log_y=log, layout=wr.Layout(x=8 * (i % 3), y=8 * (i // 3), w=8, h=8))
        for i, (name, log) in enumerate((n, log) for n, log in wanted.items() if n in logged)
    ]


def _sweep_plots(sweep: SweepView, runs: Sequence[RunFolder]) -> list[Any]:
    """Parallel coordinates of swept settings and metrics; the metric against each setting and the other one."""
    import wandb_workspaces.reports.v2 as wr

    settings = {key for run in runs for key, value in flat(run.config) if isinstance(value, (int, float, str))}
    keys = [key for key in sweep.sweep.swept if key in settings]
    metrics = [wr.SummaryMetric(name) for name in sweep.sweep.metrics]
    if not metrics:
        return []
    axes: list[Any] = [*map(wr.Config, keys), *metrics]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes]
    where = wr.Layout(x=0, y=16, w=24, h=9)
    plots: list[Any] = [wr.ParallelCoordinatesPlot(title="Parallel coordinates", columns=columns, layout=where)]
    pairs: list[tuple[Any, Any]] = [(metrics[1], metrics[0])] if len(metrics) > 1 else []
    pairs += [(wr.Config(key), metrics[0]) for key in keys]
    for i, (across, up) in enumerate(pairs[:_MOST_SCATTERS]):
        where = wr.Layout(x=8 * (i % 3), y=25 + 8 * (i // 3), w=8, h=8)
        plots.append(wr.ScatterPlot(title=f"{up.name} against {across.name}", x=across, y=up, layout=where))
    return plots


def _commands(commands: Iterable[tuple[str, str]]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = []
    for label, text in commands:
        if text:
            blocks += [
                wr.H3(text=f"Reproduce {label}".strip()),
                wr.MarkdownBlock(text=f"```bash\n{text.replace('```', '')}\n```"),
            ]
    return blocks
