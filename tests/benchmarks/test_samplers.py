"""The sampler benchmark, from the command line to JSON and picture, on a tiny random model."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import measuring, samplers
from recdepth.evaluation import Interval, speed
from recdepth.evaluation.compare import verdict
from recdepth.evaluation.costs import SEAMS, draft_steps, peak_bytes, record_passes, replay, time_shares, wrapped_seams
from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM, sampling_seams
from recdepth.sampling import Adaptive, Autoregressive, DiffusionForcing, Exact, Trace, TraceStep, base
from recdepth.settings import ConfigError

QUICK = [
    *("--data", "word_problems", "task.max_steps=4", "--max-new-tokens", "6"),
    *("--num-steps", "2", "--modes", "eager", "--accuracy-prompts", "4", "--batch-size", "3", "--speed-prompts", "2"),
    *("--profile-prompts", "1", "--repeats", "1", "--batch-sizes", "2", "--batch-prompts", "3", "--device", "cpu"),
]


def tiny(vocab_size: int = 64) -> RecurrentDepthForCausalLM:
    torch.manual_seed(0)
    config = RecurrentDepthConfig(
        vocab_size=vocab_size, hidden_size=16, num_attention_heads=2, core_layers=1, max_position_embeddings=128
    )
    return RecurrentDepthForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run the benchmark: (exit code, JSON or None, what was printed)."""

    def call(*words: str, quick: bool = True) -> tuple[int, dict | None, str]:
        out = tmp_path / "out"
        code = samplers.main(["--model", model_path, *(QUICK if quick else []), *words, "--out", str(out)])
        file = out / "samplers.json"
        shown = capsys.readouterr()
        return code, json.loads(file.read_text()) if file.exists() else None, shown.out + shown.err

    return call


def test_everything_is_measured_and_written(run, tmp_path: Path) -> None:
    specs = ["--sampler", "fast=diffusion_forcing_fast,prefill_steps=1", "--sampler", "exact,max_wavefront=2"]
    code, found, shown = run(*specs)
    assert code == 0
    assert found["finished_parts"] == ["accuracy", "speed", "shares", "waiting", "bound", "memory", "batches"]
    assert {"torch", "dtype", "cpu", "torch_threads"} <= found["machine"].keys()
    assert found["data"]["task"]["max_steps"] == 4
    rows = {row["sampler"]: row for row in found["samplers"]}
    assert list(rows) == ["ar-2", "ar-1", "adaptive", "fast", "exact"]
    assert found["reference"] == "ar-2" and rows["fast"]["settings"]["num_steps"] == 2
    for row in rows.values():
        shares = [row["shares"][part] for part in ("core", "embed", "decode", "bookkeeping")]
        assert sum(shares) == pytest.approx(1) and all(0 <= share <= 1 for share in shares)
        assert row["bound"]["ratio"] > 0.5 and row["bound"]["modes"]["eager"]["passes"] > 0
        assert row["memory"]["peak_bytes"] >= row["memory"]["kv_cache_bytes"] > 0
        assert row["batches"].keys() == {"1", "2"} and row["batches"]["1"]["over_batch_1"] == 1
        assert row["batches"]["1"]["decoding_over_batch_1"] == 1 and row["batches"]["2"]["decoding_over_batch_1"] > 0
        assert 0 < row["waiting"]["right_by"] <= row["waiting"]["steps"]
        assert row["verdict"] in ("not distinguishable", "different") and row["mode"] == "eager"
        assert {"core_passes_per_token", "readouts_per_token", "flips_per_token", "speedup_low"} <= row.keys()
        assert row["sampler"] in shown
    lossless = rows["exact"]["lossless"]
    assert lossless["reference"] == "ar-2" and lossless["texts"] == 4 and lossless["batch_1"]["texts"] == 2
    assert lossless["identical"] == 4 and not lossless["differing"]
    assert rows["ar-2"]["speedup"] == 1.0
    assert (tmp_path / "out" / "samplers.png").stat().st_size > 10_000


def test_ctrl_c_keeps_what_is_finished(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args, timings, **settings):
        samplers_, model, held_out = args
        real(samplers_, model, held_out.part(0, 1), timings=timings, **settings)
        raise KeyboardInterrupt

    real = measuring.time_in_turn
    monkeypatch.setattr(measuring, "time_in_turn", interrupted)
    code, found, shown = run()
    assert code == 130 and "what was finished is kept" in shown
    assert found["finished_parts"] == ["accuracy"]
    assert all(row["speed_n"] == 1 for row in found["samplers"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sampler", "exakt"], "--sampler exakt is not in conf/sampler; did you mean exact"),
        (["--sampler", "exact,headwy=2"], "sampler.exact.headwy=2 is not a setting.*did you mean headway"),
        (["--sampler", "exact,headway=0"], "sampler.exact.headway=0 must be at least 1"),
        (["--sampler", "exact,headway"], "'headway' has no value; write headway=VALUE"),
        (["--sampler", "exact", "--sampler", "exact"], "exact is taken; name it: --sampler NAME=exact"),
        (["--sampler", "nothing.yaml"], "nothing.yaml is not a file"),
        (["--data", "word_problem"], "--data word_problem is not in conf/data; did you mean word_problems"),
        (["--data", "word_problems", "task.steps=3"], "data.task.steps=3 is not a setting"),
        (["--data", "word_problems", "text"], "text is a second name"),
        (["--data"], "the following|expected at least one"),
        (["--num-steps", "4", "--ar-depths", "8"], "--ar-depths=8 must lie between 1 and --num-steps=4"),
        (["--max-new-tokens", "500"], "--max-new-tokens=500.*exceeds the model's context of 128; lower it to"),
        (["--device", "tpu"], "--device=tpu is unknown"),
        (["--modes", "fast"], "'fast': give eager, compiled"),
        (["--speed-prompts", "0"], "'0' must be a whole number, at least 1"),
    ],
)
def test_mistakes_are_named_before_any_work(run, capsys, words: list[str], message: str) -> None:
    try:
        code, found, shown = run(*words)
    except SystemExit as stopped:  # argparse
        code, found, shown = stopped.code, None, capsys.readouterr().err
    assert code == 2 and found is None
    assert re.search(message, " ".join(shown.split())), shown


def test_a_model_without_a_run_needs_data(run) -> None:
    code, _, shown = run(quick=False)
    assert code == 2 and "belongs to no run" in shown and "--data NAME" in shown


def test_every_sampler_in_every_mode_that_the_machine_can(monkeypatch: pytest.MonkeyPatch) -> None:
    given, cpu = {"ar": Autoregressive(num_steps=2)}, torch.device("cpu")
    monkeypatch.setattr(samplers, "can_compile", lambda device: (True, ""))
    both, why = samplers.variants(given, ["eager", "compiled"], cpu)
    assert {label: v.sampler.compile for label, v in both.items()} == {"ar": False, "ar (compiled)": True} and not why
    monkeypatch.setattr(samplers, "can_compile", lambda device: (False, "no compiler"))
    one, why = samplers.variants(given, ["eager", "compiled"], cpu)
    assert list(one) == ["ar"] and why == "no compiler"
    with pytest.raises(ConfigError, match="--modes=compiled: no compiler; add eager"):
        samplers.variants(given, ["compiled"], cpu)


def test_a_call_that_compiles_is_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = iter([0, 1, 1, 1, 1, 1])  # before and after each call: the first one compiles
    calls: list[int] = []
    monkeypatch.setattr(speed, "_graphs", lambda: next(graphs))
    speed._timed(lambda: calls.append(1), torch.device("cpu"))
    assert len(calls) == 2


def test_verdicts() -> None:
    assert verdict(Interval(-0.004, -0.006, -0.002), 2000) == "equal"
    assert verdict(Interval(-0.006, -0.02, 0.01), 2000) == "different"
    assert verdict(Interval(-0.006, -0.02, 0.01), 1999) == "not distinguishable"
    assert verdict(Interval(-0.1, -0.2, -0.01), 300) == "different"


def test_seams_are_as_before_even_after_an_error() -> None:
    model = tiny()
    model.embed = marker = lambda *args: None

    def fail() -> None:
        with wrapped_seams([model], lambda name, seam: seam):
            assert all(name in vars(model) for name in SEAMS if hasattr(model, name))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.embed is marker and "recur" not in vars(model) and "decode" not in vars(model)


def seen(number: int, positions: list[int], proposals: list[int]) -> TraceStep:
    at, said = np.array([positions]), np.array([proposals])
    return TraceStep(number, 0.0, number, at, at, said, at, at, at, at < 0, at < 0)


def test_how_long_a_text_waits_for_drafts_that_are_right() -> None:
    trace = Trace(prompts=[[5, 6]])  # the text 7 8 9: lanes 1, 2, 3
    trace.steps = [
        seen(0, [0, 1, -1], [4, 3, 0]),  # a prompt's lane, whose proposal counts for nothing; a wrong draft
        seen(1, [1, 2, -1], [7, 8, 0]),
        seen(2, [1, 2, 3], [7, 3, 9]),  # complete, but for a flip
        seen(3, [1, 2, 3], [-1, 8, 9]),  # right for good
        seen(4, [1, 2, 3], [7, 8, 9]),
        seen(5, [2, 3, 4], [8, 9, 1]),  # a lane behind the text's end
    ]
    assert draft_steps(trace, [7, 8, 9]) == (6, 4)
    assert draft_steps(Trace(steps=trace.steps[:2], prompts=[[5, 6]]), [7, 8]) == (2, 2)
    assert draft_steps(Trace(prompts=[[5, 6]]), [7]) == (0, 0)  # the prefill's
    model, trace = tiny(), Trace()
    (text,) = Autoregressive(num_steps=2)(model, [[1, 2, 3]], max_new_tokens=5, trace=trace).tokens
    assert draft_steps(trace, text) == (4, 4)  # one token a step, each right at once


def test_recorded_passes_are_those_that_the_sampler_counts() -> None:
    model, sampler = tiny(), DiffusionForcing(num_steps=4, inner_steps=2, max_wavefront=3)
    stats = sampler(model, [[1, 2, 3]], max_new_tokens=6).stats
    passes = record_passes([model], lambda: sampler(model, [[1, 2, 3]], max_new_tokens=6))
    assert len(passes) == stats.core_passes + stats.prefill_passes
    assert sum(each.width for each in passes[stats.prefill_passes :]) == stats.token_passes
    assert passes[0].cache_bytes > 0 and passes[0].rows == 1


@pytest.mark.parametrize(
    "sampler",
    [
        DiffusionForcing(num_steps=4, inner_steps=2, max_wavefront=3),
        Exact(group=3),
        Adaptive(exit_threshold=0.0),
        Autoregressive(),  # all four recurrences in one graph
    ],
)
def test_graphs_of_several_seams_or_recurrences_are_timed_and_their_passes_recorded(monkeypatch, sampler) -> None:
    monkeypatch.setattr(base, "can_compile", lambda device: (True, ""))
    model, sampler = tiny(), replace(sampler, num_steps=4, prefill_steps=4, compile=True)
    seams = [model, sampling_seams(model)]
    with torch.compiler.set_stance("force_eager"):
        stats = sampler(model, [[1, 2, 3]], max_new_tokens=6).stats
        passes = record_passes(seams, lambda: sampler(model, [[1, 2, 3]], max_new_tokens=6))
        found = time_shares(seams, lambda: sampler(model, [[1, 2, 3]], max_new_tokens=6), torch.device("cpu"))
        assert replay(passes, torch.device("cpu")) > 0
    assert len(passes) == stats.core_passes + stats.prefill_passes
    assert found.fused > 0.02 or (isinstance(sampler, Autoregressive) and found.core > 0.02)
    assert found.core + found.embed + found.decode + found.fused + found.bookkeeping == pytest.approx(1)


def test_peak_memory_holds_the_cache_and_grows_with_depth() -> None:
    model, device = tiny(), torch.device("cpu")

    def peak(num_steps: int) -> int:
        sampler = Autoregressive(num_steps=num_steps)
        return peak_bytes(lambda: sampler(model, [[1, 2, 3]], max_new_tokens=4), device)

    assert peak(16) > peak(2) > 0
    assert peak_bytes(lambda: torch.zeros(1000), device) >= 4000


def test_shares_add_up() -> None:
    model = tiny()
    found = time_shares(
        [model], lambda: Autoregressive(num_steps=2)(model, [[1]], max_new_tokens=3), torch.device("cpu")
    )
    assert found.core + found.embed + found.decode + found.bookkeeping == pytest.approx(1)
    assert found.core > 0 and found.seconds > 0
