"""``train`` and ``sample`` in this process."""

import json
import re
import signal

import lightning
import pytest
import torch
import wandb

from recdepth import checks, lifecycle, run, run_sample
from recdepth.data import WordProblems
from recdepth.reporting.status import read_status
from recdepth.sampling import Autoregressive, DiffusionForcing
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
        settings = [
            "logger=none",
            f"run_dir={trained}",
            "num_prompts=1",
            "sampler.num_steps=4",
            "max_new_tokens=3",
            *overrides,
        ]
        return run_sample.sample(composed(*settings, name="sample", folder=folder))

    return go


def test_a_trace_without_steps_ends_with_a_remark(sample, tmp_path, capsys) -> None:
    assert len(sample("trace=true", "max_new_tokens=1")) == 1
    assert "No wavefront: the first token ended the text" in capsys.readouterr().out
    assert not (tmp_path / "sampled" / "wavefront.png").exists()


def test_what_was_sampled_goes_to_wandb(sample, tmp_path, monkeypatch) -> None:
    asked, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **settings: asked.append(settings) or init(**settings))
    sample("logger=wandb", "trace=true", "max_new_tokens=8", "num_prompts=2", "tags=[a]")
    assert [(a["job_type"], a["mode"], a["tags"]) for a in asked] == [("sample", "offline", ["a"])]
    assert wandb.run is None
    (media,) = (tmp_path / "sampled" / "wandb").glob("offline-run-*/files/media")
    (page,) = media.glob("html/wavefront*.html")
    assert page.read_text() == (tmp_path / "sampled" / "wavefront.html").read_text()
    (table,) = media.glob("table/samples*.json")
    assert json.loads(table.read_text())["columns"] == ["sampler", "prompt", "text", "answer", "score"]
    assert len(list(media.glob("images/wavefront*.png"))) == 1


def test_statistics_go_to_other_loggers_too(sample, tmp_path) -> None:
    sample("logger=csv")
    header, values = (tmp_path / "sampled" / "csv" / "metrics.csv").read_text().splitlines()
    assert float(dict(zip(header.split(","), values.split(","), strict=True))["sample/new_tokens"]) > 0


def test_the_page_holds_every_prompt_beside_autoregressive_decoding(sample, tmp_path, capsys) -> None:
    texts = sample("trace=true", "stream=true", "num_prompts=3", "max_new_tokens=6", "sampler.inner_steps=2")
    page = (tmp_path / "sampled" / "wavefront.html").read_text()
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page)[1])
    assert len(data["rows"]) + data["empty"] == 3
    for row, text in zip(data["rows"], [t for t in texts if t] or texts, strict=False):
        assert "".join(data["pieces"][i][0] for i in row["final"]) == text
        assert row["baseline"]["p"] == [4 * (i + 1) for i in range(len(row["baseline"]["final"]))]
        assert row["baseline"]["t"] == sorted(row["baseline"]["t"])
        assert row["verdict"].startswith("wrong") or row["verdict"] == "right"
    shown = capsys.readouterr().out
    assert all(f"{text}\n" in shown for text in texts)


def test_ctrl_c_in_the_comparison_leaves_the_page(sample, tmp_path, monkeypatch) -> None:
    def stop(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Autoregressive, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        sample("trace=true", "max_new_tokens=6")
    page = (tmp_path / "sampled" / "wavefront.html").read_text()
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page)[1])
    assert (len(data["rows"]), data["baseline"], data["rows"][0]["baseline"]) == (1, None, None)


def test_samples_are_recorded_with_all_that_made_them(sample, trained) -> None:
    sample("top_k=5", "temperature=0.5")
    record = json.loads((trained / "samples.jsonl").read_text().splitlines()[-1])
    wanted = {"top_k": 5, "top_p": 1.0, "min_p": 0.0, "temperature": 0.5, "max_new_tokens": 3, "seed": 0}
    assert wanted.items() <= record.items()
    assert record["model"] == str(trained / "model")


def test_sampling_returns_and_logs_accuracy_and_speed(composed, trained, tmp_path) -> None:
    small = ["logger=none", f"run_dir={trained}", "sampler.num_steps=4", "max_new_tokens=3", "num_prompts=3"]
    cfg = composed(*small, name="sample", folder="sampled")
    run_sample.sample(cfg)
    accuracy, speed = run_sample.sample_metric(cfg)
    (logged,) = [json.loads(line) for line in (tmp_path / "sampled" / "metrics.jsonl").open()]
    assert (logged["accuracy"], logged["tokens_per_second"]) == (accuracy, speed)
    assert 0 <= accuracy <= 1 and speed > 0
    cfg.optimized_metric = "core_passes_per_token"
    assert run_sample.sample_metric(cfg) == logged["core_passes_per_token"] > 0


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


@pytest.mark.parametrize("validates", [1, 0])
def test_ctrl_c_while_the_end_is_saved_ends_like_any_other(tiny, monkeypatch, caplog, validates) -> None:
    saved = run.Export.on_train_end

    def ctrl_c(self, *args):
        signal.raise_signal(signal.SIGINT)
        saved(self, *args)

    monkeypatch.setattr(run.Export, "on_train_end", ctrl_c)
    caplog.set_level("INFO", logger=run.log.name)
    settings = ["callbacks=checkpoint", f"trainer.limit_val_batches={validates}", "optimized_metric=train/loss"]
    with pytest.raises(KeyboardInterrupt):
        run.train(tiny("logger=none", *settings, "compare=true"))
    assert "Stopped at step 2" in caplog.text


def test_another_seed_has_other_data(composed) -> None:
    prompts = [
        checks.build(composed("data=word_problems", f"seed={seed}"), "data").evaluation_items(3) for seed in (0, 1, 0)
    ]
    texts = [[item.prompt for item in items] for items in prompts]
    assert texts[0] == texts[2] != texts[1]
