"""Curves of a run, from its ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .style import PALETTE, figure, save

_DEPTH = re.compile(r"^val/loss_depth_(\d+)$")


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a half-written last line (of a running job) is left out.

    Raises:
        ValueError: for a line in the middle that is not JSON.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path} line {number} is not JSON: {error}") from error
    return records


def series(records: Iterable[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric; records without it, and values that are not finite, are left out."""
    points = [(r["step"], r[name]) for r in records if "step" in r and isinstance(r.get(name), (int, float))]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    return [step for step, _ in points], [value for _, value in points]


def plot_training_curves(metrics: Path | str, path: Path | str) -> Path:
    """Losses (left) and accuracies of the samplers (right) against optimizer steps.

    Args:
        metrics: a ``metrics.jsonl``.
        path: of the PNG.

    Raises:
        ValueError: if the file holds no loss.
    """
    records = read_metrics(metrics)
    names = sorted({name for record in records for name in record})
    losses: list[str] = [n for n in ("train/loss", "val/loss") if n in names]
    accuracies = [n for n in names if n.startswith("val/accuracy")]
    if not losses:
        raise ValueError(f"{metrics} holds neither train/loss nor val/loss: no curve to draw")
    fig, axes = figure(11 if accuracies else 7, 4.2, columns=2 if accuracies else 1)
    for name, colour in zip(losses, PALETTE, strict=False):
        steps, values = series(records, name)
        axes[0].plot(steps, values, color=colour, lw=1.6, marker="o" if name == "val/loss" else None, ms=4, label=name)
    axes[0].set_ylabel("loss (nats per token)")
    if all(value > 0 for name in losses for value in series(records, name)[1]):
        axes[0].set_yscale("log")
    for name, colour in zip(accuracies, PALETTE * (1 + len(accuracies) // len(PALETTE)), strict=False):
        axes[1].plot(*series(records, name), color=colour, lw=1.6, marker="o", ms=4, label=name.removeprefix("val/"))
        axes[1].set_ylabel("accuracy on validation prompts")
        axes[1].set_ylim(-0.03, 1.03)
    for ax in axes:
        _finish(ax, "optimizer steps")
    return save(fig, path)


def plot_depth_loss(metrics: Path | str, path: Path | str) -> Path:
    """Validation loss against recurrences, one line per validation, later ones darker.

    Args:
        metrics: a ``metrics.jsonl`` with ``val/loss_depth_<d>``.
        path: of the PNG.

    Raises:
        ValueError: if the file holds no loss by depth.
    """
    records = read_metrics(metrics)
    if not any(_DEPTH.match(name) for record in records for name in record):
        raise ValueError(f"{metrics} holds no val/loss_depth_<d>: add the depth_loss callback to the run")
    return save(draw_depth_loss(records), path)


def draw_depth_loss(records: Iterable[dict[str, Any]], width: float = 7, height: float = 4.4) -> Figure:
    """The figure of :func:`plot_depth_loss`, of so many inches; records without losses by depth are left out."""
    records = [r for r in records if any(_DEPTH.match(name) for name in r)]
    fig, (ax,) = figure(width, height)
    for i, record in enumerate(records):
        found = [(int(m[1]), record[name]) for name in record if (m := _DEPTH.match(name))]
        depths, losses = zip(*sorted(found), strict=True)
        strength = 0.25 + 0.75 * (i + 1) / len(records)
        label = f"step {record.get('step', i)}" if i in (0, len(records) - 1) else None
        ax.plot(depths, losses, color=PALETTE[0], alpha=strength, lw=1.8, marker="o", ms=4, label=label)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.set_yscale("log")
    ax.set_ylabel("validation loss (nats per token)")
    _finish(ax, "recurrences")
    return fig


def _finish(ax: Axes, xlabel: str) -> None:
    ax.set_xlabel(xlabel)
    ax.grid(color="#eceff1")
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize=10)
