"""Objectives, starting weights and the df_aware experiments in whole runs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import df_aware as driver
from recdepth import checks, run
from recdepth.settings import ConfigError

CONF = Path(__file__).resolve().parents[2] / "conf"
STUDY = sorted({p.stem for p in (CONF / "experiment" / "df_aware").glob("*.yaml")} - {"frontier"})  # which draws
QUICK = ["callbacks=checkpoint", "logger=none", "trainer.limit_val_batches=1", "data.validation_items=16"]


def test_a_run_logs_the_view_and_its_terms(tiny, tmp_path) -> None:
    terms = ["objective=aware", "objective.weights.depth_consistency=0.1"]
    run.train(tiny(*terms, "callbacks.sampler_view.depths=[1,3]", "optimized_metric=val/kv_agreement"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    known = set().union(*lines)
    names = {"draft_accuracy_depth_1", "draft_accuracy_depth_3", "flips_per_token", "recurrences_to_convergence"}
    assert {f"val/{name}" for name in names} | {"val/kv_agreement"} <= known
    assert {"train/drafts", "train/drafts_accuracy", "train/depth_consistency", "train/next_token"} <= known
    assert "train/staircase" not in known


@pytest.fixture
def trained(tiny, tmp_path) -> Path:
    """The folder of a short run."""
    run.train(tiny(*QUICK, folder="first"))
    return tmp_path / "first"


def test_a_run_starts_from_the_weights_of_another(tiny, trained, tmp_path) -> None:
    frozen = ["optimizer.lr=1e-12", "optimizer.adamw_lr=1e-12", "optimizer.weight_decay=0", "seed=5"]
    run.train(tiny(*QUICK, *frozen, f"init_from={trained}", "objective=aware", folder="second"))
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("first", "second"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-6, msg=name)
    assert checks.start_path(str(trained)) == checks.start_path(str(trained / "model")) == trained / "model"
    assert torch.load(tmp_path / "second" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_what_cannot_be_started_from_is_named(tiny, trained, tmp_path) -> None:
    wrong = ["model.hidden_size=64", "model.core_layers=2"]
    with pytest.raises(ConfigError) as caught:
        run.train(tiny(*QUICK, *wrong, f"init_from={trained}", folder="second"))
    assert caught.value.problems[0].split(":")[0] == "model.hidden_size=64"
    assert any("has 1; set model.core_layers=1" in p for p in caught.value.problems)
    with pytest.raises(ConfigError, match="has a vocabulary of"):
        run.train(tiny(*QUICK, "data=pointer_chase", f"init_from={trained}", folder="second"))
    assert not (tmp_path / "second").exists()
    for start, message in ((tmp_path, "holds no model"), ("./nowhere", "is no folder")):
        with pytest.raises(ConfigError, match=f"init_from={start} {message}"):
            checks.check_train(tiny(f"init_from={start}"))


def test_a_resumed_run_of_terms_goes_on_as_if_never_stopped(tiny, tmp_path) -> None:
    growing = ["objective=aware", "objective.depth_growth=0.9", "objective.terms.drafts.schedule.width_growth=0.9"]
    growing += [*QUICK, "scheduler.warmup=0.2", "trainer.val_check_interval=100"]
    run.train(tiny(*growing, "trainer.max_steps=5", folder="whole"))
    cut = ["callbacks.checkpoint.every_n_train_steps=2", "callbacks.checkpoint.save_top_k=-1", "trainer.max_steps=5"]
    run.train(tiny(*growing, *cut, folder="first"))
    checkpoint = tmp_path / "first" / "checkpoints" / "step_2.ckpt"
    run.train(tiny(*growing, "trainer.max_steps=5", f"resume={checkpoint}", folder="second"))
    whole, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "second"))
    for name, value in whole.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0, msg=name)


def test_the_study_trains_what_a_recipe_shares_with_plain_training_once(tiny, tmp_path) -> None:
    late = ["objective=aware_answers_late", "objective.starts.drafts=0.6"]  # the other term begins at 0.8
    shared = [
        "model=tiny",
        "model.hidden_size=32",
        "model.mean_recurrence=2",
        "debug=fdr",
        *QUICK,
        "report=false",
        "trainer.max_steps=5",
        "trainer.log_every_n_steps=1",
    ]
    shared += ["callbacks.checkpoint.every_n_train_steps=1", "callbacks.checkpoint.save_top_k=-1"]
    run.train(tiny(*shared, folder="plain"))
    run.train(tiny(*shared, *late, folder="whole"))
    branch = driver.Run("branch", (*shared, *late), trunk="plain")
    resume = branch.command(tmp_path)[-1]
    assert resume == f"resume={tmp_path / 'plain' / 'checkpoints' / 'step_3.ckpt'}"
    run.train(tiny(*shared, *late, resume, folder="branch"))
    whole, branched = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "branch"))
    for name, value in whole.items():
        torch.testing.assert_close(branched[name], value, rtol=0, atol=0, msg=name)
    records = [json.loads(line) for line in (tmp_path / "branch" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in records if "train/loss" in line] == [0, 1, 2, 3, 4]
    assert ["train/drafts" in line for line in records if "train/loss" in line] == [False] * 3 + [True] * 2
    assert branch.command(tmp_path)[-1] == f"resume={tmp_path / 'branch'}"  # its own checkpoints come first
    for objective in ("aware_answers", "depth_consistency"):  # these differ from the first step on
        words = driver.Run("other", (*shared, f"objective={objective}"), trunk="plain").command(tmp_path)
        assert not any(word.startswith("resume=") for word in words)
    words = driver.Run("logged", (*shared, *late, "logger=wandb"), trunk="plain").command(tmp_path)
    assert words[-2:] == [resume, "logger.continue_run=false"]


@pytest.mark.parametrize("name", STUDY)
def test_every_experiment_of_the_study_passes_the_checks(composed, trained, name) -> None:
    for objective in ("next_token", "aware"):
        cfg = composed(f"experiment=df_aware/{name}", f"objective={objective}", f"init_from={trained}")
        checks.check_train(cfg)
    needs_a_start = composed(f"experiment=df_aware/{name}")
    if name.endswith("finetune"):
        with pytest.raises(ConfigError, match=r"init_from=RUN_FOLDER is no folder; give a run folder"):
            checks.check_train(needs_a_start)


def test_a_fine_tune_is_compared_by_the_studys_samplers(composed, trained, tmp_path) -> None:
    size = ["debug=fdr", "model=tiny", "model.hidden_size=32", "model.mean_recurrence=2", "report=false"]
    run.train(composed("experiment=df_aware/word_problems_finetune", "objective=aware", f"init_from={trained}", *size))
    rows = json.loads((tmp_path / "run" / "comparison.json").read_text())
    names = [row["sampler"] for row in rows]
    assert names[:3] == ["ar-4", "ar-2", "ar-1"] and {"df-paper", "df-h4-early", "exact", "speculative"} <= set(names)
    assert "df-headway" not in names
    bold = next(row["settings"] for row in rows if row["sampler"] == "df-h4-early")
    assert (bold["headway"], bold["inner_steps"], bold["num_steps"]) == (4, 1, 4)


def test_a_comparisons_sampler_must_not_take_a_references_name(composed) -> None:
    extra = "+comparison.samplers.ar-32={_target_: recdepth.sampling.Exact}"
    with pytest.raises(ConfigError, match="samplers.ar-32=… has the name of a reference"):
        checks.check_train(composed("compare=true", "comparison.samplers={}", extra))


def test_objectives_are_checked_from_the_inside_out(composed) -> None:
    wrong = ["objective=aware", "objective.terms.drafts.drafts.share=2", "objective.weights.staircase=-1"]
    with pytest.raises(ConfigError) as caught:
        checks.check_train(composed(*wrong))
    (problem,) = caught.value.problems
    assert problem == "objective.terms.drafts.drafts.share=2 must lie between 0 and 1"
    with pytest.raises(ConfigError, match="objective.weights.stairs=1.0 is of no term; there are next_token"):
        checks.check_train(composed("objective=aware", "+objective.weights.stairs=1.0"))


def test_a_callback_that_is_null_is_left_out(tiny, tmp_path) -> None:
    run.train(tiny("callbacks.sampler_evaluation=null", "callbacks.progress=null"))
    assert not (tmp_path / "run" / "samples.jsonl").exists()
    with pytest.raises(ConfigError, match="val/accuracy/autoregressive is not logged by this run"):
        checks.check_train(tiny("callbacks.sampler_evaluation=null", "optimized_metric=val/accuracy/autoregressive"))


def test_settings_of_a_callback_that_is_not_chosen_are_named(composed) -> None:
    found = "callbacks.sampler_evaluation has settings, but is not among the callbacks chosen"
    with pytest.raises(ConfigError, match=found):
        checks.check_train(composed("experiment=quickstart", "callbacks=sampler_view"))
    checks.check_train(composed("experiment=quickstart", "callbacks=sampler_view", "callbacks.sampler_evaluation=null"))
