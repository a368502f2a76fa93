"""A report over runs and sweeps: one HTML file, and with ``push=true`` a W&B Report.

python -m recdepth.reporting outputs/train/runs/2026-01-01/12-00-00-000000
python -m recdepth.reporting outputs/train/multiruns/2026-01-01_12-00-00-000000 outputs/quickstart out=report.html
python -m recdepth.reporting FOLDERS push=true project=recdepth entity=my-team title="What depth buys"
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recdepth.settings import ConfigError, mismatch, suggest

from .overview import Overview, read_overview, write_overview
from .page import write_report

_KINDS: dict[str, Any] = {
    "out": str,  # the HTML file; default: report.html in the folder, if it is one, else in the current one
    "title": str,
    "push": bool,  # also as a W&B Report, after syncing offline runs
    "project": str,  # of the W&B Report; default: the runs' own
    "entity": str,  # the same
    "sync": bool,  # false: leave offline runs where they are
}


@dataclass(frozen=True)
class Arguments:
    """What was asked for on the command line."""

    folders: list[str] = field(default_factory=list)
    out: str | None = None
    title: str | None = None
    push: bool = False
    project: str | None = None
    entity: str | None = None
    sync: bool = True


def parse(words: Sequence[str]) -> Arguments:
    """Folders, and settings as ``key=value``.

    Raises:
        ConfigError: naming everything that is wrong with them.
    """
    folders, settings, problems = [], {}, []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or Path(word).exists():
            folders.append(word)
            if word.startswith("-"):
                problems.append(f"{word} is no folder; settings are written key=value: {', '.join(_KINDS)}")
        elif key not in _KINDS:
            problems.append(f"{word} is not a setting of this program{suggest(key, _KINDS)}")
        else:
            value: Any = {"true": True, "false": False}.get(text.lower(), text) if _KINDS[key] is bool else text
            problems += mismatch(key, value, _KINDS[key])
            settings[key] = value
    if not folders:
        problems.append("no folder was given: name folders of runs or of sweeps, outputs/…")
    if not settings.get("push", False):
        problems += [
            f"{key}={settings[key]} is for push=true" for key in ("project", "entity", "sync") if key in settings
        ]
    if problems:
        raise ConfigError(problems)
    return Arguments(folders, **settings)


def main(words: Sequence[str]) -> int:
    """Returns the exit code: 0, or 2 for what the user has to mend (explained on stderr)."""
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        arguments = parse(words)
        try:
            overview = read_overview(arguments.folders, arguments.title)
        except ValueError as error:
            raise ConfigError(str(error).splitlines()) from error
        print(f"Report: {_write(arguments, overview)}")
        if arguments.push:
            from .wandb_report import push  # needs the extra [reports]

            print(f"W&B Report: {push(overview, arguments.project, arguments.entity, sync=arguments.sync)}")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _write(arguments: Arguments, overview: Overview) -> Path:
    only = Path(arguments.folders[0]) if len(arguments.folders) == 1 else None
    if only is not None and arguments.out is None:
        return (
            write_overview(overview, only / "report.html") if overview.sweeps else write_report(only, arguments.title)
        )
    return write_overview(overview, arguments.out or "report.html")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
