"""Search by Optuna that can be killed and resumed: trials are jobs, and no trial is lost or run twice."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import optuna
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, TrialState

from ..reporting.status import Status, read_status
from .plan import PlannedJob, placed, read_jobs, write_plan
from .resume import of_jobs

log = logging.getLogger(__name__)

_RETIRED, _JOB, _SWEEP = "retired", "job", "sweep"


class Search(OptunaSweeperImpl):
    """Hydra's Optuna sweeper, except that ``n_trials`` is the number in all, over every start.

    What was running when the search was killed is told its result if its job has finished; else the trial is retired,
    and its parameters are the first to be tried again, in the same folder. ``sweep.resume`` does so with failed trials
    too. A failing job fails its trial; with ``sweep.on_error=stop`` it ends the search.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, max_failure_rate=1.0, search_space=None)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.folder = Path(config.hydra.sweep.dir)
        self.max_failure_rate = 0.0 if OmegaConf.select(config, "sweep.on_error") == "stop" else 1.0
        self.taken: set[int] = set()
        self.kept: set[int] = set()

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that remain."""
        from hydra_plugins.recdepth_plugins.local import JobFailed

        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        if self.storage is not None:
            self.n_trials = self._remainder()
        try:
            super().sweep(of_jobs(arguments))
        except JobFailed as error:
            log.info("sweep.on_error=stop: %s", error)
        except ValueError as error:
            if "No trials are completed" not in str(error):
                raise
            log.warning("No trial has finished: there is no best one")

    def _remainder(self) -> int:
        """Settle the trials of earlier starts; returns how many are left to run."""
        study = optuna.create_study(
            storage=self.storage, study_name=self.study_name, directions=self._get_directions(), load_if_exists=True
        )
        retired: list[int] = study.system_attrs.get(_RETIRED, [])
        assert self.config is not None
        again = OmegaConf.select(self.config, "sweep.resume") is not None
        for trial in study.get_trials(states=(TrialState.RUNNING, TrialState.FAIL)):
            values = self._result(trial) if trial.state == TrialState.RUNNING else None
            if values is not None:
                study.tell(trial.number, values)
            elif trial.number not in retired and (trial.state == TrialState.RUNNING or again):
                if trial.state == TrialState.RUNNING:
                    study.tell(trial.number, state=TrialState.FAIL)
                retired.append(trial.number)
                study.set_system_attr(_RETIRED, retired)
                if trial.params:  # as Optuna enqueues a trial, for the folder that it had: there is its checkpoint
                    ours = trial.system_attrs.get(_SWEEP) == self._name()
                    own = {"fixed_params": trial.params, **({_JOB: trial.system_attrs[_JOB]} if ours else {})}
                    study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, system_attrs=own))
        ended = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        ended = [trial for trial in ended if trial.number not in retired]
        self.taken = {trial.system_attrs[_JOB] for trial in ended if trial.system_attrs.get(_SWEEP) == self._name()}
        waiting = study.get_trials(states=(TrialState.WAITING,))
        self.kept = {trial.system_attrs[_JOB] for trial in waiting if _JOB in trial.system_attrs}
        if ended and isinstance(self.sampler, optuna.samplers.BaseSampler):
            self.sampler.reseed_rng()  # a fixed seed would draw the first trials' parameters again
        left = max(0, self.n_trials - len(ended))
        log.info("%d of %d trials are done, %d retired; %d to run", len(ended), self.n_trials, len(retired), left)
        return left

    def _result(self, trial: FrozenTrial) -> list[float] | None:
        """What the job of a trial found; None if it has not finished."""
        if trial.system_attrs.get(_SWEEP) != self._name():
            return None
        job = trial.system_attrs[_JOB]
        folders = [planned.folder for planned in read_jobs(self.folder) if planned.job == job]
        status: Status | None = read_status(self.folder / folders[0]) if folders else None
        if status is None or status.state != "finished" or len(status.metric) != len(self._get_directions()):
            return None
        return list(status.metric.values())

    def _configure_trials(self, trials: list[Any], *args: Any) -> Sequence[Sequence[str]]:
        """The overrides of the trials, whose jobs get the lowest numbers that no other trial has; one that is tried
        again keeps its own."""
        overrides = super()._configure_trials(trials, *args)
        free = (n for n in count() if n not in self.taken | self.kept)
        numbers = [trial.system_attrs.get(_JOB, -1) for trial in trials]
        numbers = [next(free) if n < 0 else n for n in numbers]
        self.taken.update(numbers)
        jobs = [PlannedJob(n, str(n), list(own)) for n, own in zip(numbers, overrides, strict=True)]
        for trial, number in zip(trials, numbers, strict=True):
            trial.set_system_attr(_JOB, number)
            trial.set_system_attr(_SWEEP, self._name())
        write_plan(self.folder, jobs)
        return [placed(job) for job in jobs]

    def _name(self) -> str:
        return str(self.folder.resolve())
