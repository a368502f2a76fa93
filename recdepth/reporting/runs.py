"""Run folders as the reports see them: whatever is there, also of a run that was killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from .curves import read_metrics, series
from .status import Status, read_status
from .wandb_run import FILE, WandbRun, wandb_run_of

T = TypeVar("T")

_MARKS = ("metrics.jsonl", "samples.jsonl", ".hydra/config.yaml", ".hydra/provenance.json", "status.json")


@dataclass(frozen=True)
class RunFolder:
    """What a run folder holds; empty where a file is missing.

    Attributes:
        path: the folder.
        config: the configuration as it was composed, interpolations as written.
        overrides: of the command line.
        provenance: command, code, versions, machine.
        status: how the run stands.
        records: of ``metrics.jsonl``.
        samples: of ``samples.jsonl``.
        comparison: rows of ``comparison.json``.
        tuning: what a tuning of sampler settings found, of ``tune.json``.
        wandb: its W&B run.
        problems: files that are there and cannot be read, each with the reason.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    status: Status = field(default_factory=Status)
    records: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    comparison: list[dict[str, Any]] = field(default_factory=list)
    tuning: dict[str, Any] = field(default_factory=dict)
    wandb: WandbRun | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def optimized(self) -> list[str]:
        """The names of the metrics that the run is compared by."""
        names = self.config.get("optimized_metric")
        return [str(name) for name in (names if isinstance(names, list) else [names]) if name is not None]

    @property
    def seconds(self) -> float | None:
        """Of the whole run or, where it did not come to its end, up to the last metrics."""
        if self.status.seconds is not None:
            return float(self.status.seconds)
        return max((r["seconds"] for r in self.records if isinstance(r.get("seconds"), (int, float))), default=None)

    @property
    def steps(self) -> tuple[int, int | None] | None:
        """Optimizer steps taken, and how many there were to be (None: no limit); None for a run without training."""
        if not any("train/loss" in record for record in self.records):
            return None
        wanted = (self.config.get("trainer") or {}).get("max_steps")
        done = max(r["step"] for r in self.records if isinstance(r.get("step"), int))
        # training logs the step under way; validation after the end logs how many there were
        done += 1 if "train/loss" in self.records[-1] else 0
        return done, wanted if isinstance(wanted, int) and wanted > 0 else None

    def last(self, name: str) -> float | None:
        """The last value of a metric."""
        values = series(self.records, name)[1]
        return values[-1] if values else None

    def best(self, name: str) -> float | None:
        """The best value of a metric; None where it is not known whether more is better."""
        values, higher = series(self.records, name)[1], higher_is_better(name)
        if not values or higher is None:
            return None
        return max(values) if higher else min(values)

    def metric_names(self) -> list[str]:
        """Of everything that was logged, sorted."""
        return sorted({name for record in self.records for name in record} - {"step", "seconds", "epoch"})


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is that of a run of train.py or sample.py."""
    return any((folder / name).is_file() for name in _MARKS)


def read_run(folder: Path | str) -> RunFolder:
    """Read a run folder, as far as it got.

    Raises:
        ValueError: if it is none.
    """
    folder = Path(folder)
    if not is_run_folder(folder):
        what = "has none of " + ", ".join(_MARKS) if folder.is_dir() else "is no folder"
        raise ValueError(f"{folder} {what}: it is no run folder")
    problems: list[str] = []

    def read(name: str, reader: Callable[[Path], T], otherwise: T, kind: type) -> T:
        path = folder / name
        if not path.is_file():
            return otherwise
        try:
            found = reader(path)
        except (ValueError, OSError, YAMLError, OmegaConfBaseException) as error:
            problems.append(f"{name}: {str(error).splitlines()[0]}")
            return otherwise
        if not isinstance(found, kind):
            problems.append(f"{name}: not what it should be")
            return otherwise
        return found

    provenance: dict[str, Any] = read(".hydra/provenance.json", _json, {}, dict)
    overrides = read(".hydra/overrides.yaml", _yaml, None, list)
    if overrides is None:
        overrides = [word for word in provenance.get("command", []) if "=" in word]
    nothing = Status(state="unknown")
    return RunFolder(
        folder,
        config=read(".hydra/config.yaml", _yaml, {}, dict),
        overrides=[str(override) for override in overrides],
        provenance=provenance,
        status=read("status.json", lambda path: read_status(path.parent) or nothing, nothing, Status).now,
        records=_dictionaries(read("metrics.jsonl", read_metrics, [], list)),
        samples=_dictionaries(read("samples.jsonl", read_metrics, [], list)),
        comparison=_dictionaries(read("comparison.json", _json, [], list)),
        tuning=read("tune.json", _found, {}, dict),
        wandb=read(FILE, lambda path: wandb_run_of(path.parent), None, WandbRun),
        problems=problems,
    )


def higher_is_better(name: str) -> bool | None:
    """Of a metric by its name: losses go down, accuracies and speeds up; None where neither is known."""
    parts = name.split("/")
    kind = parts[1] if len(parts) > 1 else parts[0]
    if kind.startswith("loss"):
        return False
    return True if kind in ("accuracy", "token_accuracy", "tokens_per_second") else None


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nest of settings; lists are values."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def overridden(overrides: Iterable[str]) -> dict[str, str]:
    """Keys of the command line, without Hydra's prefixes, with the values as written."""
    found = {}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        found[key.split("@")[0].replace("/", ".")] = value
    return found


def _dictionaries(rows: list[Any]) -> list[dict[str, Any]]:
    return [row for row in rows if isinstance(row, dict)]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _found(path: Path) -> Any:
    """What a tuning found."""
    facts, needed = _json(path), {"tried", "checked", "final", "winner", "reference", "paper", "budget", "compile"}
    if isinstance(facts, dict) and (missing := sorted(needed - facts.keys())):
        raise ValueError(f"{', '.join(missing)} missing")
    return facts


def _yaml(path: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
