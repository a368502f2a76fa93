"""What users read when a setting is wrong: key, value, remedy, all at once, exit code 2, no traceback."""

from pathlib import Path

import pytest

from recdepth import checks
from recdepth.entry import composition_problems
from recdepth.settings import ConfigError

CONF = Path(__file__).resolve().parents[2] / "conf"
DF = "callbacks.sampler_evaluation.samplers.diffusion_forcing"

WRONG = [
    ("seed=a", "seed=a should be a valid integer"),
    ("compile=maybe", "compile=maybe should be a valid boolean"),
    ("+sede=1", "sede=1 is not a setting of this program; did you mean seed"),
    (
        "+optimizer.wight_decay=1",
        "optimizer.wight_decay=1 is not a setting of recdepth.training.MuonAdamW; did you mean",
    ),
    ("optimizer._target_=torch.optim.Adan", "optimizer._target_=torch.optim.Adan cannot be imported"),
    ("optimizer.lr=-1", "optimizer.lr=-1 must be above 0"),
    ("optimizer.momentum=-1", "optimizer.momentum=-1 must be at least 0 and below 1"),
    ("optimizer.momentum=1.5", "optimizer.momentum=1.5 must be at least 0 and below 1"),
    ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]"),
    ("optimizer.adjust_lr=shape", "optimizer.adjust_lr=shape should be 'original' or 'match_rms_adamw'"),
    ("scheduler.warmup=0.9", "scheduler.warmup=0.9 and decay=0.3 overlap"),
    ("scheduler.final=2", "scheduler.final=2 must be a fraction"),
    ("objective.depth_growth=2", "objective.depth_growth=2 is a fraction"),
    ("model.hidden_size=130", "model.hidden_size=130 is not divisible by num_attention_heads=4; take hidden_size=132"),
    ("model.hidden_size=12", "cannot be rotated in pairs"),
    ("model.core_layers=0", "model.core_layers=0 must be at least 1"),
    ("model.core_layers=2.5", "model.core_layers=2.5 should be a valid integer"),
    (f"{DF}.inner_steps=99", f"{DF}.inner_steps=99 exceeds num_steps=16"),
    (f"{DF}.commit=latent", f"{DF}.commit=latent should be 'latent_diff'"),
    ("trainer.precision=bf17", "trainer.precision=bf17 should be"),
    ("trainer.max_steps=2.5", "trainer.max_steps=2.5 should be a valid integer"),
    ("trainer.max_steps=-1", "training would never end"),
    ("trainer.max_time=bogus", "trainer.max_time=bogus must be DD:HH:MM:SS"),
    ("objective.least_recurrence=9", "objective.least_recurrence=9 exceeds the mean depth, model.mean_recurrence=8"),
    ("trainer.limit_val_batches=0", "optimized_metric=val/loss needs validation"),
    ("data.sequence_length=5000", "data.sequence_length=5000 exceeds the model's context"),
    ("resume=nowhere", "resume=nowhere: there is no such file or folder"),
    ("trainer.precision=16-mixed", "trainer.precision=16-mixed needs a GPU"),
    ("evaluation.items=0", "callbacks.sampler_evaluation.items=0 must be at least 1"),
    ("data.task=chess", "data.task=chess should be an object: a node with _target_"),
    (
        "+callbacks.sampler_evaluation.samplers.new={headway: 2}",
        "callbacks.sampler_evaluation.samplers.new=… is no sampler: choose one for it in the defaults list",
    ),
    ("callbacks.depth_loss.depths=[0]", "callbacks.depth_loss.depths=0 must be at least 1"),
    ("callbacks.sampler_view.depths=[]", "callbacks.sampler_view.depths=[] must name a depth"),
    ("callbacks.checkpoint.save_top_k=3", "ModelCheckpoint(save_top_k=3, monitor=None) is not a valid configuration"),
    ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 must be above 0; 1 does not accumulate"),
    ("trainer.val_check_interval=0", "trainer.val_check_interval=0 must be above 0; trainer.limit_val_batches=0"),
    ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1 must be above 0; null does not clip"),
    ("trainer.devices=0", "trainer.devices=0 leaves none to train on; set trainer.devices=1"),
    ("trainer.limit_val_batches=1.5", "trainer: "),
    ("+trainer.fast_dev_run=true", "trainer.fast_dev_run=True leaves nothing to look at; take debug=fdr"),
]


@pytest.mark.parametrize(("override", "message"), WRONG, ids=[w[0] for w in WRONG])
def test_a_wrong_setting_is_named_with_its_value(composed, override, message) -> None:
    with pytest.raises(ConfigError) as caught:
        checks.check_train(composed("trainer=cpu", override))
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1, caught.value.problems


def test_a_run_folder_without_checkpoint_is_named(composed, tmp_path) -> None:
    with pytest.raises(ConfigError, match="last.ckpt"):
        checks.check_train(composed(f"resume={tmp_path}"))


def test_all_conflicts_come_at_once(composed) -> None:
    wrong = ["seed=a", "model.hidden_size=130", f"{DF}.inner_steps=99", "resume=nowhere", "optimizer.lr=0"]
    with pytest.raises(ConfigError) as caught:
        checks.check_train(composed(*wrong))
    assert len(caught.value.problems) == len(wrong)
    assert str(caught.value).startswith("5 settings cannot work:")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stream=yes_please", "stream=yes_please should be a valid boolean"),
        ("tags=a", "tags=a should be a valid array"),
        ("sampler.inner_steps=64", "sampler.inner_steps=64 exceeds num_steps=32"),
        ("temperature=-1", "temperature=-1 must be at least 0"),
        ("top_p=0", "top_p=0 must be above 0"),
        ("min_p=2", "min_p=2 must be between 0 and 1"),
        ("num_prompts=0", "num_prompts=0 must be at least 1"),
        ("dtype=fp8", "dtype=fp8 is unknown; take one of float32"),
        ("device=tpu", "device=tpu is unknown"),
        ("max_new_tokens=many", "max_new_tokens=many should be a valid integer"),
    ],
)
def test_a_wrong_setting_of_sample_is_named(composed, override, message) -> None:
    with pytest.raises(ConfigError) as caught:
        checks.check_sample(composed(override, name="sample"))
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["callbacks=curriculum"], "callbacks=curriculum needs a task with levels; take data=pointer_chase"),
        (["callbacks=curriculum", "data=pointer_chase"], "starts at its highest level, 8; set data.task.level=1"),
        (["data=text"], "validation prompts were asked for"),
    ],
)
def test_what_only_the_built_data_can_tell(composed, tmp_path, overrides, message) -> None:
    (tmp_path / "notes.txt").write_text("a b c\n\n" * 4)
    path = [f"data.source.path={tmp_path / 'notes.txt'}"] if overrides == ["data=text"] else []
    with pytest.raises(ConfigError, match=message):
        checks.check_train(composed(*overrides, *path))


def test_good_settings_are_not_blamed(composed) -> None:
    checks.check_train(composed("optimizer=adamw", "scheduler=cosine", "trainer.max_time=00:00:05:00"))
    checks.check_sample(composed("sampler=adaptive", name="sample"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["optimizer.lrr=1"], "optimizer.lrr=1: there is no such key; did you mean optimizer.lr"),
        (["optimizer.lrr=1"], "write +optimizer.lrr=1 to add a new one"),
        (["lr=1"], "did you mean optimizer.lr?"),
        (["model=smal"], "model=smal: did you mean small? there are base, huginn, pretrained, retrofit, small, tiny"),
        (["modle=tiny"], "modle=tiny: there is no such key; did you mean model?"),
        (["optimizer.lr=1,2"], "a comma means a sweep; add -m"),
        (["tags=[a"], "not in Hydra's grammar"),
        (["~callbacks.foo"], "'callbacks.foo' does not exist"),
        (["+seed=1"], "An item is already at 'seed'"),
        (["optimizer=adamw", "optimizer.momentum=0.9"], "optimizer.momentum=0.9: there is no such key"),
        (["data=pointer_chase", "data.task.max_steps=8"], "data.task.max_steps=8: there is no such key"),
    ],
)
def test_hydras_own_errors_are_explained(arguments, expected) -> None:
    problems = list(composition_problems(CONF, "train", arguments))
    assert len(problems) == 1
    assert expected in problems[0]


def test_hydras_errors_come_at_once_also_in_a_sweep() -> None:
    search = ["-m", "optimizer.lr=tag(log,interval(1e-3,1e-1))", "trainer.max_stepz=3"]
    (problem,) = composition_problems(CONF, "train", search)
    assert problem.startswith("trainer.max_stepz=3: there is no such key")
    problems = list(composition_problems(CONF, "train", ["-m", "model=tiny,smal", "optimizer=muon", "optimizer.l=1"]))
    assert [p.split(":")[0] for p in problems] == ["model=smal", "optimizer.l=1"]
