"""From token ids to text, one piece per token, whatever the tokens are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

UNREADABLE = "\N{REPLACEMENT CHARACTER}"


def shared(one: str, other: str) -> int:
    """How many characters two texts share from the start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class Pieces:
    """Decodes tokens together and one by one; ids that the tokenizer does not have are shown as �.

    Args:
        decode: from token ids to text, for instance a tokenizer's ``decode``.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._known: dict[tuple[int | None, int], str] = {}

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        try:
            return self._decode(list(tokens))
        except (LookupError, TypeError, ValueError, OverflowError):  # an id beyond the vocabulary, by kind of tokenizer
            return "".join(map(self._alone, tokens)) if len(tokens) > 1 else UNREADABLE

    def split(self, tokens: Sequence[int]) -> list[str]:
        """What each token adds to the text. Joined, the pieces are the text.

        A character of several tokens belongs to the last of them, and the others are empty.
        """
        pieces: list[str] = []
        before = ""
        for end in range(1, len(tokens) + 1):
            text = self.text(tokens[:end])
            kept = shared(before, text)
            surplus = len(before) - kept  # what has turned out otherwise: half a character, a space before a mark
            for i in reversed(range(len(pieces))):
                cut = min(surplus, len(pieces[i]))
                pieces[i] = pieces[i][: len(pieces[i]) - cut]
                surplus -= cut
                if not surplus:
                    break
            pieces.append(text[kept:])
            before = text
        return pieces

    def draft(self, before: int | None, token: int) -> str:
        """What a token adds behind another one, for drafts: quick, and half characters stay �."""
        key = before, token
        if key not in self._known:
            text = self.text([token] if before is None else [before, token])
            start = "" if before is None else self._alone(before)
            added = text[len(start) :] if text.startswith(start) else ""
            self._known[key] = added or self._alone(token)
        return self._known[key]

    def _alone(self, token: int) -> str:
        key = None, token
        if key not in self._known:
            self._known[key] = self.text([token])
        return self._known[key]
