"""Every job in a process of its own: failures, deaths, Ctrl-C, and what resuming runs."""

import os
import signal
import time
from pathlib import Path

import pytest
from hydra.core.utils import JobStatus

from recdepth.reporting.sweep import read_sweep

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals")


def until(condition, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def states(folder) -> list[str]:
    return [job.status.state for job in read_sweep(folder).jobs]


def test_failing_and_killed_jobs_leave_the_sweep_alone_and_are_resumed(start) -> None:
    sweep, words = Path("sweeps/a"), ["x=1,2", "task=trouble", "sweep.name=a", "hydra.launcher.n_jobs=2"]
    output, _ = start(*words, "hydra.launcher.threads=1").communicate(timeout=120)
    failed, killed = read_sweep(sweep).jobs
    assert [failed.status.state, killed.status.state] == ["failed", "killed"], output
    for said in ("1 failed, 1 killed", "RuntimeError: no luck", "killed by SIGKILL", "sweep.resume=sweeps/a"):
        assert said in output, said
    assert failed.status.traceback is not None
    assert "with x" in failed.status.traceback and "app.py" in failed.status.traceback
    assert (sweep / "0/output.log").read_text().startswith("x is 1 threads 1 argv ['x=1', 'task=trouble'")

    Path("mended").touch()
    output, _ = start(*words, "sweep.resume=sweeps/a").communicate(timeout=120)
    jobs = read_sweep(sweep).jobs
    assert states(sweep) == ["finished"] * 2, output
    assert [job.status.attempt for job in jobs] == [2, 2]
    assert [job.status.metric["square"] for job in jobs] == [1, 4]
    assert [job.status.overrides for job in jobs] == [failed.status.overrides, killed.status.overrides]


def test_the_death_of_the_sweep_and_ctrl_c_end_the_jobs_too(start) -> None:
    sweep, waiting = Path("sweeps/b"), Path("waiting-0")
    words = ["x=0,1", "task=wait", "sweep.name=b", "hydra.launcher.n_jobs=1"]
    killed = start(*words)
    until(waiting.exists)
    killed.kill()
    until(lambda: states(sweep) == ["interrupted", "pending"], 30)

    waiting.unlink()
    process = start(*words, "sweep.resume=sweeps/b")
    until(waiting.exists)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=150)  # longer than the jobs' grace
    assert process.returncode == 130, output
    assert states(sweep) == ["interrupted", "pending"]
    assert "1 interrupted, 1 pending" in output
    assert "Traceback" not in output


def test_submitit_really_runs_and_a_failing_job_is_one_failure(start) -> None:
    pytest.importorskip("submitit", reason="the extra 'sweeps' is not installed")
    sweep = Path("sweeps/c")
    process = start("x=0,1", "task=trouble", "sweep.name=c", "hydra/launcher=slurm_local")
    output, _ = process.communicate(timeout=120)
    assert states(sweep) == ["finished", "failed"], output
    assert read_sweep(sweep).jobs[0].status.metric == {"double": 0, "square": 0}
    assert "1 finished, 1 failed" in output


def test_the_death_of_a_job_of_submitit_is_its_failure_alone() -> None:
    submitit = pytest.importorskip("submitit", reason="the extra 'sweeps' is not installed")
    from hydra_plugins.recdepth_plugins.submitit import _Patient

    class Dead:
        job_id = "7"

        def results(self):
            raise submitit.core.utils.UncompletedJobError("no output\nof job 7")

    (returned,) = _Patient(Dead()).results()
    assert returned.status == JobStatus.FAILED
    with pytest.raises(RuntimeError, match="job 7: no output"):
        _ = returned.return_value
