"""Sampling as it happens: committed text, and behind it, dimmed, the live drafts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text

from recdepth.sampling import Replay, SampleStats, TraceStep

from .pieces import UNREADABLE, Pieces, shared

_BETWEEN = 1 / 15  # seconds between two pictures


class Stream:
    """A tracer that shows one prompt's continuation while it is sampled; use it inside :meth:`showing`.

    On a terminal, lines that are final scroll away upwards and only the end of the text is drawn anew. Elsewhere (a
    file, a pipe) the final text is printed as it grows, and drafts are not.

    Args:
        decode: from token ids to text.
        console: where to; None for standard output.
    """

    def __init__(self, decode: Callable[[list[int]], str], console: Console | None = None):
        self._pieces = Pieces(decode)
        self._console = console or Console()
        self._replay: Replay | None = None
        self._live: Live | None = None
        self._began = self._drawn = 0.0
        self._text = ""  # what has been printed for good

    def start(self, prompts: list[list[int]]) -> None:
        if len(prompts) != 1:
            raise ValueError(f"a stream shows one prompt at a time, not {len(prompts)}; sample with batch_size=1")
        self._replay = Replay(prompts[0])
        self._began = time.perf_counter()
        self._drawn = -_BETWEEN
        self._text = ""

    def record(self, step: TraceStep) -> None:
        assert self._replay is not None, "start() comes first"
        if step.step == 0:
            self._replay.open(step)
        self._replay.advance(step)
        now = time.perf_counter()
        if now - self._drawn >= _BETWEEN:
            self._show(self._replay.committed, self._replay.drafts, self._rate(now))
            self._drawn = time.perf_counter()

    @contextmanager
    def showing(self) -> Iterator[None]:
        """While a prompt is sampled. Whatever happens inside, the terminal is as before afterwards."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop") as self._live:
            try:
                yield
            except BaseException:
                if self._replay is not None:  # what was final stays on the screen
                    self._print_rest(self._pieces.text(self._replay.committed))
                raise
            finally:
                self._live = None

    def finish(self, tokens: list[int], stats: SampleStats) -> None:
        """Print what is missing of the final text, and the speed; inside :meth:`showing`."""
        self._print_rest(self._pieces.text(tokens))
        note = f"{stats.new_tokens} tokens, {stats.tokens_per_second:,.0f} tokens/s, {stats.core_passes} core passes"
        if self._live is not None:
            self._live.update(Text(""), refresh=True)
        self._console.print(Text(note, style="dim cyan"), soft_wrap=True)

    def _rate(self, now: float) -> str:
        assert self._replay is not None
        count = len(self._replay.committed)
        return f"  {count / max(now - self._began, 1e-9):,.0f} tokens/s"

    def _show(self, committed: list[int], drafts: list[int], note: str) -> None:
        whole = self._pieces.text(committed)
        both = self._pieces.text(committed + drafts)
        final = shared(whole.rstrip(UNREADABLE), both)  # half a character may still become another
        if not both[:final].startswith(self._text):
            return  # the tokenizer writes earlier text otherwise by now; the end of it will tell
        if self._live is None:
            self._console.print(both[len(self._text) : final], end="", **_AS_IT_IS)
            self._text = both[:final]
            return
        begin, lines = len(self._text), []
        for end in line_ends(both, begin, self._console.width):
            line = Text(both[begin:end].rstrip("\n"))
            line.stylize("dim italic", max(final - begin, 0))
            lines.append((end, line))
            begin = end
        ready = [(end, line) for end, line in lines[:-1] if end < final]  # final, and so is where they break
        if ready:
            self._live.console.print(Text("\n").join(line for _, line in ready), **_AS_IT_IS)
            self._text = both[: ready[-1][0]]
        room = max(self._console.height - 2, 1)
        picture = Text("\n").join(line for _, line in lines[len(ready) :][:room])
        picture.append(note, style="dim cyan")
        self._live.update(picture, refresh=True)

    def _print_rest(self, text: str) -> None:
        if self._live is not None:
            self._live.update(Text(""), refresh=True)
        if not text.startswith(self._text):
            self._console.print("", **_AS_IT_IS)
            self._text = ""
        begin = len(self._text)
        self._text = text
        if self._live is None:
            self._console.print(text[begin:], **_AS_IT_IS)
            return
        for end in line_ends(text, begin, self._console.width):
            self._console.print(text[begin:end].rstrip("\n"), **_AS_IT_IS)
            begin = end


def line_ends(text: str, begin: int, width: int) -> Iterator[int]:
    """Where lines end that are filled from ``begin`` on, at spaces where there are any; a line's end never moves when
    more text is added behind the next one's first character."""
    end, cells, space = begin, 0, -1
    while end < len(text):
        character = text[end]
        if character == "\n":
            end += 1
            yield end
            cells, space = 0, -1
            continue
        if character == " ":
            space = end + 1
        size = cell_len(character)
        if cells + size > width and character != " " and cells:
            end = space if space > 0 else end
            yield end
            cells, space = 0, -1
            continue
        cells += size
        end += 1
    yield end


_AS_IT_IS: Any = {"markup": False, "highlight": False, "soft_wrap": True}
