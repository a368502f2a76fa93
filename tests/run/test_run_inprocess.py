"""``train`` and ``sample`` in this process."""

import json
import signal

import lightning
import pytest
import torch

from recdepth import checks, lifecycle, run
from recdepth.data import WordProblems
from recdepth.reporting.status import read_status
from recdepth.sampling import DiffusionForcing
from recdepth.settings import ConfigError
from recdepth.training import Comparison

STEPS = ["logger=none", "callbacks=none", "data.validation_items=16"]


@pytest.fixture
def trained(tiny, tmp_path):
    run.train(tiny(*STEPS))
    return tmp_path / "run"


@pytest.fixture
def sample(composed, trained):
    def go(*overrides, folder="sampled"):
        settings = [f"run_dir={trained}", "num_prompts=1", "sampler.num_steps=4", "max_new_tokens=3", *overrides]
        return run.sample(composed(*settings, name="sample", folder=folder))

    return go


def test_a_trace_without_steps_ends_with_a_remark(sample, tmp_path, capsys) -> None:
    assert len(sample("trace=true", "max_new_tokens=1")) == 1
    assert "No wavefront: the first token ended the text" in capsys.readouterr().out
    assert not (tmp_path / "sampled" / "wavefront.png").exists()


def test_samples_are_recorded_with_all_that_made_them(sample, trained) -> None:
    sample("top_k=5", "temperature=0.5")
    record = json.loads((trained / "samples.jsonl").read_text().splitlines()[-1])
    wanted = {"top_k": 5, "top_p": 1.0, "min_p": 0.0, "temperature": 0.5, "max_new_tokens": 3, "seed": 0}
    assert wanted.items() <= record.items()
    assert record["model"] == str(trained / "model")


def test_sampling_takes_the_tokenizer_beside_the_model(sample, monkeypatch) -> None:
    texts = sample()
    monkeypatch.setattr(WordProblems, "build_tokenizer", lambda self: pytest.fail("the run has a tokenizer"))
    assert sample(folder="again") == texts


def test_complaints_at_the_call_are_not_keyed_as_the_samplers(sample, monkeypatch) -> None:
    def complain(*args, **kwargs):
        raise ValueError("cannot sample:\n  - top_k=-1 must be at least 0\n  - max_new_tokens=9 is too much")

    monkeypatch.setattr(DiffusionForcing, "__call__", complain)
    with pytest.raises(ConfigError) as found:
        sample()
    assert found.value.problems == ["top_k=-1 must be at least 0", "max_new_tokens=9 is too much"]


def test_only_the_first_process_reports(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lightning.Trainer, "is_global_zero", False)
    monkeypatch.setattr(lifecycle, "rank", lambda: 1)
    assert run.train(tiny(*STEPS, "report=true", "compare=true")) is None
    assert not (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "status.json").exists()


@pytest.mark.parametrize(
    ("error", "state"), [(FloatingPointError("nan"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_run_that_breaks_off_says_so_in_its_folder(tiny, tmp_path, monkeypatch, error, state) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(run, "_after_training", broken)
    with pytest.raises(type(error)):
        run.train(tiny(*STEPS, "report=true"))
    status = read_status(tmp_path / "run")
    assert (status.state, status.error) == (state, "FloatingPointError: nan" if state == "failed" else None)
    page = (tmp_path / "run" / "report.html").read_text()
    assert f">{state}</span>" in page
    assert ("FloatingPointError: nan" in page) == (state == "failed")


def test_a_comparison_runs_on_the_trainers_device(tiny, monkeypatch) -> None:
    moved, device = [], torch.device("cpu")
    monkeypatch.setattr(run.TrainingModule, "to", lambda self, device: moved.append(device))
    monkeypatch.setattr(Comparison, "__call__", lambda *args: moved.append("compared"))
    run.train(tiny(*STEPS, "compare=true"))
    assert moved[-2:] == [device, "compared"]


@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_allocator_is_for_the_cpu(tiny, monkeypatch, on_cpu) -> None:
    called = []
    monkeypatch.setattr(lifecycle, "keep_large_buffers", lambda: called.append(1))
    monkeypatch.setattr(checks, "on_cpu", lambda cfg: on_cpu)
    run.train(tiny(*STEPS))
    assert bool(called) is on_cpu


def test_ctrl_c_in_the_last_validation_ends_like_any_other(tiny, tmp_path, monkeypatch, caplog) -> None:
    def ctrl_c(self, trainer, *args):
        if trainer.state.fn == "validate":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run.Throughput, "on_validation_start", ctrl_c)
    caplog.set_level("INFO", logger=run.log.name)
    with pytest.raises(KeyboardInterrupt):
        run.train(tiny("logger=none", "callbacks=checkpoint", "data.validation_items=16"))
    assert f"resume={tmp_path / 'run'}" in caplog.text
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_another_seed_has_other_data(composed) -> None:
    prompts = [
        checks.build(composed("data=word_problems", f"seed={seed}"), "data").evaluation_items(3) for seed in (0, 1, 0)
    ]
    texts = [[item.prompt for item in items] for items in prompts]
    assert texts[0] == texts[2] != texts[1]
