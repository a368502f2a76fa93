"""The automatic width: the rule, the bounds of measuring, what is remembered, and that measuring leaves no trace."""

import json
import logging
import os
import random
import threading
from pathlib import Path

import pytest
import torch

from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.sampling import width
from recdepth.sampling.width import MEASURED_WIDTHS, auto_width, choose_width, forget_widths, measure_widths, width_file


def small(**settings) -> RecurrentDepthForCausalLM:
    shape = {"vocab_size": 11, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 256}
    return RecurrentDepthForCausalLM(RecurrentDepthConfig(**shape | settings)).eval()


@pytest.fixture
def model():
    return small()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Every test has its own folder and an empty memory."""
    monkeypatch.setenv("RECDEPTH_CACHE", str(tmp_path / "cache"))
    forget_widths()
    yield tmp_path / "cache"
    width._known.clear()


class Clock:
    """A pass of w lanes takes b + c·w seconds; counts the passes."""

    def __init__(self, b: float, c: float, noise: float = 0.0):
        self.b, self.c, self.noise, self.passes, self.spent = b, c, noise, [], 0.0
        self.random = random.Random(0)

    def __call__(self, lanes: int) -> float:
        t = self.b + self.c * lanes
        if self.noise:
            t *= 1 + self.random.uniform(0, self.noise)
            t *= 10 if self.random.random() < 0.1 else 1  # something else had the machine
        self.passes.append(lanes)
        self.spent += t
        return t


def another_process() -> None:
    width._known.clear()


class TestRule:
    def test_about_four_times_fixed_over_lane_cost(self):
        grid = range(1, 5000)
        for b, c in ((1.0, 1.0), (5.0, 1.0), (8.0, 0.5)):
            chosen = choose_width({w: b + c * w for w in grid}, limit=5000)
            assert chosen == pytest.approx(4 * b / c, rel=0.04)

    @pytest.mark.parametrize(
        ("b", "c", "expected"), [(1, 0, 128), (0, 1, 1), (1, 1, 4), (4, 1, 16), (8, 1, 32), (1, 0.001, 128)]
    )
    def test_on_the_grid(self, model, b, c, expected):
        assert auto_width(model, timer=Clock(b * 1e-3, c * 1e-3)) == expected

    @pytest.mark.parametrize(("limit", "expected"), [(1, 1), (3, 3), (20, 16), (100, 96), (127, 127), (1000, 128)])
    def test_flat_cost_goes_to_the_limit_or_near_it(self, model, limit, expected):
        assert auto_width(model, limit=limit, timer=Clock(1e-3, 0)) == expected

    def test_a_dip_in_the_middle_does_not_end_the_search(self):
        seconds = dict.fromkeys(MEASURED_WIDTHS, 1.0) | {8: 4.0}
        assert choose_width(seconds, 128) == 128

    def test_medians_bear_noise(self, model):
        for b, c in ((4e-3, 1e-3), (8e-3, 1e-3), (1e-3, 1e-4)):
            forget_widths()
            quiet = choose_width({w: b + c * w for w in MEASURED_WIDTHS}, 128)
            noisy = auto_width(model, timer=Clock(b, c, noise=0.1))
            assert abs(MEASURED_WIDTHS.index(noisy) - MEASURED_WIDTHS.index(quiet)) <= 1


class TestBounds:
    def test_quick_passes_are_timed_often_and_in_turn(self):
        clock = Clock(1e-4, 1e-6)
        assert list(measure_widths(clock)) == list(MEASURED_WIDTHS)
        assert clock.passes == [1, *MEASURED_WIDTHS * 10] and clock.spent < 0.1

    @pytest.mark.parametrize(("b", "c"), [(1e-2, 1e-3), (0.05, 1e-4), (0.09, 1e-2), (0.2, 0.2)])
    def test_slow_passes_end_early(self, b, c):
        clock = Clock(b, c)
        measured = measure_widths(clock)
        assert clock.spent < 3.5 + b + c
        assert choose_width(measured, 128) <= choose_width({w: b + c * w for w in MEASURED_WIDTHS}, 128)

    def test_very_slow_passes_still_show_what_lanes_cost(self):
        clock = Clock(1.0, 0.001)  # a model that is read from memory once a pass
        assert choose_width(measure_widths(clock), 128) == 128
        assert clock.spent <= 11

    def test_compiling_is_not_counted(self):
        class Compiling(Clock):
            def __call__(self, lanes):
                return super().__call__(lanes) + (0 if lanes in self.passes[:-1] else 20)

        assert measure_widths(Compiling(1e-3, 0), compiled=True) == dict.fromkeys(MEASURED_WIDTHS, 1e-3)

    def test_contexts_and_caches_bound_the_widths(self):
        assert width._plan(small(max_position_embeddings=20), "shared") == ([1, 2, 4, 8, 16], 4)
        assert width._plan(small(), "per_depth") == (list(MEASURED_WIDTHS), 128)
        widths, committed = width._plan(
            small(hidden_size=512, core_layers=4, max_position_embeddings=1024), "per_depth"
        )
        assert committed == 256 and widths[-1] == 48

    def test_errors(self, model):
        with pytest.raises(ValueError, match="limit=0 must be at least 1"):
            auto_width(model, limit=0)
        with pytest.raises(ValueError, match="kv='both' is unknown"):
            auto_width(model, "both")


class TestMemory:
    def test_what_is_known_is_not_measured(self, model, folder):
        first = Clock(4e-3, 1e-3)
        assert auto_width(model, timer=first) == 16 and first.passes
        other = Clock(1e-3, 0)
        assert auto_width(model, timer=other) == 16
        another_process()
        assert auto_width(model, timer=other) == 16
        assert auto_width(small(), limit=8, timer=other) == 8
        assert not other.passes
        forget_widths()
        assert not (folder / "wavefront_width.json").exists()
        assert auto_width(model, timer=other) == 128

    def test_keys_coexist(self, model):
        settings = [
            (model, {}),
            (model, {"kv": "per_depth"}),
            (model, {"compiled": True}),
            (small().to(torch.bfloat16), {}),
            (small(core_layers=3), {}),
            (small(hidden_size=32), {}),
        ]
        expected = [4, 8, 16, 32, 48, 64]
        clocks = [Clock(2.0**i * 1e-3, 1e-3) for i in range(len(settings))]
        pairs = list(zip(settings, clocks, strict=True))
        assert [auto_width(m, **choices, timer=clock) for (m, choices), clock in pairs] == expected
        another_process()
        assert [auto_width(m, **choices) for m, choices in settings] == expected
        assert len(json.loads(width_file().read_text())) == len(settings)
        # what a core pass does not do makes no difference
        assert width._key(small(prelude_layers=3, vocab_size=50), "shared", False) == width._key(model, "shared", False)

    @pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": "kept?"}'])
    def test_a_broken_file_is_replaced(self, model, folder, content, caplog):
        folder.mkdir()
        width_file().write_bytes(content)
        assert auto_width(model, timer=Clock(4e-3, 1e-3)) == 16
        assert len(caplog.records) == (0 if b"kept" in content else 1)
        another_process()
        assert auto_width(model, timer=Clock(1e-3, 0)) == 16
        assert ("a" in json.loads(width_file().read_text())) == (b"kept" in content)

    @pytest.mark.parametrize(
        "entry", [7, {}, {"seconds": []}, {"seconds": {"1": 0}}, {"seconds": {"1": "?"}}, {"seconds": {"2": 1.0}}]
    )
    def test_a_broken_entry_is_measured_again(self, model, folder, entry):
        folder.mkdir()
        width_file().write_text(json.dumps({width._key(model, "shared", False): entry}))
        for clock in (Clock(4e-3, 1e-3), Clock(1e-3, 0)):
            assert auto_width(model, timer=clock) == 16
            another_process()

    def test_a_place_that_cannot_be_used(self, model, folder, caplog):
        folder.write_text("no folder")
        for _ in range(2):
            another_process()
            assert auto_width(model, timer=Clock(4e-3, 1e-3)) == 16
        assert [str(width_file()) in r.message for r in caplog.records] == [True]  # said once
        clock = Clock(1e-3, 0)
        assert auto_width(model, timer=clock) == 16 and not clock.passes  # memory serves this process

    def test_a_folder_that_is_read_only(self, model, folder, caplog, monkeypatch):
        def refuse(*_):
            raise PermissionError("read-only")

        monkeypatch.setattr(os, "replace", refuse)
        assert auto_width(model, timer=Clock(4e-3, 1e-3)) == 16
        assert "read-only" in caplog.text
        assert [p.name for p in folder.iterdir()] == ["wavefront_width.lock"]  # no half-written file stays

    def test_no_home(self, model, monkeypatch):
        def lost():
            raise RuntimeError("no home")

        monkeypatch.delenv("RECDEPTH_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lost)
        assert width_file() is None
        assert auto_width(model, timer=Clock(4e-3, 1e-3)) == 16

    def test_places(self, monkeypatch, tmp_path):
        monkeypatch.setattr(Path, "home", lambda: tmp_path)
        assert width_file() == tmp_path / "cache" / "wavefront_width.json"
        monkeypatch.delenv("RECDEPTH_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert width_file() == tmp_path / "xdg" / "recdepth" / "wavefront_width.json"
        for nothing in ("", "relative"):
            monkeypatch.setenv("XDG_CACHE_HOME", nothing)
            assert width_file() == tmp_path / ".cache" / "recdepth" / "wavefront_width.json"

    def test_writers_at_once_lose_nothing_and_the_first_counts(self):
        path = width_file()
        kept: list[dict[int, float]] = []

        def write(i: int) -> None:
            width._keep(path, f"key {i}", {1: 1.0 + i})
            kept.append(width._keep(path, "same", {1: 1.0 + i}))

        threads = [threading.Thread(target=write, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        entries = json.loads(path.read_text())
        assert set(entries) == {"same", *(f"key {i}" for i in range(16))}
        assert kept == [width._seconds(entries["same"])] * 16

    def test_said_once(self, model, caplog):
        caplog.set_level(logging.DEBUG, "recdepth")
        for _ in range(3):
            auto_width(model, timer=Clock(4e-3, 1e-3))
        said, rates = (record.message for record in caplog.records)
        assert "stands for 16 lanes" in said and "1: 200, 2: 333" in rates


class TestRealPasses:
    @pytest.mark.parametrize("kv", ["shared", "per_depth"])
    @pytest.mark.parametrize("context", [1, 24, 256])
    def test_runs(self, kv, context):
        chosen = auto_width(small(max_position_embeddings=context), kv)
        assert chosen in MEASURED_WIDTHS and chosen <= context

    def test_leaves_no_trace(self, model):
        model.train()
        before, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
        auto_width(model)
        assert torch.equal(before, torch.get_rng_state())
        assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
        model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()  # no inference tensors left
        with torch.no_grad():
            auto_width(model, "per_depth")
            assert not torch.is_grad_enabled()

    def test_low_precision(self):
        assert auto_width(small().to(torch.bfloat16), "per_depth") >= 1
