"""The wavefront of one sample: the text from left to right, the steps from top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from recdepth.sampling import Trace

from .style import GREY, INK, PALETTE, RED, figure, save

_DONE = "#e3e6e8"


@dataclass(frozen=True)
class WavefrontGrid:
    """What happened to one row, laid out on positions × steps.

    Attributes:
        first: position of the grid's first line.
        edges: [steps + 1], core passes before each step and after the last.
        depth, residual: what each lane had after the step; nan where there was no lane.
        flipped: the lane's token changed at the end of the step.
        committed: the step at which a position became final; ``steps`` if never.
        tokens: the last token seen at each position, and one more that the last lane proposed; -1 if none.
    """

    first: int
    edges: Float[np.ndarray, " edges"]
    depth: Float[np.ndarray, "positions steps"]
    residual: Float[np.ndarray, "positions steps"]
    flipped: Bool[np.ndarray, "positions steps"]
    committed: np.ndarray
    tokens: list[int]

    @classmethod
    def of(cls, trace: Trace, row: int = 0) -> WavefrontGrid:
        """Lay out a row of a trace.

        Raises:
            ValueError: if the trace has no step for that row.
        """
        steps = trace.steps_of(row)
        if not steps:
            raise ValueError(f"the trace has no step of row={row}: it is empty, or the first token ended the text")
        used = np.concatenate([s.positions[row][s.positions[row] >= 0] for s in steps])
        first, lines = int(used.min()), int(used.max() - used.min()) + 1
        depth = np.full((lines, len(steps)), np.nan)
        residual = depth.copy()
        flipped = np.zeros(depth.shape, dtype=bool)
        committed = np.full(lines, len(steps))
        tokens = np.full(lines + 1, -1)
        for column, step in enumerate(steps):
            lanes = np.nonzero(step.positions[row] >= 0)[0]
            at = step.positions[row][lanes] - first
            depth[at, column] = step.depth[row][lanes]
            residual[at, column] = step.residual[row][lanes]
            flipped[at, column] = step.flipped[row][lanes]
            committed[at[step.committed[row][lanes]]] = column
            tokens[at] = step.tokens[row][lanes]
            proposals = step.proposals[row][lanes]
            tokens[at[proposals >= 0] + 1] = proposals[proposals >= 0]
        before = trace.steps.index(steps[0])
        edges = [trace.steps[before - 1].core_passes if before else 0, *(s.core_passes for s in steps)]
        return cls(first, np.array(edges, dtype=float), depth, residual, flipped, committed, tokens.tolist())


def plot_wavefront(
    trace: Trace,
    path: Path | str,
    tokens_to_text: Callable[[list[int]], str] | None = None,
    row: int = 0,
    colour: Literal["depth", "residual"] = "depth",
    num_steps: int | None = None,
) -> Path:
    """Draw which positions were being refined at each step, when drafts flipped, and when they were committed.

    Args:
        trace: from a call with ``trace=``.
        path: of the PNG.
        tokens_to_text: decodes token ids for the labels; without it, positions are numbered.
        row: which prompt of the batch.
        colour: ``depth`` (recurrences since the lane's token last changed) or ``residual`` (latent difference).
        num_steps: recurrences per token of an autoregressive sampler whose path is drawn for contrast; None for none.

    Returns:
        the path.

    Raises:
        ValueError: for an empty trace, or a residual that was not computed.
    """
    if colour not in ("depth", "residual"):
        raise ValueError(f"colour={colour!r} is unknown; take 'depth' or 'residual'")
    grid = WavefrontGrid.of(trace, row)
    width = np.clip(2.5 + 0.15 * len(grid.tokens), 8.5, 24.0)
    fig, (ax,) = figure(float(width), float(np.clip(2.2 + 0.1 * grid.depth.shape[1], 4.5, 16.0)))
    _draw_cells(ax, grid, colour)
    _draw_flips(ax, grid)
    handles = [
        Patch(color=_DONE, label="committed: final, costs nothing more"),
        Line2D([], [], color=INK, lw=2, label="commit"),
        Line2D([], [], color=RED, marker="x", ls="", ms=6, mew=1.6, label="draft flipped"),
    ]
    if num_steps is not None:
        handles.append(_draw_autoregressive(ax, grid, num_steps))
    _label(ax, grid, tokens_to_text, num_steps)
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)
    return save(fig, path)


def _draw_cells(ax: Axes, grid: WavefrontGrid, colour: str) -> None:
    values = grid.depth if colour == "depth" else grid.residual
    finite = values[np.isfinite(values) & (values > 0)]
    if not finite.size:
        raise ValueError(f"colour={colour!r} was not computed by this sampler; take colour='depth'")
    norm = (
        Normalize(0 if finite.min() == finite.max() else finite.min(), finite.max())
        if colour == "depth"
        else LogNorm(finite.min(), finite.max())
    )
    places = np.arange(grid.depth.shape[0] + 1) - 0.5
    done = np.arange(grid.depth.shape[1]) > grid.committed[:, None]
    ax.pcolormesh(places, grid.edges, np.ma.masked_where(~done, done).T, cmap=ListedColormap([_DONE]), vmin=0, vmax=1)
    shown = ax.pcolormesh(
        places,
        grid.edges,
        np.ma.masked_invalid(values).T,
        cmap="viridis_r" if colour == "depth" else "viridis",
        norm=norm,
        edgecolors="white",
        linewidth=0.4,
    )
    label = "recurrences since the draft last changed" if colour == "depth" else "latent difference of the last step"
    bar = ax.figure.colorbar(shown, ax=ax, pad=0.01, aspect=30)
    bar.set_label(label, fontsize=10)
    if colour == "depth":
        bar.locator = MaxNLocator(integer=True)
    for place, column in enumerate(grid.committed):
        if column < grid.depth.shape[1]:
            ax.plot([place - 0.5, place + 0.5], [grid.edges[column + 1]] * 2, color=INK, lw=2, solid_capstyle="butt")


def _draw_flips(ax: Axes, grid: WavefrontGrid) -> None:
    place, column = np.nonzero(grid.flipped)
    centres = (grid.edges[:-1] + grid.edges[1:]) / 2
    ax.plot(place, centres[column], "x", color=RED, ms=4, mew=1.3)


def _draw_autoregressive(ax: Axes, grid: WavefrontGrid, num_steps: int) -> Line2D:
    """The position that an autoregressive sampler works on after the same number of core passes."""
    passes = np.arange(grid.edges[0], grid.edges[-1] + 1)
    position = (passes - grid.edges[0]) // num_steps
    label = f"one token at a time, r = {num_steps}"
    (line,) = ax.plot(position, passes, color=PALETTE[0], lw=2, ls=(0, (4, 2)), drawstyle="steps-pre", label=label)
    return line


def _label(
    ax: Axes, grid: WavefrontGrid, tokens_to_text: Callable[[list[int]], str] | None, num_steps: int | None
) -> None:
    places = len(grid.tokens)
    ax.set_xlim(-0.5, places - 0.5)
    ax.set_ylim(grid.edges[-1], grid.edges[0])
    if tokens_to_text is None:
        ax.set_xlabel("position")
        ticks = range(0, places, max(1, places // 12))
        ax.set_xticks(ticks, [str(grid.first + i) for i in ticks])
    else:
        ticks = range(0, places, max(1, places // 90))
        texts = [_visible(tokens_to_text([grid.tokens[i]])) if grid.tokens[i] >= 0 else "" for i in ticks]
        ax.set_xticks(ticks, texts, fontsize=9, rotation=90, parse_math=False)
        ax.tick_params(axis="x", length=0)
    ax.set_ylabel("sequential core passes")
    title = f"{places} tokens in {int(grid.edges[-1] - grid.edges[0])} core passes, {grid.depth.shape[1]} steps"
    if num_steps is not None:
        title += f"; one token at a time: {(places - 1) * num_steps} core passes"
    ax.set_title(title, loc="left", color=INK)
    ax.spines[["left", "bottom"]].set_color(GREY)


def _visible(text: str) -> str:
    """A label that can be seen: white space written out, long tokens cut."""
    shown = text.strip() or {"": "∅", " ": "␣"}.get(text, repr(text)[1:-1])
    return shown if len(shown) <= 14 else shown[:13] + "…"
