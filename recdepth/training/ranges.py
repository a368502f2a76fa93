"""Checking constructor arguments."""

from __future__ import annotations


def at_least_one(**settings: float) -> None:
    """Raise ValueError naming every setting that is below 1."""
    if wrong := [f"{name}={value} must be at least 1" for name, value in settings.items() if value < 1]:
        raise ValueError("; ".join(wrong))
