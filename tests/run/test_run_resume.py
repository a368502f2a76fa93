"""A run that is stopped and resumed ends where an uninterrupted one does."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from recdepth import run
from recdepth.settings import ConfigError

STEPS = ["logger=none", "callbacks=checkpoint", "trainer.limit_val_batches=1", "data.validation_items=16"]
STEPS += ["scheduler.warmup=0.2", "objective.depth_growth=0.5"]


def test_resumed_weights_equal_uninterrupted_ones(tiny, tmp_path) -> None:
    run.train(tiny(*STEPS, "trainer.max_steps=6", "trainer.val_check_interval=100", folder="whole"))
    # the same schedules, but left after the checkpoint of step 3; validation in between must not matter
    cut = [*STEPS, "trainer.val_check_interval=2", "callbacks.checkpoint.every_n_train_steps=3"]
    cut += ["callbacks.checkpoint.save_top_k=-1", "trainer.max_steps=6"]
    run.train(tiny(*cut, folder="first"))
    checkpoint = tmp_path / "first" / "checkpoints" / "step_3.ckpt"
    run.train(tiny(*STEPS, "trainer.max_steps=6", f"resume={checkpoint}", folder="second"))
    whole, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "second"))
    first = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert any(not torch.equal(first[f"model.{name}"], value) for name, value in whole.items())
    for name, value in whole.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0, msg=name)


def test_a_checkpoint_holds_plain_types_only_and_a_run_folder_will_do(tiny, tmp_path) -> None:
    run.train(tiny(*STEPS, "trainer.max_steps=2", folder="first"))
    checkpoint = torch.load(tmp_path / "first" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["TaskData"]["position"] == 2
    run.train(tiny(*STEPS, "trainer.max_steps=3", f"resume={tmp_path / 'first'}", folder="second"))
    assert torch.load(tmp_path / "second" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_run_that_has_all_its_steps_is_not_resumed(tiny, tmp_path) -> None:
    run.train(tiny(*STEPS, "trainer.max_steps=2", folder="first"))
    with pytest.raises(ConfigError, match=f"resume={tmp_path / 'first'} is at step 2; raise trainer.max_steps above 2"):
        run.train(tiny(*STEPS, "trainer.max_steps=2", f"resume={tmp_path / 'first'}", folder="second"))
    with pytest.raises(ConfigError, match="is at step 2"):
        run.train(tiny(*STEPS, "trainer.max_steps=1", "compare=true", f"resume={tmp_path / 'first'}", folder="second"))
    (tmp_path / "notes.ckpt").write_text("no checkpoint")
    with pytest.raises(ConfigError, match="is not a checkpoint"):
        run.train(tiny(*STEPS, f"resume={tmp_path / 'notes.ckpt'}", folder="third"))


def test_the_samplers_of_a_finished_run_are_compared_again(tiny, tmp_path) -> None:
    run.train(tiny(*STEPS, "trainer.max_steps=2", folder="first"))
    weights = (tmp_path / "first" / "model" / "model.safetensors").read_bytes()
    again = ["compare=true", "comparison.num_steps=2", "comparison.accuracy_prompts=2", "comparison.speed_prompts=1"]
    run.train(tiny(*STEPS, "trainer.max_steps=2", *again, f"resume={tmp_path / 'first'}", folder="first"))
    rows = json.loads((tmp_path / "first" / "comparison.json").read_text())
    assert {row["sampler"] for row in rows} >= {"ar-2", "exact"}
    assert (tmp_path / "first" / "model" / "model.safetensors").read_bytes() == weights


def test_a_run_whose_time_is_over_is_exported_all_the_same(tiny, tmp_path) -> None:
    run.train(tiny(*STEPS, "trainer.max_steps=2", "trainer.max_time='00:00:01:00'", folder="first"))
    path = tmp_path / "first" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["Timer"]["time_elapsed"]["train"] = 100.0
    torch.save(checkpoint, path)
    late = [f"resume={tmp_path / 'first'}", "trainer.max_steps=9", "trainer.max_time='00:00:01:00'"]
    run.train(tiny(*STEPS, *late, folder="second"))
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_folder_with_a_run_is_not_taken_for_another(tiny, tmp_path) -> None:
    run.train(tiny(*STEPS, "trainer.max_steps=2"))
    (tmp_path / "killed" / "checkpoints").mkdir(parents=True)  # before its first one: the same command may start again
    run.train(tiny(*STEPS, "trainer.max_steps=2", folder="killed"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    message = (
        f"paths.run_dir={tmp_path / 'run'} holds a run; take another folder, or go on by resume={tmp_path / 'run'}"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        run.train(tiny(*STEPS, "trainer.max_steps=2", "seed=5"))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    run.train(tiny(*STEPS, "trainer.max_steps=3", f"resume={tmp_path / 'run'}"))


def test_the_end_of_training_is_in_the_last_checkpoint(tiny, tmp_path) -> None:
    run.train(tiny(*STEPS, "trainer.max_steps=5", "callbacks.checkpoint.every_n_train_steps=2", folder="first"))
    folder = tmp_path / "first" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step_5.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 5


def test_the_end_of_training_is_there_also_if_another_step_was_better(tiny, tmp_path) -> None:
    worse = ["optimizer.lr=9", "optimizer.adamw_lr=9", "trainer.val_check_interval=2", "trainer.max_steps=5"]
    run.train(
        tiny(*STEPS, *worse, "+callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.every_n_train_steps=2")
    )
    kept = {p.name: torch.load(p, weights_only=True)["global_step"] for p in (tmp_path / "run/checkpoints").iterdir()}
    assert kept.pop("last.ckpt") == 5
    assert len(kept) == 1 and set(kept.values()) < {2, 4}


def test_a_resumed_run_has_the_optimizers_settings_of_its_own(tiny, tmp_path) -> None:
    steps = [*STEPS, "scheduler.warmup=0.0", "scheduler.decay=0.0"]
    steps += ["optimizer=adamw"]
    run.train(tiny(*steps, "optimizer.lr=0.01", "trainer.max_steps=2", folder="first"))
    other = ["optimizer.lr=0.003", "optimizer.weight_decay=0.5", "trainer.max_steps=4"]
    run.train(tiny(*steps, *other, f"resume={tmp_path / 'first'}", folder="second"))
    lines = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert {round(line["train/lr"], 6) for line in lines if "train/lr" in line} == {0.003}
    (state,) = torch.load(tmp_path / "second" / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    assert {(g["lr"], g["initial_lr"]) for g in state["param_groups"]} == {(0.003, 0.003)}
    assert {g["weight_decay"] for g in state["param_groups"]} == {0.5, 0.0}
    for wrong, message in (
        ("optimizer=muon", "was trained by another optimizer; take its optimizer=…"),
        ("model.core_layers=2", r"is of another model: core\.1.* is missing there and \(.*\) here; take its model=…"),
    ):
        with pytest.raises(ConfigError, match=message):
            run.train(tiny(*steps, wrong, "trainer.max_steps=9", f"resume={tmp_path / 'first'}", folder="third"))
        assert not (tmp_path / "third").exists()


def test_a_resumed_run_does_not_need_what_it_started_from(tiny, tmp_path) -> None:
    run.train(tiny(*STEPS, "trainer.max_steps=1", folder="base"))
    run.train(tiny(*STEPS, "trainer.max_steps=2", f"init_from={tmp_path / 'base'}", folder="first"))
    (tmp_path / "base").rename(tmp_path / "moved")
    again = [f"init_from={tmp_path / 'base'}", f"resume={tmp_path / 'first'}", "trainer.max_steps=3"]
    run.train(tiny(*STEPS, *again, folder="first"))
    assert torch.load(tmp_path / "first" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
