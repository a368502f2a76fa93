"""Guesses of the tokens that several new lanes of a wavefront begin with."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def guess(
    tokens: Int[Tensor, "rows places"], first: Int[Tensor, " rows"], count: Int[Tensor, " rows"], most: int
) -> None:
    """Write guesses of each row's tokens into its text: what followed the last time that it held the two tokens (else
    the one) before them.

    Prompt-lookup drafting. What followed is repeated where it is shorter than asked; where the last token is new to
    the text, that one is.

    Args:
        tokens: texts, changed in place; only what stands before the guesses is read. One spare place at the end, which
            may be written to.
        first: position of the first guess, at least 1 where there is one.
        count: how many; none where it is below 1.
        most: no count is above it.
    """
    rows = torch.arange(len(tokens), device=tokens.device)
    first = first.clamp(max=tokens.shape[1] - 1)  # of rows without guesses
    places = torch.arange(tokens.shape[1] - 2, device=tokens.device)
    last, before = tokens[rows, first - 1], tokens[rows, (first - 2).clamp(min=0)]
    same = (tokens[:, :-2] == last[:, None]) & (places < first[:, None] - 1)
    previous = torch.nn.functional.pad(tokens[:, :-3], (1, 0))
    both = same & (previous == before[:, None]) & (places > 0)
    at = ((same.long() + both.long()) * tokens.shape[1] + places * same).argmax(1)
    behind = torch.where(same.any(1), at + 1, first - 1)
    ahead = torch.arange(most, device=tokens.device)
    followed = behind[:, None] + ahead % (first - behind)[:, None]
    wanted = ahead < count[:, None]
    tokens[rows[:, None], torch.where(wanted, first[:, None] + ahead, -1)] = tokens[rows[:, None], followed]
