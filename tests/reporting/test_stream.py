"""Streaming to a terminal and elsewhere, and the pieces of text that it and the page are made of."""

import io
import re

import pytest
import torch
from rich.console import Console

from recdepth.data import byte_tokenizer
from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.reporting import Stream
from recdepth.reporting.pieces import Pieces
from recdepth.reporting.stream import line_ends
from recdepth.sampling import DiffusionForcing

TOKENIZER = byte_tokenizer()


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def model() -> RecurrentDepthForCausalLM:
    torch.manual_seed(0)
    config = RecurrentDepthConfig(vocab_size=300, hidden_size=32, num_attention_heads=2)  # more than the tokenizer has
    return RecurrentDepthForCausalLM(config).eval()


def screen(output: str, width: int, height: int) -> tuple[list[str], bool]:
    """What a terminal shows of an output, with all that has scrolled away, and whether its cursor is visible."""
    lines, row, column, cursor, top = [""], 0, 0, True, 0
    for part in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]", output):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            top = max(top, row - height + 1)
        elif part.endswith("A") and part.startswith("\x1b"):
            row = max(top, row - int(part[2:-1] or 1))  # no terminal goes back into what has scrolled away
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part in ("\x1b[?25l", "\x1b[?25h"):
            cursor = part.endswith("h")
        elif not part.startswith("\x1b"):
            assert column < width, "a line that the terminal would break by itself"
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines], cursor


def stream_to(model, decode, console, prompts=((65, 66),), new=60, then=None):
    stream = Stream(decode, console)
    with stream.showing():
        tracer = stream if then is None else then(stream)
        result = DiffusionForcing(num_steps=4, inner_steps=1, headway=2, max_wavefront=9)(
            model, [list(p) for p in prompts], max_new_tokens=new, trace=tracer, batch_size=8
        )
        stream.finish(result.tokens[0], result.stats)
    return result


@pytest.mark.parametrize(("width", "height"), [(20, 5), (60, 24)])
def test_a_terminal_shows_the_text_once_and_its_cursor_again(model, monkeypatch, width, height) -> None:
    monkeypatch.setattr("recdepth.reporting.stream._BETWEEN", 0.0)
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=width, height=height, color_system="truecolor", legacy_windows=False
    )

    def decode(ids) -> str:
        return " ".join(f"w{i}" for i in ids)

    result = stream_to(model, decode, console, new=80)
    shown, cursor = screen(out.getvalue().replace("core passes", "cp"), max(width, 40), height)
    assert cursor
    text = decode(result.tokens[0])
    lines = [
        text[a:b].rstrip() for a, b in zip([0, *line_ends(text, 0, width)], line_ends(text, 0, width), strict=False)
    ]
    assert shown[: len(lines)] == lines
    assert shown[len(lines)].startswith("80 tokens, ")
    assert not any(shown[len(lines) + 1 :])
    assert "\x1b[2;3m" in out.getvalue()  # drafts were dimmed


def test_elsewhere_the_final_text_is_printed_plainly(model, monkeypatch) -> None:
    monkeypatch.setattr("recdepth.reporting.stream._BETWEEN", 0.0)
    out = io.StringIO()
    result = stream_to(model, TOKENIZER.decode, Console(file=out, width=30))
    text, _, note = out.getvalue().rstrip("\n").rpartition("\n")
    assert text == TOKENIZER.decode(result.tokens[0])
    assert note.startswith("60 tokens, ")
    assert "\x1b" not in text


def test_a_terminal_obeys_no_text(model) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=40, height=10, color_system=None, legacy_windows=False)
    stream_to(model, lambda ids: "\x1b[2J\r\tx" * len(ids), console, new=5)
    shown, _ = screen(out.getvalue(), 70, 10)
    assert shown[0].startswith("␛[2J␍ x␛[2J␍ x")
    assert "\x1b[2J" not in out.getvalue()


def test_ctrl_c_leaves_the_terminal_as_it_was_and_the_text_on_it(model, monkeypatch) -> None:
    monkeypatch.setattr("recdepth.reporting.stream._BETWEEN", 0.0)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=40, height=10, legacy_windows=False)
    final: list[int] = []

    class Stopping:
        def __init__(self, stream) -> None:
            self.stream = stream

        def start(self, prompts) -> None:
            self.stream.start(prompts)

        def record(self, step) -> None:
            self.stream.record(step)
            final[:] = self.stream._replay.committed
            if step.step == 20:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_to(model, lambda ids: " ".join(map(str, ids)), console, then=Stopping)
    shown, cursor = screen(out.getvalue(), 70, 10)
    assert cursor
    assert " ".join(shown).split() == list(map(str, final))


def test_a_stream_is_for_one_prompt(model) -> None:
    with pytest.raises(ValueError, match="batch_size=1"):
        stream_to(model, TOKENIZER.decode, Console(file=io.StringIO()), prompts=[(1,), (2,)])


def test_pieces_join_to_the_text_whatever_the_tokens() -> None:
    ids = encode("naïve 日本 👩‍👩‍👧!\n")
    ids[5:5] = [ids[2]]  # half a character in the middle
    pieces = Pieces(TOKENIZER.decode)
    parts = pieces.split([*ids, 7777, ids[0]])
    assert "".join(parts) == pieces.text([*ids, 7777, ids[0]])
    assert Pieces(TOKENIZER.decode).split(encode("日本")) == ["", "", "日", "", "", "本"]

    def picky(ids: list[int]) -> str:  # as slow tokenizers are
        return "".join({1: "a", 2: "b", 3: " ."}[i] for i in ids).replace("b .", "b.")

    assert Pieces(picky).text([1, 9, 2]) == "a�b"
    assert Pieces(picky).split([1, 2, 3]) == ["a", "b", "."]
    assert Pieces(picky).draft(2, 9) == "�"
    assert Pieces(lambda ids: " ".join("xyz"[i] for i in ids)).draft(1, 2) == " z"
