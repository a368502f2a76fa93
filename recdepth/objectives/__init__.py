"""Training objectives: ``(model, batch, progress) -> Loss``."""

from .base import Loss, Objective
from .next_token import NextToken

__all__ = ["Loss", "NextToken", "Objective"]
