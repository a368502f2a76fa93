"""The module and the callbacks in a real, tiny fit."""

import json
import math
import signal
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, Trainer
from torch.optim import AdamW

from recdepth import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.data import PointerChase, TaskData, WordProblems
from recdepth.objectives import NextToken
from recdepth.sampling import Autoregressive, DiffusionForcing, Exact
from recdepth.training import (
    Constant,
    Curriculum,
    DepthLoss,
    MetricsFile,
    Progress,
    SamplerEvaluation,
    Throughput,
    TrainingModule,
    WarmupStableDecay,
)
from recdepth.training.callbacks import Export, StopOnCtrlC
from recdepth.training.callbacks.throughput import not_training
from recdepth.training.comparison import Comparison, log
from recdepth.training.seams import eager_seams


def word_problems() -> TaskData:
    return TaskData(WordProblems(), batch_size=4, validation_items=8)


def module(data: TaskData, schedule=None, **objective) -> TrainingModule:
    torch.manual_seed(0)
    config = RecurrentDepthConfig(
        vocab_size=len(data.tokenizer), hidden_size=16, num_attention_heads=2, core_layers=1, mean_recurrence=2
    )
    model = RecurrentDepthForCausalLM(config)
    return TrainingModule(model, NextToken(**objective), partial(AdamW, lr=1e-2), schedule or Constant())


def trainer(tmp_path, *callbacks, steps=4, **settings) -> Trainer:
    settings = {"log_every_n_steps": 1, "val_check_interval": 2, "limit_val_batches": 1, **settings}
    return Trainer(
        max_steps=steps,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=[MetricsFile(tmp_path / "metrics.jsonl")],
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(c, Progress) for c in callbacks),
        **settings,
    )


def lines(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_metrics_file_has_losses_depths_and_speed(tmp_path) -> None:
    data = word_problems()
    trainer(tmp_path, Throughput(), DepthLoss(depths=[1, 3], batches=1)).fit(module(data), datamodule=data)
    training = [line for line in lines(tmp_path) if "train/loss" in line]
    assert [line["step"] for line in training] == [0, 1, 2, 3]
    assert all(line["train/depth"] >= 1 and line["train/tokens_per_second"] > 0 for line in training)
    validation = [line for line in lines(tmp_path) if "val/loss" in line]
    assert len(validation) == 2
    depths = {name for name in validation[0] if name.startswith("val/loss_depth_")}
    assert depths == {f"val/loss_depth_{d}" for d in (1, 2, 3, 4)}  # and r̄ = 2, 2·r̄ = 4
    assert validation[-1]["val/loss"] == pytest.approx(validation[-1]["val/loss_depth_2"])


def test_depth_loss_is_the_models_own(tmp_path) -> None:
    data = word_problems()
    training = module(data)
    trainer(tmp_path, DepthLoss(depths=[3], batches=2), limit_val_batches=2).validate(
        training, datamodule=data, verbose=False
    )
    total = count = 0.0
    with torch.no_grad():
        for batch in data.val_dataloader():
            n = int((batch["labels"][:, 1:] != -100).sum())
            total += n * training.model(batch["input_ids"], labels=batch["labels"], num_steps=3, seed=0).loss.item()
            count += n
    assert lines(tmp_path)[-1]["val/loss_depth_3"] == pytest.approx(total / count, rel=1e-5)


def test_numbers_that_json_lacks_become_null(tmp_path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.log_metrics({"a": math.nan, "b": 1}, step=3)
    assert {k: v for k, v in lines(tmp_path)[0].items() if k != "seconds"} == {"step": 3, "a": None, "b": 1.0}
    assert file.latest["b"] == 1


def test_learning_rate_follows_the_schedule(tmp_path) -> None:
    data = word_problems()
    trainer(tmp_path).fit(module(data, WarmupStableDecay(warmup=0.5, decay=0.5)), datamodule=data)
    rates = [line["train/lr"] for line in lines(tmp_path) if "train/lr" in line]
    assert rates == pytest.approx([0.0025, 0.0075, 0.0075, 0.0025])  # at the middle of each of the four steps


def test_progress_goes_by_time_when_time_is_shorter(tmp_path) -> None:
    data = word_problems()
    training = module(data)
    fit = trainer(tmp_path, steps=-1, max_time=timedelta(seconds=2), limit_val_batches=0, val_check_interval=None)
    fit.fit(training, datamodule=data)
    assert training.progress == pytest.approx(1.0, abs=0.1)
    rates = [line["train/lr"] for line in lines(tmp_path) if "train/lr" in line]
    assert len(rates) > 3


def test_training_noise_does_not_depend_on_validation(tmp_path) -> None:
    weights = []
    for interval in (1, 100):
        data = word_problems()
        training = module(data)
        evaluation = SamplerEvaluation({"ar": Autoregressive(num_steps=2)}, items=2)
        (tmp_path / str(interval)).mkdir()
        trainer(tmp_path / str(interval), evaluation, val_check_interval=interval).fit(training, datamodule=data)
        weights.append(torch.cat([p.flatten() for p in training.model.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_sampler_evaluation_is_of_validation_prompts_then_of_test_prompts(tmp_path) -> None:
    data = word_problems()
    evaluation = SamplerEvaluation({"ar": Autoregressive(num_steps=2)}, items=3, samples_kept=1)
    training = module(data)
    fit = trainer(tmp_path, evaluation, steps=2)
    fit.fit(training, datamodule=data)
    fit.validate(training, datamodule=data, verbose=False)
    names = [{n for n in line if "/ar" in n} for line in lines(tmp_path)]
    assert any({"val/accuracy/ar", "val/core_passes_per_token/ar"} <= n for n in names)
    assert "test/accuracy/ar" in names[-1]
    assert "val/accuracy/ar" not in names[-1]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").open()]
    expected = [data.evaluation_items(1, split=split)[0].prompt for split in ("validation", "test")]
    assert [s["prompt"] for s in samples] == expected


def test_the_curriculum_raises_level_and_depth_and_is_checkpointed(tmp_path) -> None:
    data = TaskData(PointerChase(symbols=4, max_hops=3, level=1), sequence_length=80, max_new_tokens=36, batch_size=4)
    data.score = lambda item, tokens: 1.0  # type: ignore[method-assign]
    training = module(data)
    curriculum = Curriculum(
        Autoregressive(num_steps=1), threshold=0.9, every_n_steps=1, items=2, recurrence_per_level=1.5
    )
    trainer(tmp_path, curriculum, limit_val_batches=0).fit(training, datamodule=data)
    assert data.level == data.max_level == 3
    assert training.mean_recurrence == 2 + 2 * 1.5
    assert [line["curriculum/level"] for line in lines(tmp_path) if "curriculum/level" in line] == [2, 3, 3, 3]
    for steps in (1, 0):  # with nothing left to train, there is still a model to validate
        later = Curriculum(Autoregressive(num_steps=1), every_n_steps=100)
        later.load_state_dict(curriculum.state_dict())
        resumed = module(data)
        trainer(tmp_path, later, steps=steps, limit_val_batches=0).fit(resumed, datamodule=data)
        assert resumed.mean_recurrence == 5


def test_the_curriculum_waits_for_the_threshold(tmp_path) -> None:
    data = TaskData(PointerChase(symbols=4, max_hops=3, level=1), sequence_length=80, max_new_tokens=36, batch_size=4)
    data.score = lambda item, tokens: 0.5  # type: ignore[method-assign]
    trainer(tmp_path, Curriculum(Autoregressive(num_steps=1), every_n_steps=1, items=2), limit_val_batches=0).fit(
        module(data), datamodule=data
    )
    assert data.level == 1


def test_progress_prints_loss_depth_and_speed_without_a_terminal(tmp_path, capsys) -> None:
    data = word_problems()
    trainer(tmp_path, Throughput(), Progress(every_seconds=0.01)).fit(module(data), datamodule=data)
    printed = capsys.readouterr().err
    assert "step 4/4" in printed
    assert all(word in printed for word in ("loss", "depth", "tokens/s", "100%"))


def test_eager_seams_set_the_compiled_ones_aside() -> None:
    model = module(word_problems()).model
    model.embed = compiled = lambda *a, **k: None  # type: ignore[method-assign]
    model.train()
    with eager_seams(model):
        assert model.embed is not compiled
        assert not model.training
    assert model.embed is compiled
    assert model.training


def test_the_curriculum_is_logged_whatever_log_every_n_steps(tmp_path) -> None:
    data = TaskData(PointerChase(symbols=4, max_hops=3, level=1), sequence_length=80, max_new_tokens=36, batch_size=4)
    curriculum = Curriculum(Autoregressive(num_steps=1), every_n_steps=2, items=2)
    callbacks = (Throughput(), curriculum)
    trainer(tmp_path, *callbacks, limit_val_batches=0, log_every_n_steps=0).fit(module(data), datamodule=data)
    assert [line["step"] for line in lines(tmp_path) if "curriculum/accuracy" in line] == [2, 4]


def test_a_curriculums_time_is_not_training_time(monkeypatch) -> None:
    clock = iter([10.0, 100.0, 105.0])
    monkeypatch.setattr("recdepth.training.callbacks.throughput.time.monotonic", lambda: next(clock))
    throughput = Throughput()
    with not_training(SimpleNamespace(callbacks=[throughput])):
        pass
    assert throughput._since == 15.0


def test_an_export_that_fails_does_not_hide_the_error(tmp_path, monkeypatch, caplog) -> None:
    class Broken(Callback):
        def on_train_batch_end(self, *args) -> None:
            raise RuntimeError("the cause")

    def no_room(folder, *args, **kwargs) -> None:
        folder.mkdir()
        raise OSError("no space left")

    data = word_problems()
    training = module(data)
    monkeypatch.setattr(training.model, "save_pretrained", no_room)
    with pytest.raises(RuntimeError, match="the cause"):
        trainer(tmp_path, Broken(), Export(tmp_path / "model", data.tokenizer)).fit(training, datamodule=data)
    assert f"{tmp_path / 'model'}: no space left" in caplog.text
    assert not list(tmp_path.glob("model*"))


def test_ctrl_c_stops_an_evaluation_between_its_batches(tmp_path) -> None:
    data = word_problems()
    stop, calls = StopOnCtrlC(), []

    def ctrl_c(*args, **kwargs):
        calls.append(1)
        signal.raise_signal(signal.SIGINT)
        return Autoregressive(num_steps=1)(*args, **kwargs)

    evaluation = SamplerEvaluation({"ar": ctrl_c}, items=3, batch_size=1)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            trainer(tmp_path, stop, evaluation).validate(module(data), datamodule=data, verbose=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(calls) == 1


@pytest.mark.parametrize(("stopping", "drawn"), [(0, True), (1, True), (2, False)])
def test_a_comparison_looks_for_a_text_to_draw(tmp_path, monkeypatch, caplog, stopping, drawn) -> None:
    data = word_problems()
    data.max_new_tokens = 3
    model = module(data).model
    calls = []

    class Drafts(DiffusionForcing):
        def __call__(self, *args, **kwargs):
            if kwargs.get("trace") is not None:
                calls.append(1)
                kwargs["max_new_tokens"] = 1 if len(calls) <= 2 * stopping else 3  # each text once to warm up
            return super().__call__(*args, **{**kwargs, "stop_tokens": []})

    monkeypatch.setattr("recdepth.training.comparison.compare", lambda *args, **kwargs: [])
    monkeypatch.setattr(
        "recdepth.training.comparison.comparison_samplers", lambda *_: {"df-headway": Drafts(num_steps=4)}
    )
    monkeypatch.setattr("recdepth.training.comparison.print_comparison", lambda rows: None)
    monkeypatch.setattr("recdepth.training.comparison.write_comparison", lambda rows, folder: None)
    caplog.set_level("INFO", logger=log.name)
    Comparison(num_steps=2, accuracy_prompts=2, speed_prompts=2)(model, data, tmp_path, [], 0)
    assert (tmp_path / "wavefront.png").exists() is (tmp_path / "wavefront.html").exists() is drawn
    assert ("No wavefront" in caplog.text) is not drawn


def test_a_comparison_measures_the_depths_and_prompts_asked_for(tmp_path, monkeypatch) -> None:
    data = word_problems()
    data.max_new_tokens = 3
    asked = {}

    def compare(model, samplers, held_out, **settings):
        asked.update(settings["accuracy_prompts"], items=len(held_out))
        return []

    monkeypatch.setattr("recdepth.training.comparison.compare", compare)
    monkeypatch.setattr("recdepth.training.comparison.print_comparison", lambda rows: None)
    monkeypatch.setattr("recdepth.training.comparison.write_comparison", lambda rows, folder: None)
    settings = {"num_steps": 4, "accuracy_prompts": 3, "speed_prompts": 2}
    samplers = {"sure": Exact(num_steps=4), "shallow": Exact(num_steps=4, prefill_steps=2)}  # reads prompts otherwise
    samplers |= {"fast": DiffusionForcing(num_steps=4)}
    Comparison(**settings, samplers=samplers, ar_depths=[3], lossless_prompts=2)(
        module(data).model, data, tmp_path, [], 0
    )
    assert asked == {"ar-4": 3, "ar-3": 3, "sure": 2, "shallow": 3, "fast": 3, "items": 3}
    assert list(Comparison(**settings, samplers=samplers).samplers) == [
        "ar-4",
        "ar-2",
        "ar-1",
        "sure",
        "shallow",
        "fast",
    ]
    with pytest.raises(ValueError, match=r"ar_depths=\[4\] must lie between 1 and num_steps=4"):
        Comparison(**settings, ar_depths=[2, 4])
    with pytest.raises(ValueError, match="lossless_prompts=0 must be at least 1"):
        Comparison(**settings, lossless_prompts=0)


def test_a_line_that_was_cut_off_is_not_gone_on_with(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    for left, expected in (("", 0), ('{"step": 1', 0), ('{"step": 1}\n{"st', 1), ('{"step": 1}\n', 1)):
        path.write_text(left)
        MetricsFile(path).log_metrics({"a": 2.0}, step=2)
        assert [line["step"] for line in lines(tmp_path)] == [1, 2][1 - expected :]
