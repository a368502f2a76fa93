"""The default sweeper and the records, in one process."""

import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from recdepth.entry import _resuming
from recdepth.nodes import override
from recdepth.reporting.status import read_status
from recdepth.settings import ConfigError
from recdepth.sweeps.pool import ProcessPool
from recdepth.sweeps.resume import resumed


def broken(cfg):
    if cfg.x == 1:
        raise ValueError("x is 1")
    return 2.0 * cfg.x, float(cfg.x**2)


def test_all_jobs_run_and_the_failing_one_is_named(multirun, capsys) -> None:
    sweep = multirun(broken, "x=0,1,2", "sweep.name=a")
    assert [job.status.state for job in sweep.jobs] == ["finished", "failed", "finished"]
    assert sweep.swept == ["x"]
    assert sweep.jobs[1].status.error == "ValueError: x is 1"
    assert "job 1 failed: ValueError: x is 1" in capsys.readouterr().out
    assert {p.name for p in sweep.folder.glob("*.png")} == {"metric_by_key.png", "parallel.png", "pareto.png"}


def test_batches_go_on_after_a_failure_or_stop(multirun) -> None:
    on = multirun(broken, "x=0,1,2", "sweep.name=on", "hydra.sweeper.max_batch_size=1")
    off = multirun(broken, "x=0,1,2", "sweep.name=off", "hydra.sweeper.max_batch_size=1", "sweep.on_error=stop")
    assert [job.status.state for job in on.jobs] == ["finished", "failed", "finished"]
    assert [job.status.state for job in off.jobs] == ["finished", "failed", "pending"]


def test_a_resumed_job_keeps_its_number_its_folder_and_what_it_had_logged(multirun) -> None:
    ran = []

    def mended(cfg):
        ran.append(cfg.x)
        return 0.0, 0.0

    first = multirun(broken, "x=0,1,2,1", "sweep.name=a")
    Path("sweeps/a/3/metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    sweep = multirun(mended, "x=0,1,2,1", "sweep.name=a", "sweep.resume=sweeps/a")
    assert ran == [1, 1]
    assert [job.folder.name for job in sweep.jobs] == [job.folder.name for job in first.jobs] == list("0123")
    assert [job.status.attempt for job in sweep.jobs] == [1, 2, 1, 2]
    assert Path("sweeps/a/3/metrics.attempt-1.jsonl").exists() and not Path("sweeps/a/3/metrics.jsonl").exists()


def test_a_sweep_whose_jobs_still_run_is_not_resumed(multirun) -> None:
    sweep = multirun(broken, "x=0,1", "sweep.name=a")
    busy = replace(sweep.jobs[1].status, state="running", pid=os.getppid(), host=platform.node())
    busy.write(Path("sweeps/a/1"))
    with pytest.raises(ConfigError, match=rf"sweep.resume=sweeps/a: job 1 still runs \(process {os.getppid()}\); wait"):
        multirun(broken, "x=0,1", "sweep.name=a", "sweep.resume=sweeps/a")
    assert read_status(Path("sweeps/a/1")) == busy
    replace(busy, host="elsewhere").write(Path("sweeps/a/1"))  # it may have died with its machine
    again = multirun(lambda cfg: (0.0, 0.0), "x=0,1", "sweep.name=a", "sweep.resume=sweeps/a")
    assert [job.status.state for job in again.jobs] == ["finished", "finished"]


@pytest.mark.parametrize("name", ["é", "lr=3", "a,b", "it's", "a b"])
def test_the_folder_of_a_sweep_may_have_any_name(tmp_path, name) -> None:
    folder = tmp_path / name
    folder.mkdir()
    plan = {"program": "train", "command": ["x=1,2"], "name": "n", "metrics": [], "directions": [], "jobs": []}
    (folder / "sweep.json").write_text(json.dumps(plan))
    for written in (f"sweep.resume={folder}", override("sweep.resume", str(folder))):
        *_, directory = _resuming("train", [written])
        assert OverridesParser.create().parse_override(directory).value() == str(folder)


def test_jobs_that_would_share_a_folder_are_refused(multirun) -> None:
    with pytest.raises(ConfigError, match=r"hydra.sweep.subdir=same is the folder of jobs 0 and 1"):
        multirun(broken, "x=0,1", "sweep.name=a", "hydra.sweep.subdir=same")


def test_resuming_takes_the_folders_command_and_names_what_disagrees(tmp_path) -> None:
    command = ["x=1,2", "task=ok", "sweep.name=a", "hydra/launcher=pool"]
    plan = {"program": "train", "command": command, "metrics": [], "directions": [], "jobs": []}
    (tmp_path / "sweep.json").write_text(json.dumps(plan))
    where = f"sweep.resume='{tmp_path}'"
    assert resumed(tmp_path, "train", [])[:-1] == ["-m", *command, where]
    unnamed = {**plan, "command": command[:2], "name": "2026-11-28_10-00"}
    (tmp_path / "sweep.json").write_text(json.dumps(unnamed))
    assert resumed(tmp_path, "train", [])[:4] == ["-m", "sweep.name='2026-11-28_10-00'", *command[:2]]
    (tmp_path / "sweep.json").write_text(json.dumps(plan))
    assert "hydra/launcher=local" in resumed(tmp_path, "train", [*command[:3], "hydra/launcher=local"])
    with pytest.raises(ConfigError) as found:
        resumed(tmp_path, "train", ["x=1,2,3", "y=2"])
    assert [p.split(";")[0] for p in found.value.problems] == [
        f"x=1,2,3: the sweep in {tmp_path} was started with x=1,2",
        f"y=2: the sweep in {tmp_path} was started without it",
        f"task=ok of the sweep in {tmp_path} is missing",
    ]
    with pytest.raises(ConfigError, match=r"is a sweep of train.py"):
        resumed(tmp_path, "sample", [])
    with pytest.raises(ConfigError, match=r"holds no sweep.json"):
        resumed(tmp_path / "elsewhere", "train", [])


@pytest.mark.parametrize(
    ("slots", "threads", "given", "expected"),
    [(1, None, None, None), (4, None, None, "2"), (4, None, "1", "1"), (4, 3, None, "3"), (16, None, None, "1")],
)
def test_cores_are_shared_out(monkeypatch, slots, threads, given, expected) -> None:
    monkeypatch.setattr("recdepth.sweeps.pool.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    pool = ProcessPool(None, threads, stop_on_error=False, grace_seconds=1)
    assert pool._environment(slots).get("OMP_NUM_THREADS") == expected
