"""Tables and text as Markdown."""

from __future__ import annotations

import re

from .html import Table


def markdown(table: Table) -> str:
    """A table with its notes."""
    lines = [[plain(head) for head in table.heads]]
    lines += [[plain(cell.state or cell.text) for cell in row] for row in table.rows]
    rule = [":--" if i in table.text_columns else "--:" for i in range(len(table.heads))]
    body = [f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]]]
    return "\n".join([*body, "", *(f"{plain(note)}\n" for note in table.notes)])


def plain(text: str) -> str:
    """Text as Markdown shows it, whatever is in it."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(text.split()))
