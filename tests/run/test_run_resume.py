"""A run that is stopped and resumed ends where an uninterrupted one does."""

import torch
from safetensors.torch import load_file

from recdepth import run

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
