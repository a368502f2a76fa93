"""Conflicts of all kinds come in one message, before any work: data, sampling, metrics, every job of a sweep."""

import logging
from pathlib import Path

import pytest

from recdepth import checks
from recdepth.entry import sweep_problems
from recdepth.settings import ConfigError, keyed

CONF = Path(__file__).resolve().parents[2] / "conf"


def problems(cfg, check=checks.check_train) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(cfg)
    return caught.value.problems


def keys(found: list[str]) -> list[str]:
    return sorted(problem.split("=")[0] for problem in found)


def test_conflicts_in_data_come_with_the_others(launched) -> None:
    result = launched("train.py", "data.batch_size=0", "model.hidden_size=130", "data.task.min_steps=0")
    assert result.returncode == 2
    assert result.stderr.startswith("3 settings cannot work:")
    for key in ("data.batch_size=0", "model.hidden_size=130", "data.task.min_steps=0"):
        assert f"  - {key} " in result.stderr


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["data.task.min_steps=0", "data.task.max_operand=0", "data.batch_size=0", "data.validation_items=0"],
            ["data.batch_size", "data.task.max_operand", "data.task.min_steps", "data.validation_items"],
        ),
        (
            ["data=pointer_chase", "data.task.symbols=3", "data.task.max_hops=0"],
            ["data.task.max_hops", "data.task.symbols"],
        ),
        (["data=text", "data.source.path=./nowhere", "data.num_workers=-1"], ["data.num_workers", "data.source.path"]),
        (["data.sequence_length=2000", "callbacks=curriculum"], ["callbacks", "data.sequence_length"]),
        (["callbacks.sampler_evaluation.batch_size=0", "evaluation.items=0"], ["batch_size", "items"]),
        (["comparison.batch_size=0", "comparison.num_steps=0", "compare=true"], ["batch_size", "num_steps"]),
        (["seed=-1", "optimizer.lr=0"], ["optimizer.lr", "seed"]),
        (["trainer.max_steps=-1", "trainer.max_epochs=1"], ["trainer.max_steps"]),
    ],
    ids=str,
)
def test_every_problem_has_its_key(composed, overrides, expected) -> None:
    found = keys(problems(composed(*overrides)))
    assert [key.removeprefix("callbacks.sampler_evaluation.").removeprefix("comparison.") for key in found] == expected


def test_the_checks_hand_back_the_data_that_they_built(composed) -> None:
    assert checks.check_train(composed("data.batch_size=3")).batch_size == 3


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
@pytest.mark.parametrize(("name", "check"), [("train", checks.check_train), ("sample", checks.check_sample)])
def test_a_seed_out_of_range_is_named(composed, name, check, seed) -> None:
    expected = f"seed={seed} must be at least 0 and at most 4294967295"
    assert problems(composed(f"seed={seed}", name=name), check) == [expected]


def test_training_without_end_is_told_with_its_values(composed) -> None:
    assert "trainer.max_steps=0 and" in problems(composed("trainer.max_steps=0"))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1 is low; raise it; b=2 is high", ["top.a=1 is low; raise it", "top.b=2 is high"]),
        ("impossible:\n  - a=1 is low\n  - b=2 is high", ["top.a=1 is low", "top.b=2 is high"]),
        ("top.a=1 is low; top.b=2 is high", ["top.a=1 is low", "top.b=2 is high"]),
        ("it fails; try again", ["top: it fails; try again"]),
    ],
)
def test_every_complaint_of_a_constructor_gets_the_key(text, expected) -> None:
    assert keyed("top", text) == expected


# ---------------------------------------------------------------------------------------------------------- sampling


def test_token_filters_are_checked_together_under_their_own_names(composed) -> None:
    found = problems(
        composed("top_k=5", "min_p=3", "num_prompts=0", "run_dir=gone", name="sample"), checks.check_sample
    )
    assert keys(found) == ["min_p", "num_prompts", "run_dir", "top_k"]
    assert any(p.startswith("top_k=5 has no effect at temperature=0") for p in found)


def test_a_stream_shows_one_prompt_at_a_time(composed) -> None:
    found = problems(composed("stream=true", "batch_size=4", name="sample"), checks.check_sample)
    assert found == ["batch_size=4: stream=true shows one prompt at a time; set batch_size=1 or stream=false"]
    assert keys(problems(composed("stream=true", "batch_size=x", name="sample"), checks.check_sample)) == ["batch_size"]


def test_a_wrong_filter_leaves_no_folder(launched, tmp_path) -> None:
    result = launched("sample.py", "top_k=5")
    assert result.returncode == 2
    assert "  - top_k=5 has no effect at temperature=0" in result.stderr
    assert "holds no run with a model" in result.stderr
    assert not list(tmp_path.rglob("provenance.json"))


def test_filters_go_with_a_temperature(composed) -> None:
    checks.check_sample(composed("temperature=0.7", "top_k=5", "top_p=0.9", "min_p=0.1", name="sample"))


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/model", "a/b/c"])
def test_a_missing_model_is_told_with_the_rest(composed, path) -> None:
    found = problems(composed(f"model_path={path}", "batch_size=0", name="sample"), checks.check_sample)
    assert keys(found) == ["batch_size", "model_path", "prompt"]


def test_a_folder_without_model_is_named(composed, tmp_path) -> None:
    found = problems(composed(f"model_path={tmp_path}", "prompt=a", name="sample"), checks.check_sample)
    assert found == [f"model_path={tmp_path} holds no model (config.json is missing)"]


# ----------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("val/los", [], "did you mean val/loss"),
        ("val/accuracy/autoregresive", [], "did you mean val/accuracy/autoregressive"),
        (
            "val/accuracy/diffusion_forcing",
            ["callbacks.sampler_evaluation.during_training=false"],
            "did you mean test/",
        ),
        ("curriculum/level", [], "is not logged by this run"),
        ("train/next_token", ["objective=weighted"], "is not logged by this run"),
        ("train/staircase", ["objective=aware"], "is not logged by this run"),
        ("val/loss_depth_4", ["callbacks=none"], "is not logged by this run"),
    ],
)
def test_a_misspelt_metric_is_found_before_training(composed, name, overrides, expected) -> None:
    (found,) = problems(composed(f"optimized_metric={name}", *overrides))
    assert found.startswith(f"optimized_metric={name} is not logged by this run")
    assert expected in found


@pytest.mark.parametrize(
    "name", ["null", "train/loss", "train/depth", "val/loss_depth_16", "test/recurrences_per_token/autoregressive"]
)
def test_metrics_that_are_logged_pass(composed, name) -> None:
    checks.check_train(composed(f"optimized_metric={name}"))


def test_metrics_of_other_peoples_callbacks_may_have_any_name(composed) -> None:
    monitor = "+callbacks.rates._target_=lightning.pytorch.callbacks.LearningRateMonitor"
    checks.check_train(composed("optimized_metric=lr-MuonAdamW", monitor))


def test_a_metric_that_was_never_logged_is_a_warning(composed, caplog) -> None:
    cfg = composed("optimized_metric=val/loss_depth_3")
    with caplog.at_level(logging.WARNING):
        assert checks.optimized_metric(cfg, {"val/loss": 1.0}) is None
    assert "optimized_metric=val/loss_depth_3 was not logged by this run; did you mean val/loss?" in caplog.text
    assert checks.optimized_metric(cfg, {"val/loss_depth_3": 2.0}) == 2.0


# ------------------------------------------------------------------------------------------------------------ sweeps


@pytest.mark.parametrize(("script", "more"), [("train.py", []), ("sample.py", []), ("train.py", ["-m", "seed=0,1"])])
def test_a_folder_that_cannot_be_made_is_one_line(launched, tmp_path, script, more) -> None:
    (tmp_path / "outputs").write_text("not a folder")
    result = launched(script, *more)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    key = "hydra.sweep.dir" if more else "hydra.run.dir"
    assert f"the folder cannot be made, {tmp_path / 'outputs'}" in result.stderr
    assert f"take another by {key}=… or paths.outputs=…" in result.stderr


def test_an_error_of_a_run_is_not_taken_for_one_of_its_folder(launched, monkeypatch, tmp_path) -> None:
    def lost(cfg) -> None:
        raise FileNotFoundError(2, "No such file or directory", "corpus.txt")

    outputs = tmp_path / "outputs"
    outputs.symlink_to(tmp_path / "nowhere" / "x")  # only making it tells
    result = launched("train.py", "-m", "seed=0,1")
    assert result.returncode == 2 and "the folder cannot be made, " in result.stderr
    assert "take another by hydra.sweep.dir=…" in result.stderr
    outputs.unlink()
    monkeypatch.setattr("recdepth.run.train", lost)
    with pytest.raises(FileNotFoundError, match="corpus.txt"):
        launched("train.py")


def test_a_search_is_checked_before_it_starts_without_the_flag_too(launched, tmp_path) -> None:
    result = launched("train.py", "hparams_search=basic", "optimizer.lr=-1")
    assert result.returncode == 2 and "optimizer.lr=-1 must be above 0" in result.stderr
    assert not list((tmp_path / "outputs").glob("**/sweep.json"))


def test_folders_are_named_by_text(composed) -> None:
    with pytest.raises(ConfigError, match="paths.outputs=null should be a valid string"):
        checks.check_train(composed("paths.outputs=null"))
    with pytest.raises(ConfigError, match="paths.outputs=3 should be a valid string"):
        checks.check_train(composed("paths.outputs=3", "+paths.corpora=texts"))  # another key is the user's own


def test_all_jobs_of_a_sweep_are_checked_before_the_first(launched, tmp_path) -> None:
    sweep = ["-m", "model=tiny", "model.hidden_size=32,33", "optimizer.lr=1e-3,-1", "seed=-1"]
    result = launched("train.py", *sweep)
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert "  - seed=-1 must be at least 0 and at most 4294967295" in lines
    for line in (
        "  - model.hidden_size=32 optimizer.lr=-1: optimizer.lr=-1",
        "  - model.hidden_size=33 optimizer.lr=0.001: model",
    ):
        assert any(found.startswith(line) for found in lines), lines
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_good_sweep_has_no_problems() -> None:
    assert (
        sweep_problems(CONF, "train", ["-m", "hparams_search=basic", "model=tiny,small", "~callbacks.progress"]) == []
    )


def test_what_a_sweep_names_itself_by_is_known() -> None:
    names = ["logger.name='job-${hydra:job.num}'", "optimizer.lr=1e-3,3e-3"]
    assert sweep_problems(CONF, "train", ["-m", *names]) == []


def test_a_job_that_fails_later_does_not_stop_the_others(launched, tmp_path) -> None:
    """The folder of the first job's model is there but holds nothing that can be loaded: only loading it tells."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    result = launched("sample.py", "-m", f"model_path={tmp_path / 'a'},{tmp_path / 'b'}", "prompt=x")
    assert result.returncode == 1, result.stderr  # the sweep ran; what failed is named at its end
    assert "2 jobs: 2 failed" in result.stdout
    assert "Traceback" not in result.stderr
