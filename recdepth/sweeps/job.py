"""One job of a sweep, as its own process runs it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime, JobStatus, run_job
from hydra.types import HydraContext
from omegaconf import DictConfig

from ..reporting.status import read_status
from .callback import ended, started
from .plan import job_config


@dataclass(frozen=True)
class Place:
    """Number, folder and overrides of a job."""

    number: int
    folder: Path
    overrides: list[str]


@dataclass(frozen=True)
class Function:
    """The function that ``hydra.main`` decorates, by where it is written; functions of scripts cannot be pickled."""

    module: str
    file: str
    name: str

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Function:
        """Where a function is written.

        Raises:
            TypeError: if it is inside another one.
        """
        if "<" in function.__qualname__:
            raise TypeError(f"{function.__qualname__} must stand at the top level of a file, to run in other processes")
        file = inspect.getsourcefile(function)
        assert file is not None
        return cls(function.__module__, str(Path(file).resolve()), function.__qualname__)

    def load(self) -> Callable[[DictConfig], Any]:
        """The function, without ``hydra.main``."""
        if self.module == "__main__":
            spec = importlib.util.spec_from_file_location("__job__", self.file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules["__job__"] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(self.module)
        return inspect.unwrap(getattr(module, self.name))


def pack(context: HydraContext, config: DictConfig, function: Function, overrides: Sequence[str], task: Place) -> bytes:
    """Everything that :func:`run` needs."""
    name = JobRuntime.instance().get("name")
    search_path = context.config_loader.get_search_path()
    rest = pickle.dumps((search_path, context.callbacks, config, list(overrides)))
    return pickle.dumps((function, name, task, rest))


def run(payload: bytes) -> int:
    """Run a job; returns the exit code: 0 finished, 1 failed, 130 interrupted. Its status file tells the rest."""
    function, name, place, rest = pickle.loads(payload)  # from the sweep's own process, through a pipe
    try:
        return _run(function, name, place.number, rest)
    except KeyboardInterrupt as error:
        _note(place, error)
        return 130
    except BaseException as error:  # before the task, or SystemExit by it: Hydra notes the others
        _note(place, error)
        raise


def _run(function: Function, name: str, number: int, rest: bytes) -> int:
    task = function.load()  # before the callbacks, which may be the script's own
    search_path, callbacks, config, overrides = pickle.loads(rest)
    Plugins.instance()  # registers where configurations come from
    GlobalHydra.instance().clear()
    loader = Hydra.create_main_hydra2(name, search_path).config_loader
    JobRuntime.instance().set("name", name)
    result = run_job(
        task_function=task,
        config=job_config(loader, config, overrides, number),
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=HydraContext(config_loader=loader, callbacks=callbacks),
    )
    return int(result.status != JobStatus.COMPLETED)


def _note(place: Place, error: BaseException) -> None:
    status = read_status(place.folder)
    if status is None or status.state != "running":
        started(place.folder, place.number, place.overrides)
        status = read_status(place.folder)
    assert status is not None
    ended(place.folder, status, error)
