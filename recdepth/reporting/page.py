"""A run folder as one self-contained HTML page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recdepth.evaluation import wilson_interval

from .charts import CHART_SIZE, Curve, draw_curves, svg
from .comparison import draw_comparison, table_cells
from .curves import draw_depth_loss, plot_depth_loss, plot_training_curves, series
from .files import write_whole
from .html import Cell, Chart, Key, Table, Tile, duration, moment, number, picture, render, text_cells
from .runs import RunFolder, overridden, read_run
from .tuning import conclusion, notes, tables

SAMPLES_SHOWN, SAMPLES_KEPT = 6, 60
_SIGNS = tuple("+-0123456789")  # what a number begins with
_MACHINE = ("started", "device", "threads", "platform", "python", "torch", "lightning", "transformers", "git_commit")


def write_report(run_dir: Path | str, title: str | None = None) -> Path:
    """Write ``report.html`` into the folder of a training or sampling run, however far the run got.

    Everything is inside the one file, so that it can be sent around. What the folder does not hold is left out; what
    cannot be read is named.

    Args:
        run_dir: a run folder.
        title: of the page; None: made from the folder's name.

    Returns:
        the path of the page.

    Raises:
        ValueError: if the folder is no run folder.
    """
    run = read_run(run_dir)
    path = run.path / "report.html"
    return write_whole(path, render("run.html.jinja", **_contents(run, title)))


def write_pictures(run_dir: Path | str) -> list[Path]:
    """Write ``curves.png`` and ``depth_loss.png`` into a run folder, as far as its metrics go.

    Returns:
        the paths of what was written.
    """
    folder = Path(run_dir)
    names = read_run(folder).metric_names()
    metrics, found = folder / "metrics.jsonl", []
    if {"train/loss", "val/loss"} & set(names):
        found.append(plot_training_curves(metrics, folder / "curves.png"))
    if any(name.startswith("val/loss_depth_") for name in names):
        found.append(plot_depth_loss(metrics, folder / "depth_loss.png"))
    return found


def _contents(run: RunFolder, title: str | None) -> dict[str, Any]:
    samples = [_sample(s) for s in reversed(run.samples[-SAMPLES_KEPT:])]
    title = title or f"{run.config.get('task_name', 'run')} {'/'.join(run.path.resolve().parts[-2:])}"
    wavefront = run.path / "wavefront.png"
    return {
        "title": title,
        "run": run,
        "lead": _lead(run),
        "summary": summary(run),
        "comparison": comparison_table(run.comparison) if run.comparison else None,
        "comparison_figure": comparison_chart(run.comparison) if run.comparison else None,
        "evaluation": evaluation_table(run),
        **_tuning(run),
        "wavefront_picture": picture(wavefront) if wavefront.is_file() else None,
        "wavefront_page": "wavefront.html" if (run.path / "wavefront.html").is_file() else None,
        "curves": _curves(run),
        "metrics": _metrics(run),
        "samples": samples[:SAMPLES_SHOWN],
        "more_samples": samples[SAMPLES_SHOWN:],
        "samples_note": _samples_note(run),
        "overrides": _overrides(run),
        "config_lines": list(config_lines(run.config, overridden(run.overrides))),
        "reproduce": reproduce(run),
        "reproduce_notes": _reproduce_notes(run),
        "environment": _environment(run),
    }


def _lead(run: RunFolder) -> str:
    """One line: what was run, on what, when."""
    config, facts = run.config, run.provenance
    parts = [moment(str(facts["started"]))] if "started" in facts else []
    parts += [str(facts["device"])] if "device" in facts else []
    parts += [f"tags: {', '.join(map(str, config['tags']))}"] if config.get("tags") else []
    parts += [f"seed {config['seed']}"] if "seed" in config else []
    parts += [f"W&B run {run.wandb.id}"] if run.wandb is not None else []
    return " · ".join(parts)


def summary(run: RunFolder) -> list[Tile]:
    """What one wants to know first: steps, losses, accuracies, time."""
    tiles = []
    if run.steps is not None:
        done, wanted = run.steps
        tiles.append(Tile("steps", number(done), f"of {number(wanted)}" if wanted and wanted != done else ""))
    shown = ["train/loss", "val/loss", *(n for n in run.metric_names() if n.startswith("test/accuracy/"))]
    for name in dict.fromkeys([*shown, *run.optimized]):
        last, best = run.last(name), run.best(name)
        if last is not None:
            accuracy = name.startswith(("test/accuracy", "val/accuracy"))
            value = f"{100 * last:.1f} %" if accuracy else number(last)
            tiles.append(Tile(name, value, f"best {number(best)}" if best != last and not accuracy else ""))
    stats = _stats(run)
    for name in ("new_tokens", "core_passes", "recurrences_per_token", "tokens_per_second"):
        if stats.get(name) is not None:
            tiles.append(Tile(name.replace("_", " "), number(stats[name])))
    if run.seconds is not None:
        tiles.append(Tile("time", duration(run.seconds)))
    return tiles


def _stats(run: RunFolder) -> dict[str, Any]:
    path = run.path / "stats.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        run.problems.append(f"stats.json: {error}")
        return {}
    return found if isinstance(found, dict) else {}


# ------------------------------------------------------------------------------------------------------------- samplers


def comparison_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of a ``comparison.json``."""
    reference, baseline = rows[0]["sampler"], rows[0]["equal_accuracy_baseline"]
    heads = ["sampler", "accuracy, % (95 %)", "agreement, %", "tokens/s", f"× {reference}", f"× {baseline}"]
    heads += ["core passes per token", "token passes per token"]
    notes = [
        f"Accuracy: with its 95 % interval (Wilson). × {reference}: speed-up at batch 1, median over "
        f"{rows[0]['speed_n']} prompts, samplers in turn. {baseline} is the fastest one-token-at-a-time sampler whose "
        f"accuracy is not distinguishable from that of {reference}."
    ]
    return Table("Samplers compared", heads, [text_cells(*table_cells(row)) for row in rows], notes)


def comparison_chart(rows: Sequence[dict[str, Any]]) -> Chart:
    """Accuracy against speed-up."""
    return Chart("Accuracy against speed-up", svg(draw_comparison, rows, label="accuracy against speed-up"), wide=True)


def _tuning(run: RunFolder) -> dict[str, Any]:
    """What a tuning found: sentences, tables, the picture, and the winner's file; empty where the run tuned nothing."""
    if not run.tuning:
        return {"tuning": [], "tuning_tables": [], "tuning_notes": [], "tuning_picture": None, "tuned": None}
    name, drawn = f"{(run.config.get('tune') or {}).get('name')}.yaml", run.path / "tune.png"
    tuned = run.path / name
    grids = []
    for grid in tables(run.tuning):
        words = [i for i, column in enumerate(zip(*grid.rows, strict=True)) if not any(c[:1] in _SIGNS for c in column)]
        rows = [[Cell(text, kind="text" if i in words else "") for i, text in enumerate(row)] for row in grid.rows]
        grids.append(Table(grid.title, grid.headers, rows, text_columns=words))
    return {
        "tuning": conclusion(run.tuning),
        "tuning_tables": grids,
        "tuning_notes": notes(run.tuning) if grids else [],
        "tuning_picture": picture(drawn) if drawn.is_file() else None,
        "tuned": (name, tuned.read_text(encoding="utf-8")) if tuned.is_file() else None,
    }


def evaluation_table(run: RunFolder) -> Table | None:
    """The samplers of the sampler_evaluation callback on test prompts, accuracies with intervals."""
    prefix = "test/accuracy/"
    names = [name.removeprefix(prefix) for name in run.metric_names() if name.startswith(prefix)]
    if not names:
        return None
    wanted = ((run.config.get("callbacks") or {}).get("sampler_evaluation") or {}).get("items")
    count = wanted if isinstance(wanted, int) else (run.config.get("evaluation") or {}).get("items")
    kinds = ("tokens_per_second", "recurrences_per_token", "core_passes_per_token", "token_passes_per_token")
    rows = []
    for name in names:
        accuracy = run.last(prefix + name) or 0.0
        shown = f"{100 * accuracy:.1f}"
        if isinstance(count, int) and count > 0:
            low, high = wilson_interval(accuracy * count, count)[1:]
            shown += f" ({100 * low:.1f}-{100 * high:.1f})"
        rest = text_cells(*(run.last(f"test/{kind}/{name}") for kind in kinds))
        rows.append([Cell(name), Cell(shown, accuracy), *rest])
    heads = ["sampler", "accuracy, % (95 %)", *(kind.replace("_", " ") for kind in kinds)]
    note = f"On {count} test prompts, sampled together; core passes count once for a batch."
    return Table("Samplers on held-out prompts", heads, rows, [note] if count else [])


# ------------------------------------------------------------------------------------------------------------- training


def _curves(run: RunFolder) -> list[Chart]:
    names = run.metric_names()
    accuracies = [n for n in names if n.startswith(("val/accuracy", "curriculum/accuracy"))]
    wanted = [
        ("Loss", "nats per token", ["train/loss", "val/loss"], True),
        ("Accuracy", "share", ["train/token_accuracy", *accuracies], False),
        ("Learning rate", "learning rate", ["train/lr"], False),
        ("Throughput", "tokens per second", ["train/tokens_per_second"], False),
        ("Recurrences in training", "recurrences", ["train/depth"], False),
    ]
    charts = [c for title, unit, metrics, log in wanted if (c := metric_chart([run], title, unit, metrics, log))]
    if any(name.startswith("val/loss_depth_") for name in names):
        figure = svg(draw_depth_loss, run.records, *CHART_SIZE, label="validation loss against recurrences")
        charts.append(Chart("Validation loss by recurrences", figure, note="One line a validation, later ones darker."))
    return charts


def metric_chart(
    runs: Sequence[RunFolder], title: str, unit: str, metrics: Sequence[str], log: bool, labels: Sequence[str] = ()
) -> Chart | None:
    """Curves of metrics of one run, or of one metric of several runs; None if there is nothing to draw."""
    curves, keys = [], []
    for i, run in enumerate(runs):
        for j, name in enumerate(metrics):
            steps, values = series(run.records, name)
            if steps:
                style = i if labels else j
                sparse = not name.startswith("train/")
                curves.append(Curve(steps, values, style, marked=sparse and len(steps) <= 40))
                keys.append(Key(labels[i] if labels else name, style))
    if not curves:
        return None
    figure = svg(draw_curves, curves, unit, log, label=f"{title} against optimizer steps")
    return Chart(title, figure, keys if not labels and len(keys) > 1 else [])


def _metrics(run: RunFolder) -> Table | None:
    rows = [
        [Cell(name), *text_cells(run.last(name), run.best(name), len(series(run.records, name)[1]))]
        for name in run.metric_names()
    ]
    return Table("All metrics", ["metric", "last", "best", "values"], rows) if rows else None


# -------------------------------------------------------------------------------------------------------------- samples


def _sample(sample: dict[str, Any]) -> dict[str, str]:
    score = sample.get("score")
    about = [str(sample.get("sampler") or "")]
    about += [f"step {sample['step']}"] if "step" in sample else []
    about += [f"score {number(score)}"] if isinstance(score, (int, float)) and score not in (0, 1) else []
    about += [f"{name} {sample[name]}" for name in ("seed", "temperature") if sample.get(name) not in (None, 0, 0.0)]
    verdict = ""
    if isinstance(score, (int, float)):
        verdict = "right" if score == 1 else "wrong" if score == 0 else "partly right"
    return {
        "verdict": verdict,
        "about": " · ".join(a for a in about if a),
        "prompt": str(sample.get("prompt", "")),
        "text": str(sample.get("text", "")),
        "answer": str(sample["answer"]) if sample.get("answer") is not None else "",
    }


def _samples_note(run: RunFolder) -> str:
    newest: dict[str, dict[str, float]] = {}  # a prompt may be sampled at many steps, which are not independent
    for s in run.samples:
        if isinstance(score := s.get("score"), (int, float)):
            newest.setdefault(str(s.get("sampler") or ""), {})[str(s.get("prompt"))] = float(score)
    kept = f"The last {SAMPLES_KEPT} of {len(run.samples)}" if len(run.samples) > SAMPLES_KEPT else "All"
    note = f"{kept} of samples.jsonl, newest first."
    if not newest:
        return note
    found = []
    for sampler, by_prompt in newest.items():
        right, low, high = (100 * x for x in wilson_interval(sum(by_prompt.values()), len(by_prompt)))
        found.append(f"{sampler} {right:.0f} % of {len(by_prompt)} (95 %: {low:.0f}-{high:.0f})".lstrip())
    return f"{note} Right, by the newest of each prompt: {', '.join(found)}."


# ------------------------------------------------------------------------------------- configuration and how to rerun


@dataclass(frozen=True)
class ConfigLine:
    """A line of the configuration as YAML; ``changed``: its key, or that of its group, was on the command line."""

    indent: str
    text: str
    changed: bool


def config_lines(config: dict[str, Any], changed: Iterable[str], prefix: str = "", depth: int = 0) -> list[ConfigLine]:
    """A configuration as lines of YAML."""
    changed, lines = set(changed), []
    for name, value in config.items():
        key, marked = f"{prefix}{name}", f"{prefix}{name}" in changed
        if isinstance(value, dict) and value:
            lines.append(ConfigLine("  " * depth, f"{name}:", marked))
            lines += config_lines(value, changed, f"{key}.", depth + 1)
        else:
            shown = value if isinstance(value, str) and value.strip() else json.dumps(value, ensure_ascii=False)
            lines.append(ConfigLine("  " * depth, f"{name}: {shown}", marked))
    return lines


def _overrides(run: RunFolder) -> Table:
    rows = [[Cell(key), Cell(value, kind="wrap")] for key, value in overridden(run.overrides).items()]
    return Table("What was overridden", ["overridden", "value"], rows, text_columns=(0, 1))


def reproduce(run: RunFolder) -> str:
    """The commands that run this again: the commit, if known, and the command as it was given."""
    command = [str(word) for word in run.provenance.get("command", [])]
    commit = run.provenance.get("git_commit")
    lines = [f"git checkout {commit}"] if commit else []
    return "\n".join([*lines, shlex.join(command)]) if command else ""


def _reproduce_notes(run: RunFolder) -> list[str]:
    notes = []
    if run.provenance.get("git_dirty"):
        notes.append("The code had changes that were not committed.")
    if run.config.get("resume"):
        notes.append(f"The run went on from {run.config['resume']}.")
    return notes


def _environment(run: RunFolder) -> Table:
    facts = {name: run.provenance[name] for name in _MACHINE if name in run.provenance} | {"folder": run.path}
    rows = [[Cell(name.replace("_", " ")), Cell(str(fact), kind="wrap")] for name, fact in facts.items()]
    return Table("Environment", ["environment", ""], rows, text_columns=(0, 1))
