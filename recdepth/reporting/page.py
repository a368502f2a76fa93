"""A run folder as one self-contained HTML page."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from .comparison import table_cells
from .curves import plot_depth_loss, plot_training_curves, read_metrics

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #202124; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
img { max-width: 100% } table { border-collapse: collapse }
td, th { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #e3e6e8 }
td:first-child, th:first-child { text-align: left }
pre { background: #f6f8f9; padding: .8rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap }
small { color: #5f6368 }
"""


def write_report(run_dir: Path | str) -> Path:
    """Write ``report.html`` into a run folder: comparison, pictures, curves, samples and configuration.

    Everything is inside the one file, so that it can be sent around. What the folder does not hold is left out.

    Args:
        run_dir: a run folder with ``metrics.jsonl``.

    Returns:
        the path of the page; ``curves.png`` and ``depth_loss.png`` are written beside it.

    Raises:
        ValueError: if the folder holds no ``metrics.jsonl``.
    """
    folder = Path(run_dir)
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise ValueError(f"{folder} holds no metrics.jsonl: it is no run folder, or the run never logged")
    names = {name for record in read_metrics(metrics) for name in record}
    if names & {"train/loss", "val/loss"}:
        plot_training_curves(metrics, folder / "curves.png")
    if any(name.startswith("val/loss_depth_") for name in names):
        plot_depth_loss(metrics, folder / "depth_loss.png")
    sections = [
        _section("Samplers compared", folder / "comparison.json", _comparison),
        _section("Speed and accuracy", folder / "comparison.png", _picture),
        _section("Wavefront of one sample", folder / "wavefront.png", _picture),
        _section("Training", folder / "curves.png", _picture),
        _section("Loss by recurrences", folder / "depth_loss.png", _picture),
        _section("Samples", folder / "samples.jsonl", _samples),
        _section("Configuration", folder / ".hydra" / "config.yaml", _text),
        _section("Overrides", folder / ".hydra" / "overrides.yaml", _text),
    ]
    title = escape("/".join(folder.resolve().parts[-2:]))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>Run {title}</h1>{''.join(sections)}</html>\n"
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _section(title: str, path: Path, render: Callable[[Path], str]) -> str:
    return f"<h2>{title}</h2>{render(path)}" if path.is_file() else ""


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">'


def _text(path: Path) -> str:
    return f"<pre>{escape(path.read_text(encoding='utf-8'))}</pre>"


def _samples(path: Path, most: int = 6) -> str:
    """The last samples; half-written lines of a running job are left out by ``read_metrics``."""
    shown = [
        f"{escape(str(s.get('sampler', '')))}, score {escape(str(s.get('score')))}\n"
        f"{escape(str(s.get('prompt', '')))}\n→ {escape(str(s.get('text', '')))}"
        for s in read_metrics(path)[-most:]
    ]
    return "".join(f"<pre>{text}</pre>" for text in shown)


def _comparison(path: Path) -> str:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    reference, baseline = rows[0]["sampler"], rows[0]["equal_accuracy_baseline"]
    headers: tuple[str, ...] = (
        "sampler",
        "accuracy, % (95 %)",
        "agreement, %",
        "tokens/s",
        f"× {reference}",
        f"× {baseline}",
    )
    headers += ("core passes per token", "token passes per token")
    head = "".join(f"<th>{escape(h)}</th>" for h in headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in table_cells(row)) + "</tr>" for row in rows)
    note = (
        f"{escape(baseline)} is the fastest one-token-at-a-time sampler whose accuracy is not distinguishable from "
        f"that of {escape(reference)}. Speed: batch 1, median over {rows[0]['speed_n']} prompts, samplers in turn."
    )
    machine = ", ".join(f"{k} {v}" for k, v in rows[0].get("machine", {}).items())
    return f"<table><tr>{head}</tr>{body}</table><p><small>{note}<br>{escape(machine)}</small></p>"
