"""What both entry points share: starting the Hydra application, and turning users' mistakes into one message."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from . import lifecycle
from .checks import check_sample, check_train
from .checks_sweep import launching
from .settings import ConfigError
from .sweeps import finish
from .sweeps.resume import resumed

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130
_SWEEP = {"-m", "--multirun"}
_GRIDS = {
    "hydra_plugins.recdepth_plugins.grid.GridSweeper",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
}
_SEARCHES = {
    "hydra_plugins.recdepth_plugins.optuna.OptunaSweeper",
    "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
}
_CHECKS: dict[str, Callable[[DictConfig], Any]] = {"train": check_train, "sample": check_sample}


def launch(main: Callable[[], Any], config_dir: Path, config_name: str, text_keys: Iterable[str] = ()) -> int:
    """Run a ``hydra.main`` function.

    Args:
        main: the decorated function.
        config_dir: the folder of configurations.
        config_name: the primary one.
        text_keys: keys whose values are free text, so that they need no quotes of Hydra's.

    Returns:
        the exit code: 0, 1 for a sweep with jobs that have not finished, 2 for a mistake in the configuration
        (explained on stderr), 130 after Ctrl-C.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, not to Hydra's own printer
    sweep = None
    try:
        arguments = _resuming(config_name, sys.argv[1:])
        sys.argv[1:] = arguments if _sweeping(arguments) else [_quoted(a, text_keys) for a in arguments]
        if _sweeping(arguments) and (found := sweep_problems(config_dir, config_name, arguments)):
            raise ConfigError(found)
        try:
            main()
        finally:
            sweep = finish()  # however it ended
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except (CompactHydraException, OmegaConfBaseException) as error:
        problems = list(composition_problems(config_dir, config_name, sys.argv[1:]))
        print(ConfigError(problems or [_first_lines(error)]), file=sys.stderr)
        return USER_ERROR
    except OSError as error:  # behind Hydra's, some of which are one
        begun, frames = getattr(main, "__wrapped__", main).__code__, [f.f_code for f, _ in walk_tb(error.__traceback__)]
        if begun in frames or "mkdir" not in (code.co_name for code in frames):
            raise
        key = "hydra.sweep.dir" if _sweeping(sys.argv[1:]) else "hydra.run.dir"
        problem = f"the folder cannot be made, {error.filename}: {error.strerror}; take another by {key}=…"
        print(ConfigError([f"{problem} or paths.outputs=…"]), file=sys.stderr)
        return USER_ERROR
    return FAILED if sweep is not None and sweep.unfinished else 0


@contextmanager
def user_errors() -> Iterator[None]:
    """Inside the Hydra function: leave with exit code 2 and the message alone, if the configuration is wrong."""
    try:
        yield
    except ConfigError as error:
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # this job's failure, which the sweep reports: the others still run
        print(error, file=sys.stderr)
        raise SystemExit(USER_ERROR) from None  # Hydra lets it pass, and adds nothing


def sweep_problems(config_dir: Path, config_name: str, arguments: list[str]) -> list[str]:
    """What is wrong with the jobs of a multirun, each problem behind the choices that have it.

    A search has no list of jobs: the ends and choices of each searched key are tried, one key at a time. Empty where
    Hydra alone can tell the jobs: with a sweeper of another kind, flags, or overrides that do not fit.
    """
    overrides = [a for a in arguments if a not in _SWEEP]
    if any(a.startswith("-") for a in overrides):
        return []
    GlobalHydra.instance().clear()
    lifecycle.quiet()
    found: dict[str, list[str]] = {}
    try:
        with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
            config, jobs = _jobs(config_name, overrides)
            if general := list(launching(config)):
                return general
            fixed = set(jobs[0]).intersection(*jobs) if jobs else set()
            folders = set()
            for number, job in enumerate(jobs):
                problems, folder = _job_problems(config_name, job, number)
                if folder is not None and folder in folders:
                    problems = [*problems, f"paths.run_dir={folder} is the folder of several jobs; leave it out"]
                folders.add(folder)
                for problem in problems:
                    found.setdefault(problem, []).append(" ".join(o for o in job if o not in fixed))
    except (CompactHydraException, OmegaConfBaseException):
        return []
    finally:
        HydraConfig.instance().cfg = None
    everywhere = [problem for problem, choices in found.items() if len(choices) == len(jobs)]
    return everywhere + [f"{c}: {p}" for p, choices in found.items() if p not in everywhere for c in choices]


def _jobs(config_name: str, overrides: list[str]) -> tuple[DictConfig, list[list[str]]]:
    """The multirun's configuration, and the overrides of jobs that stand for all: of each, for a grid."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    plain = [o.input_line for o in parser.parse_overrides(overrides) if not o.is_sweep_override() and o.input_line]
    config = compose(config_name, overrides=plain, return_hydra_config=True)
    sweeper = config.hydra.sweeper
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = {o.get_key_element(): o for o in parser.parse_overrides([*params, *overrides])}
    if sweeper._target_ in _GRIDS:
        (jobs,) = BasicSweeper.split_arguments(list(parsed.values()), None)
        return config, jobs
    if sweeper._target_ not in _SEARCHES:
        return config, []
    choices = [[f"{key}={value}" for value in _ends(override)] for key, override in parsed.items()]
    first = [values[0] for values in choices]
    changed = [[*first[:i], v, *first[i + 1 :]] for i, values in enumerate(choices) for v in values[1:]]
    return config, [first, *changed]


def _ends(override: Override) -> list[str]:
    """The values of a searched key that bound the others: all choices, or both ends of an interval."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def _job_problems(config_name: str, job: list[str], number: int) -> tuple[list[str], str | None]:
    """What is wrong with a job, and its folder."""
    config = compose(config_name, overrides=job, return_hydra_config=True)
    hydra = config.hydra
    OmegaConf.set_readonly(hydra, False)
    hydra.job.num, hydra.job.id = number, str(number)
    hydra.runtime.output_dir = str(Path(hydra.sweep.dir) / hydra.sweep.subdir)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    try:
        _CHECKS[config_name](config)
    except ConfigError as error:
        return error.problems, config.paths.run_dir
    return [], config.paths.run_dir


def _resuming(config_name: str, arguments: list[str]) -> list[str]:
    """The command line, or with ``sweep.resume=<folder>`` that of the sweep there."""
    given = [a for a in arguments if a not in _SWEEP]
    wanted = [a for a in given if a.partition("=")[0] == "sweep.resume"]
    if not wanted or wanted[-1] == "sweep.resume=null":
        return arguments
    text = wanted[-1].partition("=")[2]  # as a shell gives it, or in Hydra's quotes
    if text[:1] in ("'", '"'):
        text = str(OverridesParser.create().parse_override(wanted[-1]).value())
    return resumed(Path(text), config_name, [a for a in given if a not in wanted])


def composition_problems(config_dir: Path, config_name: str, arguments: list[str]) -> Iterator[str]:
    """Explain every command-line override that does not fit the configuration."""
    overrides = [a for a in arguments if "=" in a or a.startswith("~")]
    overrides.sort(key=lambda o: not (config_dir / o.split("=")[0].lstrip("+~").split("@")[0]).is_dir())
    sweeping = _sweeping(arguments)
    good: list[str] = []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
        config = compose(config_name)
        for override in overrides:
            fitting = None
            for choice in _choices(override) if sweeping else [override]:
                try:
                    config = compose(config_name, overrides=[*good, choice])
                    fitting = choice
                except (CompactHydraException, OmegaConfBaseException) as error:
                    yield _elsewhere(config_dir, config_name, good, choice) or _explain(choice, error, config)
            if fitting is not None:
                good.append(fitting)


def _elsewhere(config_dir: Path, config_name: str, others: list[str], override: str) -> str | None:
    """Where an override that does not fit here, beside others, would: with a recipe, or in the other program."""

    def fits(primary: str, *overrides: str) -> bool:
        try:
            compose(primary, overrides=list(overrides))
        except (CompactHydraException, OmegaConfBaseException):
            return False
        return True

    for recipe in sorted(path.stem for path in (config_dir / "experiment").glob("*.yaml")):
        if fits(config_name, *others, f"experiment={recipe}", override):
            return f"{override} needs experiment={recipe}; add that"
    for other in _CHECKS:
        if other != config_name and fits(other, override):
            return f"{override} is for {other}.py, not for {config_name}.py"
    return None


def _sweeping(arguments: list[str]) -> bool:
    """Whether this is a multirun: said by a flag, or by what ``hparams_search`` and ``hydra.mode`` choose."""
    search = [a for a in arguments if a.startswith("hparams_search=")][-1:]
    chosen = search not in ([], ["hparams_search=null"])
    return chosen or not {*_SWEEP, "hydra.mode=MULTIRUN"}.isdisjoint(arguments)


def _choices(override: str) -> list[str]:
    """The single values of a sweep, or the ends of an interval; the override itself if it is none."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except OverrideParseException:
        return [override]
    if not parsed.is_sweep_override():
        return [override]
    return [f"{parsed.get_key_element()}={value}" for value in _ends(parsed)]


def _explain(override: str, error: Exception, config: DictConfig) -> str:
    key = override.split("=")[0]
    if isinstance(error, MissingConfigException) and error.options is not None:
        wanted = override.split("=", 1)[1]
        close = difflib.get_close_matches(wanted, error.options, n=2, cutoff=0.5)
        return f"{override}: {_did_you_mean(close)}there are {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return f"{override}: not in Hydra's grammar ({_first_lines(error)}); put quotes around it: '{key}=\"…\"'"
    text = _first_lines(error)
    if text.startswith("Could not override"):
        known = list(_keys(OmegaConf.to_container(config)))
        same_name = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
        close = same_name[:3] or difflib.get_close_matches(key, known, n=3, cutoff=0.6)
        return f"{override}: there is no such key; {_did_you_mean(close)}write +{override} to add a new one"
    if text.startswith("Ambiguous value"):
        return f"{override}: a comma means a sweep; add -m for one, or put quotes around the text: '{key}=\"…\"'"
    return f"{override}: {text}"


def _did_you_mean(close: list[str]) -> str:
    return f"did you mean {' or '.join(close)}? " if close else ""


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, child in node.items():
            key = f"{prefix}{name}"
            yield key
            yield from _keys(child, f"{key}.")


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "hydra.cc" not in line]
    return "; ".join(lines[:2]) if lines else type(error).__name__


def _quoted(argument: str, keys: Iterable[str]) -> str:
    """Put Hydra's quotes around free text, unless the user has put quotes or brackets there."""
    key, equals, value = argument.partition("=")
    if not equals or key not in keys or value in ("", "null") or value[0] in "'\"[":
        return argument
    body = value.replace("\\'", "\\\\'").replace("'", "\\'")
    body += "\\" if body.endswith("\\") else ""
    return f"{key}='{body}'"
