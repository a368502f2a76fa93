"""What sample.py shows and writes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .sampling import SampleStats
from .sources import Prompt

_console = Console()


def show(line: str) -> None:
    """Print a line as it is."""
    _console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_sample(prompt: Prompt, text: str, score: float | None) -> None:
    """Print a prompt (dimmed) and its continuation; for a task's item also whether it is right."""
    show_prompt(prompt)
    _console.print(Text(text), soft_wrap=True)
    show_verdict(prompt, score)


def show_prompt(prompt: Prompt) -> None:
    """Print a prompt, dimmed."""
    _console.print(Text("\n" + prompt.text, style="dim"), soft_wrap=True)


def show_verdict(prompt: Prompt, score: float | None) -> None:
    """Print whether an answer is right, where that is known."""
    if score is not None:
        _console.print(Text(verdict(prompt, score), style="green" if score == 1 else "red"), soft_wrap=True)


def verdict(prompt: Prompt, score: float) -> str:
    """Whether an answer with this score is right."""
    return "right" if score == 1 else f"wrong, answer: {prompt.answer}"


def show_stats(stats: SampleStats) -> None:
    """Print the statistics of all calls as a table."""
    table = Table("statistic", "value", title="Sampling")
    table.columns[1].justify = "right"
    for name, value in asdict(stats).items():
        table.add_row(name, f"{value:,.2f}" if isinstance(value, float) else f"{value:,}")
    for name in ("core_passes", "token_passes"):
        table.add_row(f"{name}_per_token", f"{getattr(stats, name) / max(stats.new_tokens, 1):,.2f}")
    _console.print(table)


def append_jsonl(folders: Iterable[Path | None], record: dict[str, Any]) -> None:
    """Append a line to ``samples.jsonl`` in every folder."""
    for folder in folders:
        if folder is not None:
            with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
