"""Checking plain settings: problems by key, and arguments against signatures and type hints."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object
from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError


class ConfigError(ValueError):
    """What is wrong with a configuration: one line per problem, each with key, value and remedy."""

    def __init__(self, problems: list[str]):
        self.problems = list(dict.fromkeys(problems))
        many = len(self.problems) > 1
        title = f"{len(self.problems)} settings cannot work:" if many else "This setting cannot work:"
        super().__init__("\n".join([title, *(f"  - {p}" for p in self.problems)]))


class Findings:
    """Problems by the key that they are about."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def add(self, key: str, problems: Iterable[str]) -> None:
        """Note problems of the node at ``key``; one that begins with ``key=value`` of its own is kept under that."""
        for problem in problems:
            own = re.match(r"([\w.]+)=", problem)
            self._found.append((own.group(1) if own else key, problem))

    def touch(self, *keys: str) -> bool:
        """Whether a problem is known of one of these nodes, or above or below it."""
        return any(
            f"{known}.".startswith(f"{key}.") or f"{key}.".startswith(f"{known}.")
            for known, _ in self._found
            for key in keys
        )

    def report(self) -> None:
        """Raise what was found, if anything."""
        if self._found:
            raise ConfigError([problem for _, problem in self._found])


def targets(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dictionary with a ``_target_`` in a nest of settings, outer ones first, with its dotted key."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from targets(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from targets(child, f"{key}.{i}")


def arguments(key: str, node: dict[str, Any]) -> Iterator[str]:
    """A node's arguments against its target's signature and type hints."""
    try:
        target = get_object(node["_target_"])
    except (ImportError, ValueError, AttributeError, InstantiationException) as error:
        yield f"{key}._target_={node['_target_']} cannot be imported: {error}"
        return
    parameters = inspect.signature(target).parameters
    hints = hints_of(target)
    rest = next((p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)
    known = [name for name in parameters if name != rest]
    if rest is not None and typing.get_origin(hints.get(rest)) is typing.Unpack:
        spelled_out = typing.get_type_hints(typing.get_args(hints[rest])[0])
        known, hints, rest = [*known, *spelled_out], {**hints, **spelled_out}, None
    # **kwargs of our own classes are a library's plumbing, not settings
    open_ended = rest is not None and not str(getattr(target, "__module__", "")).startswith("recdepth")
    for name, value in node.items():
        if name in ("_target_", "_partial_", "_convert_", "_recursive_", "_args_"):
            continue
        if name not in known and not open_ended:
            yield f"{key}.{name}={shown(value)} is not a setting of {node['_target_']}{suggest(name, known)}"
        elif name in hints and not any(targets(value, "")):
            yield from mismatch(f"{key}.{name}", value, hints[name])


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Type hints of a callable's arguments; of a class, those of its constructor and fields."""
    owners: list[Any] = [target]
    if inspect.isclass(target):
        owners = [part for base in reversed(target.__mro__) for part in (base, vars(base).get("__init__"))]
    found: dict[str, Any] = {}
    for owner in owners:
        try:
            found |= inspect.get_annotations(owner, eval_str=True)
        except (NameError, TypeError, AttributeError):
            continue  # a builtin, or hints that exist for type checkers only
    return found


def mismatch(key: str, value: Any, hint: Any) -> Iterator[str]:
    """What pydantic, in strict mode, has against the value; lists pass for tuples and strings for paths, as in JSON."""
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        plain = [e["msg"].removeprefix("Input ") for e in error.errors() if e["type"] != "needs_python_object"]
        wants = ", or ".join(dict.fromkeys(plain)) or "should be an object: a node with _target_"
        yield f"{key}={shown(value)} {wants}"
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError):
        return  # a hint that pydantic cannot check


def keyed(key: str, text: str) -> list[str]:
    """A constructor's complaints, each with the node's key in front (``""``: that of the whole configuration).

    Complaints are bullets, or joined by semicolons where each begins with ``name=``.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    bullets = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    bullets = bullets or re.split(r"; (?=[\w.]+=)", " ".join(lines))
    top = key.split(".")[0]

    def full(line: str) -> str:
        if not key or line.startswith(f"{top}."):
            return line
        named = re.match(r"[\w.]+=", line) is not None
        return f"{key}.{line}" if named else f"{key}: {line}"

    return [full(line) for line in bullets]


def shown(value: Any) -> str:
    """A value as one writes it in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def suggest(name: str, known: Iterable[Any]) -> str:
    """The names that ``name`` may have meant, as the end of a sentence."""
    known = [str(k) for k in known if k != "self"]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(sorted(known))}"
