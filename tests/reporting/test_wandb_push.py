"""Pushing a report: W&B's own client, over real HTTP, to a stand-in for its server on 127.0.0.1."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from recdepth.reporting import Status, WandbRun, read_overview
from recdepth.reporting.runs import read_run
from recdepth.reporting.wandb_report import _project, _sync
from recdepth.settings import ConfigError
from recdepth.training import wandb_logger

pytest.importorskip("wandb_workspaces")

_HERE = Path(__file__).resolve()
_SPEC = importlib.util.spec_from_file_location("wandb_server", _HERE.with_name("wandb_server.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
wandb_server = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(wandb_server)


@pytest.fixture
def server() -> Iterator[Any]:
    with wandb_server.serve() as found:
        yield found


@pytest.fixture
def command(tmp_path: Path, server: Any) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run ``python -m recdepth.reporting``, logged in to the stand-in or not at all."""

    def run(*words: str, key: str | None = 40 * "k") -> "subprocess.CompletedProcess[str]":
        env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        env |= {"HOME": str(tmp_path), "WANDB_BASE_URL": server.url, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
        env |= {f"WANDB_{name}_DIR": str(tmp_path / "wandb") for name in ("CACHE", "CONFIG", "DATA")}
        env |= {"WANDB_API_KEY": key} if key else {}
        arguments = [sys.executable, "-m", "recdepth.reporting", *words]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=env, cwd=_HERE.parents[2])

    return run


def offline(folder: Path, steps: range, group: str | None = None, id: str | None = None) -> tuple[str, Path]:
    """An offline folder as training leaves it; returns the run's id and the folder."""
    logger = wandb_logger(str(folder), group=group, id=id)
    for step in steps:
        logger.log_metrics({"train/loss": 1.0 / (step + 1)}, step=step)
    name, place = logger.experiment.id, Path(logger.experiment.dir).parent
    wandb.finish()
    return name, place


def run_folder(folder: Path, lr: float, known: WandbRun) -> None:
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text(f"optimizer: {{lr: {lr}}}\noptimized_metric: train/loss\n")
    (folder / ".hydra" / "provenance.json").write_text(json.dumps({"command": ["python", "train.py", "seed=1"]}))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 3, "seconds": 1.0, "train/loss": lr}) + "\n")
    known.write(folder)


def test_a_report_is_pushed_after_its_runs_and_runs_go_up_once(
    tmp_path: Path, server: Any, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "lr_sweep" / "0"
    first, one = offline(job, range(3), group="lr_sweep")
    again, two = offline(job, range(3, 5), group="lr_sweep", id=first)  # it was resumed
    other, three = offline(tmp_path / "single", range(2))
    assert again == first != other
    run_folder(job, 0.01, WandbRun(first, "recdepth", None, (one, two)))
    run_folder(tmp_path / "single", 0.5, WandbRun(other, "recdepth", None, (three,)))
    overrides = ["optimizer.lr=0.01"]
    Status(0, "finished", overrides, {"train/loss": 0.01}, attempt=1).write(job)
    jobs = [{"job": i, "folder": str(i), "overrides": [f"optimizer.lr={lr}"]} for i, lr in enumerate((0.01, 0.02))]
    plan = {"program": "train", "command": ["optimizer.lr=0.01,0.02"], "jobs": jobs}
    plan |= {"metrics": ["train/loss"], "directions": ["minimize"]}
    (job.parent / "sweep.json").write_text(json.dumps(plan))
    folders = [str(job.parent), str(tmp_path / "single"), f"out={tmp_path / 'report.html'}"]

    done = command(*folders, "push=true", "title=What lr | does")
    assert done.returncode == 0, done.stderr
    assert "Uploading 3 offline folder(s) of 2 run(s)" in done.stdout
    assert f"W&B Report: {server.url}/team/recdepth/reports/What-lr-|-does--" in done.stdout
    assert server.unknown == []

    assert set(server.history) == {first, other}
    steps = [line["trainer/global_step"] for line in server.history[first] if "train/loss" in line]
    assert steps == [0, 1, 2, 3, 4]  # the second part was appended, not written over the first
    assert server.groups == {first: "lr_sweep", other: ""}

    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("team", "recdepth", "What lr | does")
    blocks = view["spec"]["blocks"]
    headings = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    assert headings == ["Sweep lr_sweep", "Reproduce", "Runs", f"Reproduce {tmp_path.name}/single"]
    texts = "\n".join(block["content"] for block in blocks if block["type"] == "markdown-block")
    assert "| job 0 | finished | 0.01 | 0.01 |" in texts
    assert "| job 1 | pending | 0.02 |" in texts
    assert "python train.py -m optimizer.lr=0.01,0.02" in texts
    assert "W&B runs**: 2" in texts
    swept, single = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    (group,), (ids,) = (
        [(f["key"]["name"], f["op"], f["value"]) for f in grid["runSets"][0]["filters"]["filters"]]
        for grid in (swept, single)
    )
    assert (group, ids) == (("group", "=", "lr_sweep"), ("name", "IN", [other]))
    panels = {p["viewType"]: p["config"] for p in swept["panelBankSectionConfig"]["panels"]}
    assert panels["Run History Line Plot"]["metrics"] == ["train/loss"]
    assert panels["Run History Line Plot"]["xAxis"] == "trainer/global_step"
    columns = [column["accessor"] for column in panels["Parallel Coordinates Plot"]["columns"]]
    assert columns == ["config:optimizer.value.lr", "summary:train/loss"]
    assert panels["Scatter Plot"]["xAxis"] == "config:optimizer.value.lr"

    known = [WandbRun(first, "recdepth", None, (one, two)), WandbRun(other, "recdepth", None, (three,))]
    assert [run.unsynced() for run in known] == [[], []]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is left to upload"))
    _sync(read_overview(folders[:2]).runs, "team")


def test_without_login_it_says_what_to_do(tmp_path: Path, server: Any, command: Any) -> None:
    run_folder(tmp_path / "run", 0.1, WandbRun("abc", "recdepth"))
    done = command(str(tmp_path / "run"), "push=true", key=None)
    assert done.returncode == 2
    assert f"not logged in to W&B at {server.url}: run `wandb login --host {server.url}`" in done.stderr
    assert "WANDB_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "report.html").is_file()


def test_runs_of_several_projects_need_one_for_the_report(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_folder(tmp_path / name, 0.1, WandbRun(name, f"project_{name}"))
    with pytest.raises(ConfigError, match="in several projects, project_a, project_b; give project="):
        _project([read_run(tmp_path / "a"), read_run(tmp_path / "b")])
    with pytest.raises(ConfigError, match="none of these runs was logged to W&B"):
        _project([])
