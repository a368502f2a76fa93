"""The entry points as people start them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recdepth import load_model, load_tokenizer
from recdepth.reporting.sweep import read_sweep

ROOT = Path(__file__).resolve().parents[2]
TINY = ["model=tiny", "model.hidden_size=32", "model.mean_recurrence=2", "debug=fdr"]
QUICK = [*TINY, "report=false"]


def runs(tmp_path, task="train"):
    return sorted((tmp_path / "outputs" / task).glob("*/*/*/.hydra"))


def test_train_then_sample(command, launched, tmp_path) -> None:
    trained = command("train.py", *TINY, "logger=wandb", "tags=[first]")
    assert trained.returncode == 0, trained.stderr
    assert "Warning" not in trained.stderr
    assert "wandb:" not in trained.stderr + trained.stdout
    folder = runs(tmp_path)[0].parent
    for name in ("checkpoints/last.ckpt", "metrics.jsonl", "samples.jsonl", "report.html", ".hydra/provenance.json"):
        assert (folder / name).stat().st_size > 0, name
    assert load_model(folder / "model").config.vocab_size == len(load_tokenizer(folder / "model"))
    (logged,) = folder.glob("wandb/offline-run-*/*.wandb")
    content = logged.read_bytes()
    for word in (b"git_commit", b"mean_recurrence", b"val/loss_depth_4", b"test/accuracy/autoregressive", b"model-"):
        assert word in content, word
    assert len(list(folder.glob("wandb/offline-run-*/files/media/table/samplers*.json"))) == 1
    assert {p.name.split("_")[0] for p in folder.glob("wandb/*/files/media/images/*.png")} == {"curves", "depth"}

    sampled = command("sample.py", "num_prompts=2", "sampler.num_steps=4", "max_new_tokens=5", "trace=true")
    assert sampled.returncode == 0, sampled.stderr
    assert "core_passes" in sampled.stdout
    lines = [json.loads(line) for line in (runs(tmp_path, "sample")[0].parent / "samples.jsonl").open()]
    assert [line["sampler"] for line in lines] == ["diffusion_forcing"] * 2
    assert lines == [json.loads(line) for line in (folder / "samples.jsonl").open()][-2:]
    for name in ("wavefront.png", "wavefront.html"):
        assert (runs(tmp_path, "sample")[0].parent / name).stat().st_size > 0

    text = "prompt=Zoe has 48 apples, then loses 6. How many apples does Zoe have?"
    bare = launched("sample.py", f"model_path={folder / 'model'}", text, "sampler=adaptive", "max_new_tokens=3")
    assert bare.returncode == 0, bare.stderr


def test_mistakes_end_with_exit_code_2_and_no_traceback(command) -> None:
    ours = command("train.py", *QUICK, "optimizer.lr=-1", "resume=nowhere")
    hydras = command("train.py", *QUICK, "optimizer.lrr=1", "model=smal")
    for result, words in ((ours, ("optimizer.lr=-1", "resume=nowhere")), (hydras, ("optimizer.lrr=1", "model=smal"))):
        assert result.returncode == 2
        assert result.stderr.startswith("2 settings cannot work:")
        assert all(word in result.stderr for word in words)
        assert "Traceback" not in result.stderr


def test_four_jobs_have_four_folders_and_four_wandb_runs(command, tmp_path) -> None:
    sweep = [
        "-m",
        "model=tiny",
        "model.core_layers=1,2",
        "optimizer.lr=1e-3,3e-3",
        "trainer.max_steps=4",
        "evaluation.items=1",
    ]
    sweep += [
        "trainer.limit_val_batches=1",
        "callbacks.sampler_evaluation.during_training=false",
        "report=false",
        "data.batch_size=4",
        "trainer.log_every_n_steps=1",
    ]
    sweep += ["callbacks.sampler_evaluation.samplers.autoregressive.num_steps=4", "data.validation_items=8"]
    sweep += ["hydra/launcher=pool", "sweep.name=four"]
    result = command("train.py", *sweep)
    assert result.returncode == 0, result.stderr
    jobs = sorted(p for p in (tmp_path / "outputs").glob("train/multiruns/*/*") if p.is_dir())
    assert [job.name for job in jobs] == ["0", "1", "2", "3"]
    ids = [path.stem for job in jobs for path in job.glob("wandb/offline-run-*/*.wandb")]
    assert len(ids) == len(set(ids)) == 4
    logged = [path.read_bytes() for job in jobs for path in job.glob("wandb/offline-run-*/*.wandb")]
    assert all(b"four" in content for content in logged)  # their group
    found = read_sweep(jobs[0].parent)
    assert [job.status.state for job in found.jobs] == ["finished"] * 4
    assert found.swept == ["model.core_layers", "optimizer.lr"]
    assert all(job.status.metric["val/loss"] > 0 for job in found.jobs)
    rates = set()
    for job in jobs:
        lines = [json.loads(line) for line in (job / "metrics.jsonl").open()]
        assert lines[-1]["step"] == 4
        rates.add(max(line.get("train/lr", 0) for line in lines))
        assert (job / "model" / "model.safetensors").exists()
    assert len(rates) == 2


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_leaves_a_run_that_can_be_used_and_resumed(launched, tmp_path) -> None:
    overrides = [*QUICK, "trainer.max_steps=100000", "trainer.val_check_interval=100000", "logger=wandb"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *overrides, f"paths.outputs={tmp_path / 'outputs'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(p.stat().st_size for p in tmp_path.rglob("metrics.jsonl")):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    folder = runs(tmp_path)[0].parent
    assert f"resume={folder}" in output
    load_model(folder / "model")
    steps = len((folder / "metrics.jsonl").read_text().splitlines())
    resumed = launched("train.py", *QUICK, f"trainer.max_steps={steps + 50}", f"resume={folder}")
    assert resumed.returncode == 0, resumed.stderr
