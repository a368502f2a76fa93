"""Search by Optuna: killed, failed and untold trials, and what a rerun runs."""

import pytest

optuna = pytest.importorskip("optuna", reason="the extra 'sweeps' is not installed")

SEARCH = ["x=interval(0.0,4.0)", "hydra/sweeper=optuna_search", "hydra.sweeper.n_trials=6", "sweep.name=s"]
SEARCH += ["hydra.sweeper.sampler.seed=1"]


def study():
    return optuna.load_study(study_name="s", storage="sqlite:///sweeps/s/study.db")


def values(cfg):
    return 2.0 * cfg.x, float(cfg.x**2)


def interrupted_at(number, error=KeyboardInterrupt):
    calls = []

    def task(cfg):
        calls.append(cfg.x)
        if len(calls) == number:
            raise error("told to")
        return values(cfg)

    task.calls = calls
    return task


def test_a_killed_search_runs_only_the_remainder_and_retires_the_killed_trial(multirun) -> None:
    first = interrupted_at(3)
    multirun(first, *SEARCH)
    assert [trial.state.name for trial in study().trials] == ["COMPLETE", "COMPLETE", "RUNNING"]

    second = interrupted_at(99)
    sweep = multirun(second, *SEARCH, "sweep.resume=sweeps/s")
    trials = study().trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL", *["COMPLETE"] * 4]
    assert second.calls[0] == first.calls[2]  # the killed trial's own parameters, first
    assert len(set(first.calls + second.calls)) == 6  # and none is drawn twice, though the seed is fixed
    assert [job.folder.name for job in sweep.finished] == list("012345")
    assert sweep.jobs[2].status.attempt == 2
    assert sweep.swept == ["x"]
    assert (sweep.folder / "pareto.png").exists()

    third = interrupted_at(99)
    multirun(third, *SEARCH, "sweep.resume=sweeps/s")
    assert third.calls == []


def test_a_failed_trial_counts_and_is_run_again_when_resumed(multirun) -> None:
    first = interrupted_at(2, ValueError)
    sweep = multirun(first, *SEARCH)
    assert len(first.calls) == 6 and len(sweep.finished) == 5
    second = interrupted_at(99)
    sweep = multirun(second, *SEARCH, "sweep.resume=sweeps/s")
    assert second.calls == [first.calls[1]]
    assert [job.status.state for job in sweep.jobs] == ["finished"] * 6


def test_a_result_that_the_study_was_not_told_is_not_lost(multirun) -> None:
    multirun(interrupted_at(3), *SEARCH)
    known = study()
    with pytest.MonkeyPatch.context() as patch:  # the sweep dies between the end of the job and telling the study
        patch.setattr(optuna.Study, "tell", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        multirun(values, *SEARCH, "sweep.name=t", "hydra.sweeper.study_name=t")
    assert known.best_trials
    told = optuna.load_study(study_name="t", storage="sqlite:///sweeps/t/study.db")
    assert [trial.state.name for trial in told.trials] == ["RUNNING"]
    multirun(values, *SEARCH, "sweep.name=t", "hydra.sweeper.study_name=t", "sweep.resume=sweeps/t")
    assert [trial.state.name for trial in told.trials] == ["COMPLETE"] * 6


def test_trials_that_are_tried_again_keep_their_folders_however_often(multirun) -> None:
    calls = []

    def failing(cfg):
        calls.append(cfg.x)
        if len(calls) in (2, 5):
            raise ValueError("told to")
        return values(cfg)

    multirun(failing, *SEARCH)
    multirun(interrupted_at(1), *SEARCH, "sweep.resume=sweeps/s")  # stopped in the first of the two
    sweep = multirun(values, *SEARCH, "sweep.resume=sweeps/s")
    assert [job.status.state for job in sweep.jobs] == ["finished"] * 6
    assert [job.settings["x"] for job in sweep.jobs] == pytest.approx(calls)
