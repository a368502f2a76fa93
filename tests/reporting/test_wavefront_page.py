"""The wavefront page: what it holds is what the engine did, and a browser shows it without complaint."""

import importlib.util
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from recdepth.evaluation import Traced, autoregressive_baseline, trace_call
from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.reporting import WavefrontBatch, wavefront_data, write_wavefront_page
from recdepth.sampling import (
    Adaptive,
    Autoregressive,
    DiffusionForcing,
    Exact,
    SampleStats,
    Speculative,
    Trace,
    TraceStep,
)

_spec = importlib.util.spec_from_file_location("browser", Path(__file__).parents[1] / "browser.py")
assert _spec is not None and _spec.loader is not None
browser_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser_module)

SAMPLERS = {
    "diffusion_forcing": DiffusionForcing(num_steps=8, inner_steps=2, max_wavefront=6),
    "headway": DiffusionForcing(num_steps=8, inner_steps=1, headway=2, max_wavefront=8, exit_threshold=0.2),
    "no_prefill": DiffusionForcing(num_steps=6, inner_steps=2, prefill_steps=0, max_wavefront=8),
    "exact": Exact(num_steps=6, max_wavefront=6, draft_depth=2, confirm_flips=True, readout_growth=1.5),
    "speculative": Speculative(num_steps=4, draft_tokens=4),
    "adaptive": Adaptive(num_steps=8),
    "autoregressive": Autoregressive(num_steps=4),
}


def words(ids: list[int]) -> str:
    return "".join(f" w{i}" for i in ids)


@pytest.fixture(scope="module")
def model() -> RecurrentDepthForCausalLM:
    """Random, so that its drafts flip a lot."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = RecurrentDepthConfig(vocab_size=40, hidden_size=32, num_attention_heads=2, max_position_embeddings=160)
    return RecurrentDepthForCausalLM(config).eval()


@pytest.fixture(scope="module")
def chrome() -> Iterator:
    if browser_module.BROWSER is None:
        pytest.skip("no browser here")
    browser = browser_module.Browser()
    yield browser
    browser.close()


def batch_of(sampler, model, prompts, new=12, stop=()) -> WavefrontBatch:
    call = {"max_new_tokens": new, "stop_tokens": stop}
    baseline = autoregressive_baseline(sampler)
    beside = None if baseline is None else trace_call(baseline, model, prompts, **call)
    return WavefrontBatch(trace_call(sampler, model, prompts, **call), [words(p) for p in prompts], beside)


def lanes(positions, **fields) -> TraceStep:
    rows = {k: np.array([v]) for k, v in fields.items() if isinstance(v, list)}
    plain = {k: v for k, v in fields.items() if not isinstance(v, list)}
    return TraceStep(positions=np.array([positions]), age=np.array([fields["depth"]]), **rows, **plain)


@pytest.fixture
def by_hand() -> WavefrontBatch:
    """Three steps of two recurrences behind a prompt of two tokens; the draft at position 3 flips from 5 to 6."""
    trace = Trace(
        [
            lanes([2], step=0, seconds=0.5, core_passes=2, tokens=[4], proposals=[5], depth=[2], residual=[0.5],
                  flipped=[False], committed=[False]),
            lanes([2, 3], step=1, seconds=1.0, core_passes=4, tokens=[4, 5], proposals=[6, 7], depth=[4, 2],
                  residual=[0.01, 0.4], flipped=[False, True], committed=[True, False]),
            lanes([3, 4], step=2, seconds=1.75, core_passes=6, tokens=[6, 7], proposals=[7, 8], depth=[2, 4],
                  residual=[0.02, np.nan], flipped=[False, False], committed=[True, True]),
        ],
        [[1, 2]],
    )  # fmt: skip
    plain = Trace(
        [
            lanes([p], step=i, seconds=2.0 * (i + 1), core_passes=4 * (i + 1), tokens=[p], proposals=[t], depth=[4],
                  residual=[np.nan], flipped=[False], committed=[True])
            for i, (p, t) in enumerate([(2, 6), (3, 9)])
        ],
        [[1, 2]],
    )  # fmt: skip
    ours = Traced(
        DiffusionForcing(num_steps=4), trace, [[4, 6, 7, 8]], SampleStats(prefill_seconds=0.25, prefill_passes=2)
    )
    beside = Traced(Autoregressive(num_steps=4), plain, [[4, 6, 9]], SampleStats(prefill_seconds=0.5, prefill_passes=4))
    return WavefrontBatch(ours, ["one two"], beside, ["right"])


def test_the_data_of_a_small_trace(by_hand) -> None:
    data = wavefront_data([by_hand], words, stop_tokens=[8])
    (row,) = data["rows"]
    number = {token: i for i, (_, token, _) in enumerate(data["pieces"])}
    assert data["pieces"][number[8]] == ["", 8, 1] and data["pieces"][number[7]] == [" w7", 7, 0]
    assert row["start"] == {"t": 0.25, "p": 2, "front": 2, "count": 1}
    residuals = [step.pop("e") for step in row["steps"]]
    assert [len(e) for e in residuals] == [2, 4, 4] and residuals[2].endswith("00")
    first, second, third = row["steps"]
    assert first == {"t": 0.75, "p": 4, "w": 1, "c": 0, "g": 2, "s": [0, number[4], 1, number[5]], "x": 1}
    flip = {"f": [1], "s": [1, number[6], 2, number[7]]}
    assert second == {"t": 1.25, "p": 6, "w": 2, "c": 1, "g": 2, **flip, "x": 1}
    # position 3 began anew, position 4 is said to be deeper than it can be: depths are as the trace has them
    assert third == {"t": 2.0, "p": 8, "w": 2, "c": 2, "g": 0, "d": [2, 4], "s": [2, number[8]], "x": 1}
    assert row["final"] == [number[t] for t in (4, 6, 7, 8)]
    # one token at a time: the first after the prefill, the others when their lane was committed
    assert row["baseline"] == {
        "t": [0.5, 2.5, 4.5], "p": [4, 8, 12], "final": [number[t] for t in (4, 6, 9)], "prefill": 4,
    }  # fmt: skip
    assert (row["same"], row["verdict"], row["prompt_tokens"]) == (2, "right", 2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_browser_has_every_step_as_the_engine_had_it(name, model, chrome, tmp_path) -> None:
    prompts = [[1, 2], [3, 4, 5]]
    batch = batch_of(SAMPLERS[name], model, prompts, stop=[29])
    chrome.problems.clear()
    chrome.open(write_wavefront_page(tmp_path / "page.html", [batch], words, stop_tokens=[29]))
    shown_rows = [row for row in range(2) if batch.traced.trace.steps_of(row)]  # others ended with their first token
    assert shown_rows
    for place, row in enumerate(shown_rows):
        frames = chrome.run(f"""(() => {{ chooseRow({place}); return state.run.frames.map((f) => ({{...f,
            flipped: [...f.flipped].map(([i, piece]) => [i, entryOf(piece)[1]]),
            pieces: f.pieces.map((p) => entryOf(p)[1]),
            residual: [...f.residual].map((e) => Number.isFinite(e) ? e : null)}})) }})()""")
        steps = batch.traced.trace.steps_of(row)
        assert len(frames) == len(steps) + 1
        flips = 0
        for frame, step in zip(frames[1:], steps, strict=True):
            at = step.positions[row] >= 0
            flipped = np.nonzero(step.flipped[row][at])[0].tolist()
            flips += len(flipped)
            tokens = step.tokens[row][at].tolist()
            assert frame["flipped"] == [[i, tokens[i]] for i in flipped]
            after = [step.proposals[row][at][i - 1] if i in flipped else t for i, t in enumerate(tokens)]
            assert frame["pieces"] == after
            assert [frame["first"] + i for i in range(frame["width"])] == step.positions[row][at].tolist()
            assert frame["depth"] == step.depth[row][at].tolist()
            assert (frame["committed"], frame["flips"]) == (step.committed[row].sum(), flips)
            assert frame["t"] == pytest.approx(batch.traced.stats.prefill_seconds + step.seconds, abs=1e-6)
            assert frame["p"] == batch.traced.stats.prefill_passes + step.core_passes
            for shown, true in zip(frame["residual"], step.residual[row][at], strict=True):
                assert shown == (pytest.approx(true, rel=0.005) if math.isfinite(true) else None)
        text = "".join(words([t]) for t in batch.traced.tokens[row] if t != 29)
        chrome.run("seek(Infinity)")
        assert frames[-1]["count"] == len(batch.traced.tokens[row])
        assert chrome.run("byId('wave').textContent").removesuffix(" ■") == text
    assert chrome.problems == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_stepping_and_playing(width, dark, model, chrome, tmp_path) -> None:
    batches = [batch_of(SAMPLERS["headway"], model, [[1, 2]]), batch_of(SAMPLERS["headway"], model, [[3, 4, 5]])]
    chrome.problems.clear()
    chrome.open(write_wavefront_page(tmp_path / "page.html", batches, words, facts={"device": "cpu"}), width, dark=dark)
    steps = len(batches[0].traced.trace.steps)
    now = "byId('now').textContent"
    assert chrome.run(now).startswith(f"step 0 of {steps}")
    chrome.press("ArrowRight", 39)
    chrome.run("byId('forward').click()")
    assert chrome.run(now).startswith(f"step 2 of {steps}")
    assert chrome.run("document.querySelectorAll('#wave .chip').length") > 0
    chrome.press("ArrowLeft", 37)
    assert chrome.run(now).startswith(f"step 1 of {steps}")
    flips = [k + 1 for k, step in enumerate(batches[0].traced.trace.steps) if step.flipped.any()]
    chrome.run(f"seek(state.run.frames[{flips[0]}].t)")
    assert chrome.run("document.querySelectorAll('#wave .chip.flip del').length") > 0
    chrome.run("byId('speed').value = '5'; byId('time').value = byId('time').max; 0")
    chrome.press("Home", 36)
    chrome.press(" ", 32, " ")
    chrome.wait_for("state.playing && state.run.at('t', state.time) > 1")
    chrome.press(" ", 32, " ")
    assert chrome.run("state.playing") is False
    chrome.run("byId('clock').value = 'p'; byId('clock').dispatchEvent(new Event('change'))")
    chrome.press("End", 35)
    assert (
        chrome.run(now) == f"step {steps} of {steps} · {batches[0].traced.trace.steps[-1].core_passes + 8} core passes"
    )
    chrome.run("byId('tail').click(); seek(Infinity)")
    assert chrome.run("byId('plain').textContent") == words(batches[0].baseline.tokens[0])
    chrome.run("byId('row').value = '1'; byId('row').dispatchEvent(new Event('change'))")
    assert chrome.run("byId('prompt').textContent") == words([3, 4, 5])
    chrome.run("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    assert chrome.run("document.documentElement.scrollWidth <= innerWidth")
    unnamed = "[...document.querySelectorAll('button, select, input')].filter((e) => !e.ariaLabel && !e.labels.length)"
    assert chrome.run(f"{unnamed}.length") == 0
    assert chrome.problems == []


class Scripts(HTMLParser):
    """The contents of a page's script elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.found += [""] if tag == "script" else []
        self.outside += [value for name, value in attrs if name in ("src", "href", "onerror")]

    def handle_data(self, text) -> None:
        if self.lasttag == "script" and self.found:
            self.found[-1] += text


ODD = ["</script><script>alert(1)</script>", "<!--", "%%data%%", "\u2028", "\ud83d", "&amp;", "\x00", "", "\n", "é"]


@pytest.fixture
def odd_page(model, tmp_path) -> tuple[Path, str]:
    """A page of texts that would like to be something else, and its final text."""

    def odd(ids: list[int]) -> str:
        return "".join(ODD[i % len(ODD)] for i in ids)

    traced = trace_call(SAMPLERS["diffusion_forcing"], model, [[1, 2]], max_new_tokens=30)
    batch = WavefrontBatch(traced, [ODD[0]])
    path = write_wavefront_page(tmp_path / "odd.html", [batch], odd, facts={"x": ODD[0]})
    return path, odd(traced.tokens[0])


def test_no_text_gets_out_of_its_place(odd_page) -> None:
    path, text = odd_page
    page = path.read_text(encoding="utf-8")
    parser = Scripts()
    parser.feed(page)
    assert len(parser.found) == 2 and parser.outside == []
    data = json.loads(parser.found[0])
    assert data["rows"][0]["prompt"] == data["facts"]["x"] == ODD[0]
    assert "".join(data["pieces"][i][0] for i in data["rows"][0]["final"]) == text
    assert "http" not in page.replace("http-equiv", "")


def test_a_map_that_has_no_room_for_a_while_is_there_again_after(odd_page, chrome) -> None:
    chrome.problems.clear()
    chrome.open(odd_page[0])
    for shown, room in (("none", "=== 0"), ("", "> 0")):
        chrome.run(f"byId('map').style.display = '{shown}'")
        chrome.wait_for(f"byId('map').width {room}")
    assert chrome.problems == []


def test_a_browser_takes_any_text_for_text(odd_page, chrome) -> None:
    chrome.problems.clear()
    chrome.open(odd_page[0])
    chrome.run("for (const f of state.run.frames) seek(f.t)")
    assert chrome.problems == []
    assert chrome.run("[document.scripts.length, byId('prompt').textContent]") == [2, ODD[0]]


def test_what_is_left_out_is_said(model, tmp_path) -> None:
    ends = trace_call(SAMPLERS["adaptive"], model, [[1]], max_new_tokens=1)
    batch = batch_of(SAMPLERS["diffusion_forcing"], model, [[i + 1] for i in range(10)], new=3)
    page = write_wavefront_page(tmp_path / "a.html", [batch, WavefrontBatch(ends, ["x"])], words, more=5).read_text()
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page)[1])
    assert (len(data["rows"]), data["left_out"], data["empty"]) == (8, 7, 1)
    with pytest.raises(ValueError, match="no steps"):
        write_wavefront_page(tmp_path / "b.html", [WavefrontBatch(ends, ["x"])], words)


def test_a_hundred_tokens_stay_below_a_megabyte(model, tmp_path) -> None:
    """On a random model, whose drafts flip at nearly every step."""
    sampler, trace = DiffusionForcing(num_steps=16, inner_steps=1, max_wavefront=24), Trace()
    result = sampler(model, [[1, 2, 3]], max_new_tokens=100, trace=trace)
    assert len(result.tokens[0]) == 100
    assert result.stats.flips > 5_000
    batch = WavefrontBatch(Traced(sampler, trace, result.tokens, result.stats), ["x"])
    assert write_wavefront_page(tmp_path / "a.html", [batch], words).stat().st_size < 500_000
