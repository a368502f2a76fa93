"""Every YAML composes and passes the checks; every experiment runs at debug size."""

import json
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from recdepth import checks, run

sys.path.insert(0, str(Path(__file__).parent))
from llama import write_llama

CONF = Path(__file__).resolve().parents[2] / "conf"
NOT_OF_TRAIN = ("hydra", "paths", "local", "wandb_sweeps")
GROUPS = {
    group: sorted(p.stem for p in (CONF / group).glob("*.yaml"))
    for group in sorted(
        p.name for p in CONF.iterdir() if p.is_dir() and p.name not in ("hydra", "paths", "local", "wandb_sweeps")
    )
}
CHOICES = [(group, name) for group, names in GROUPS.items() for name in names]
NEEDS = {
    ("data", "text"): ["data.source.path=notes.txt"],
    ("model", "retrofit"): ["model.base=llama"],
    ("callbacks", "curriculum"): ["data=pointer_chase", "data.task.level=1"],
    **{("hparams_search", name): ["hydra.mode=null"] for name in GROUPS["hparams_search"]},
    ("experiment", "tune_sampler"): ["tune.overwrite=true"],
    ("model", "pretrained"): ["init_from=start"],
    ("lora", "default"): ["init_from=start", "optimizer=adamw"],
}
FOR_SAMPLE = {
    ("hparams_search", "sampler"),
    ("hparams_search", "sampler_optuna"),
    ("experiment", "tune_sampler"),
}
ON_GPU = {("trainer", "gpu"), ("trainer", "ddp")}


def test_every_group_of_the_design_is_there() -> None:
    wanted = "model data objective optimizer scheduler sampler trainer callbacks logger experiment hparams_search debug"
    assert set(wanted.split()) <= set(GROUPS)
    assert all(GROUPS[group] for group in wanted.split())


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=lambda value: value)
def test_every_choice_composes_and_passes_the_checks(composed, group, name, tmp_path, monkeypatch) -> None:
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym", reason="the extra 'tasks' is not installed")
    monkeypatch.chdir(tmp_path)
    write_llama(tmp_path / "llama")
    Path("notes.txt").write_text("\n\n".join(f"Paragraph number {i} of some text." for i in range(2000)))
    Path("start").mkdir()
    Path("start/config.json").touch()
    primary, check = (
        ("sample", checks.check_sample)
        if group == "sampler" or (group, name) in FOR_SAMPLE
        else ("train", checks.check_train)
    )
    cfg = composed(f"{group}={name}", *NEEDS.get((group, name), []), name=primary)
    if (group, name) in ON_GPU and not torch.cuda.is_available():
        with pytest.raises(checks.ConfigError, match="no GPU is visible"):
            check(cfg)
    else:
        check(cfg)


def test_every_optimizer_has_a_learning_rate() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in GROUPS["optimizer"]:
            assert compose("train", overrides=[f"optimizer={name}"]).optimizer.lr > 0


@pytest.mark.parametrize("name", [name for name in GROUPS["experiment"] if ("experiment", name) not in FOR_SAMPLE])
def test_every_experiment_runs_at_debug_size(composed, tmp_path, name) -> None:
    cfg = composed(f"experiment={name}", "debug=fdr", "model.hidden_size=32", "model.num_attention_heads=2")
    metric = run.train(cfg)
    assert metric is not None
    assert metric > 0
    for made in ("report.html", "model/model.safetensors", "checkpoints/last.ckpt", "metrics.jsonl"):
        assert (tmp_path / "run" / made).stat().st_size > 0, made
    if not cfg.compare:
        return
    rows = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert {"ar-4", "ar-1", "adaptive", "df-paper"} <= {row["sampler"] for row in rows}
    for made in ("comparison.png", "wavefront.png", "wavefront.html"):
        assert (tmp_path / "run" / made).stat().st_size > 0, made


@pytest.mark.parametrize("name", ["overfit", "profiler"])
def test_debug_modes_do_what_they_say(composed, tmp_path, name) -> None:
    size = ["model=tiny", "model.hidden_size=32", "callbacks=none", "logger=none", "report=false"]
    size += ["trainer.limit_val_batches=1", "data.validation_items=16"]
    run.train(composed(f"debug={name}", *size, "trainer.max_steps=20", "trainer.log_every_n_steps=1"))
    if name == "profiler":
        assert "run_training_batch" in next((tmp_path / "run").glob("*profile*.txt")).read_text()
    else:
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        losses = [line["train/loss"] for line in lines if "train/loss" in line]
        assert losses[-1] < 0.75 * losses[0]
