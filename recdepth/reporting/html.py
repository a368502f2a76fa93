"""Pages from templates: escaped, in one file, with nothing that could reach the network."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A cell of a table; ``value`` is what it sorts by, where that is not its text; ``state`` makes it a badge."""

    text: str = ""
    value: Any = None
    kind: str = ""
    link: str | None = None
    state: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of a page: heads, rows of cells, and notes below it."""

    label: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    text_columns: Sequence[int] = (0,)


@dataclass(frozen=True)
class Key:
    """What a line of a chart is."""

    label: str
    style: int


@dataclass(frozen=True)
class Chart:
    """A figure with its title and the key to its lines.

    Attributes:
        wide: scrolls inside its own box where the window is narrow.
        light: on light paper always, for colours that mean something and would not show on dark.
    """

    title: str
    svg: Markup
    keys: Sequence[Key] = ()
    note: str | None = None
    wide: bool = False
    light: bool = False


@dataclass(frozen=True)
class Tile:
    """A fact in large letters."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class _Page:
    style: Markup
    script: Markup
    script_hash: str
    version: str
    written: str = field(default_factory=lambda: time.strftime("%Y-%m-%d at %H:%M %Z"))


def render(template: str, **values: Any) -> str:
    """A page from one of the templates in this package. All text is escaped; only our own script may run."""
    return _environment().get_template(template).render(page=_page(), **values)


def picture(path: Path) -> str:
    """A PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def number(value: Any, digits: int = 4) -> str:
    """A number as one reads it: so many significant digits, thousands apart; "" for None."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and float(value).is_integer()):
        return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}") if abs(value) >= 1e4 else f"{value:.{digits}g}"


def duration(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def moment(iso: str) -> str:
    """A time as one reads it, to the minute; text that is none stays as it is."""
    try:
        return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return iso


def text_cells(*texts: Any) -> list[Cell]:
    """Plain cells; numbers sort by their full value."""
    return [Cell(number(t), t if isinstance(t, float) else None) for t in texts]


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("recdepth.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page() -> _Page:
    folder = Path(__file__).parent / "templates"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    try:
        release = version("recdepth")
    except PackageNotFoundError:  # run from a checkout that is not installed
        release = ""
    return _Page(Markup(style), Markup(script), f"sha256-{digest}", release)
