"""The sampler benchmark's tables and picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]

_WIDE = 132  # characters; a narrower console gets no intervals
_NAME: Column = ("sampler", lambda row: str(row["sampler"]))
_VERDICTS = {"equal": "equal", "not distinguishable": "n. d.", "different": "different"}


class Grid(NamedTuple):
    """A table: its title, headers, rows of cells, and what the columns mean."""

    title: str
    headers: list[str]
    rows: list[list[str]]
    note: str


def show(head: Row, rows: Sequence[Row], console: Console) -> None:
    """Print the tables, and how many texts of lossless samplers are the reference's.

    Args:
        head: what holds for all samplers.
        rows: of the samplers, the reference first.
        console: where to.
    """
    narrow = console.width < _WIDE
    for grid in tables(head, rows):
        table = Table(
            title=grid.title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for i, name in enumerate(grid.headers):
            table.add_column(name, justify="right" if i else "left", no_wrap=True)
        for cells in grid.rows:
            table.add_row(*(cell.split(" (")[0] for cell in cells) if narrow else cells)
        console.print(table)
        console.print(grid.note, style="dim", highlight=False)
    for line in identical_texts(rows):
        console.print(line, highlight=False)


def tables(head: Row, rows: Sequence[Row]) -> list[Grid]:
    """What was found and where time and memory go; columns of parts that were not measured are left out."""
    first, reference = rows[0], head["reference"]
    baseline = first.get("equal_accuracy_baseline", reference)
    accuracy = (
        f"accuracy: with its 95 % interval, on {first['n']} prompts. Δ: points to {reference}, paired, with its 95 % "
        "interval. verdict: equal (Δ of at least -0.5 over at least 2000 prompts), n. d. (not distinguishable: fewer "
        "prompts, the interval holds 0) or different."
    )
    speed = (
        f" tok/s: median and quartiles over {first.get('speed_n')} prompts at batch 1, in turn, in the faster mode. "
        f"× {reference}, × {baseline}: speed-ups with 95 % intervals; {baseline} is the fastest AR whose accuracy is "
        "no worse."
    )
    waited = " Per text: steps, and those until all its drafts were right for good." if "waiting" in first else ""
    work = (
        "Per token: core passes (sequential), prefill passes, work (recurrences × positions), read-outs, flips. %: of "
        "the time, inside the core, the prelude, the coda, graphs that do more than one of these, and the rest."
        + waited
    )
    batched = first.get("batches", {}).values()
    alone = ", then without prefills" if any("decoding_over_batch_1" in found for found in batched) else ""
    costs = (
        "/ bare: seconds over those of the same core passes alone. peak: allocated by torch during a call. b n: "
        f"tokens/s in batches of n, and over batch 1{alone}; *: the texts differ."
    )
    parts = [
        ("Accuracy and speed", _main_columns(reference, baseline), accuracy + (speed if "speed_n" in first else "")),
        ("Work per token, shares of time", [_NAME, *_work_columns()], work),
        ("Bound, memory, batches", [_NAME, *_cost_columns(first)], costs),
    ]
    grids = []
    for title, columns, note in parts:
        shown = [(name, cell) for name, cell in columns if all(_has(cell, row) for row in rows)]
        if len(shown) > 1:
            cells = [[cell(row) for _, cell in shown] for row in rows]
            grids.append(Grid(title, [name for name, _ in shown], cells, note))
    return grids


def identical_texts(rows: Sequence[Row]) -> list[str]:
    """For each lossless sampler, how many of its texts are the reference's."""
    lines = []
    for row in rows:
        if "lossless" in row:
            one = row["lossless"].get("batch_1")
            lines.append(
                f"{row['sampler']}: {_identical(row['lossless'])} texts as {row['lossless']['reference']}'s in batches"
                + (f", {_identical(one)} at batch 1" if one else "")
            )
    return lines


def _has(cell: Callable[[Row], str], row: Row) -> bool:
    """Whether the part that a column shows was measured."""
    try:
        cell(row)
    except KeyError:
        return False
    return True


def _main_columns(reference: str, baseline: str) -> list[Column]:
    def spread(key: str, row: Row) -> str:
        return f"{row[key]:.2f} ({row[f'{key}_low']:.2f}-{row[f'{key}_high']:.2f})"

    return [
        _NAME,
        ("accuracy, %", lambda row: f"{100 * row['accuracy']:.1f} ({_percent(row, 'accuracy', '.1f')})"),
        (f"Δ {reference}", lambda row: f"{100 * row['difference']:+.1f} ({_percent(row, 'difference', '+.1f')})"),
        ("verdict", lambda row: _VERDICTS[row["verdict"]]),
        ("tok/s", lambda row: f"{row['tokens_per_second']:.0f} ({_quartiles(row)})"),
        ("mode", lambda row: str(row["mode"])),
        (f"× {reference}", lambda row: spread("speedup", row)),
        (f"× {baseline}", lambda row: spread("speedup_equal_accuracy", row)),
    ]


def _work_columns() -> list[Column]:
    def share(part: str) -> Callable[[Row], str]:
        return lambda row: f"{100 * row['shares'].get(part, 0):.0f}"  # older results have no fused graphs

    def per_token(key: str) -> Callable[[Row], str]:
        return lambda row: f"{row[f'{key}_per_token']:.2f}"

    return [
        ("core", per_token("core_passes")),
        ("pre", per_token("prefill_passes")),
        ("work", per_token("token_passes")),
        ("reads", per_token("readouts")),
        ("flips", per_token("flips")),
        ("steps", lambda row: f"{row['waiting']['steps']:.1f}"),
        ("right", lambda row: f"{row['waiting']['right_by']:.1f}"),
        ("core %", share("core")),
        ("emb %", share("embed")),
        ("dec %", share("decode")),
        ("fused %", share("fused")),
        ("rest %", share("bookkeeping")),
    ]


def _cost_columns(first: Row) -> list[Column]:
    def batch(size: str) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            found = row["batches"][size]
            mark = "" if found["texts_as_at_batch_1"]["identical_share"] == 1 else "*"
            alone = found.get("decoding_over_batch_1")  # older results do not say
            decoding = f", {alone:.1f}×" if alone and size != "1" else ""
            return f"{found['tokens_per_second']:.0f}{mark} ({found['over_batch_1']:.1f}×{decoding})"

        return cell

    return [
        ("/ bare", lambda row: f"{row['bound']['ratio']:.2f}"),
        ("peak, MB", lambda row: f"{row['memory']['peak_bytes'] / 1e6:.1f}"),
        ("KV, MB", lambda row: f"{row['memory']['kv_cache_bytes'] / 1e6:.1f}"),
        *((f"b {size}", batch(size)) for size in first.get("batches", {})),
    ]


def _percent(row: Row, key: str, form: str) -> str:
    return f"{100 * row[f'{key}_low']:{form}} to {100 * row[f'{key}_high']:{form}}"


def _quartiles(row: Row) -> str:
    return f"{row['tokens_per_second_quartile_low']:.0f}-{row['tokens_per_second_quartile_high']:.0f}"


def _identical(found: Mapping[str, Any]) -> str:
    return f"{found['identical']} of {found['texts']}"
