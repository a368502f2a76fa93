"""Every job in a process of its own: failures, deaths, Ctrl-C, and what resuming runs."""

import os
import signal
import time
from pathlib import Path

import pytest

from recdepth.reporting.sweep import read_sweep

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals")


def until(condition, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def states(folder) -> list[str]:
    return [job.status.state for job in read_sweep(folder).jobs]


def test_failing_and_killed_jobs_leave_the_others_alone_and_are_resumed(start) -> None:
    sweep = Path("sweeps/a")
    process = start("x=0,1,2", "task=trouble", "sweep.name=a", "hydra.launcher.n_jobs=2", "hydra.launcher.threads=1")
    output, _ = process.communicate(timeout=120)
    assert states(sweep) == ["finished", "failed", "killed"], output
    for said in (
        "1 finished, 1 failed, 1 killed",
        "RuntimeError: no luck",
        "killed by SIGKILL",
        "sweep.resume=sweeps/a",
    ):
        assert said in output, said
    _, failed, killed = read_sweep(sweep).jobs
    assert "with x" in failed.status.traceback and "app.py" in failed.status.traceback
    assert (sweep / "0/output.log").read_text().startswith("x is 0 threads 1 argv ['x=0', 'task=trouble'")
    assert (sweep / "sweep.csv").read_text().count("\n") == 4

    Path("mended").touch()
    written = (sweep / "0/status.json").stat().st_mtime_ns
    again = start(
        "x=0,1,2", "task=trouble", "hydra.sweep.dir=sweeps/a", "sweep.resume=sweeps/a", "hydra.launcher.n_jobs=2"
    )
    output, _ = again.communicate(timeout=120)
    jobs = read_sweep(sweep).jobs
    assert [job.status.state for job in jobs] == ["finished"] * 3, output
    assert [job.status.attempt for job in jobs] == [1, 2, 2]
    assert [job.status.metric["square"] for job in jobs] == [0, 1, 4]
    assert (sweep / "0/status.json").stat().st_mtime_ns == written
    assert [job.status.overrides for job in jobs[1:]] == [failed.status.overrides, killed.status.overrides]


def test_ctrl_c_and_the_death_of_the_sweep_end_the_jobs_too(start) -> None:
    sweep, waiting = Path("sweeps/b"), [Path("waiting-0"), Path("waiting-1")]
    words = ["x=0,1,2", "task=wait", "sweep.name=b", "hydra.launcher.n_jobs=2"]
    killed = start(*words)
    until(lambda: all(path.exists() for path in waiting))
    killed.kill()
    until(lambda: states(sweep) == ["interrupted", "interrupted", "pending"], 30)

    for path in waiting:
        path.unlink()
    process = start(*words, "sweep.resume=sweeps/b")
    until(lambda: all(path.exists() for path in waiting))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert states(sweep) == ["interrupted", "interrupted", "pending"]
    assert "2 interrupted, 1 pending" in output
    assert "Traceback" not in output


def test_submitit_really_runs_and_a_killed_job_is_one_failure(start) -> None:
    pytest.importorskip("submitit", reason="the extra 'sweeps' is not installed")
    sweep = Path("sweeps/c")
    process = start("x=0,2", "task=trouble", "sweep.name=c", "hydra/launcher=slurm_local")
    output, _ = process.communicate(timeout=120)
    assert states(sweep) == ["finished", "killed"], output
    assert read_sweep(sweep).jobs[0].status.metric == {"double": 0, "square": 0}
    assert "1 finished, 1 killed" in output
