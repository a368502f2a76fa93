"""Search by Optuna; imported as a plugin even where Optuna is not installed, so it imports nothing of it."""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """See :class:`recdepth.sweeps.search.Search`.

    Args:
        sampler: of Optuna.
        direction: minimize or maximize, or a list of them.
        storage: where the study is kept; None keeps it in memory, so that it cannot be resumed.
        study_name: of the study in the storage.
        n_trials: in all, over every start.
        n_jobs: trials that the launcher gets at once.
        custom_search_space: a function (configuration, trial) that adds to the search.
        params: what to search, ``key: choices or interval``, as on the command line.
    """

    def __init__(
        self,
        sampler: Any,
        direction: Any,
        storage: str | None,
        study_name: str | None,
        n_trials: int,
        n_jobs: int,
        custom_search_space: str | None,
        params: DictConfig | None,
    ) -> None:
        from recdepth.sweeps.search import Search

        self.search = Search(
            sampler=sampler,
            direction=direction,
            storage=storage,
            study_name=study_name,
            n_trials=n_trials,
            n_jobs=n_jobs,
            custom_search_space=custom_search_space,
            params=params,
        )

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.search.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that remain."""
        self.search.sweep(arguments)
