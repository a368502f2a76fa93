"""A program of a few lines whose jobs do as they are told, run by Hydra in this process or started as people do."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from recdepth.reporting.sweep import Sweep, read_sweep
from recdepth.sweeps import finish

ROOT = Path(__file__).resolve().parents[2]
CONFIG = f"""
defaults:
  - sweep: default
  - _self_
  - override hydra/launcher: pool
  - override hydra/sweeper: grid
x: 0
task: ok
optimized_metric: [double, square]
optimized_direction: [minimize, maximize]
hydra:
  job: {{chdir: false}}
  searchpath: ["file://{ROOT / "conf"}"]
  sweep: {{dir: "sweeps/${{sweep.name}}", subdir: "${{hydra.job.num}}"}}
  callbacks: {{sweep: {{_target_: recdepth.sweeps.SweepRecords}}}}
"""
APP = """
import os, signal, sys, time
from pathlib import Path
import hydra
from recdepth.sweeps import finish

@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(cfg):
    print("x is", cfg.x, "threads", os.environ.get("OMP_NUM_THREADS"), "argv", sys.argv[1:], flush=True)
    if not Path("mended").exists():
        if cfg.task == "trouble" and cfg.x == 1:
            raise RuntimeError("no luck\\nwith x")
        if cfg.task == "trouble" and cfg.x == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if cfg.task == "wait":
            Path(f"waiting-{cfg.x}").touch()
            time.sleep(60)
    return 2 * cfg.x, cfg.x**2

if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        finish()
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program, in a folder that is the working directory."""
    (tmp_path / "app.yaml").write_text(CONFIG)
    (tmp_path / "app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "app.py"


@pytest.fixture
def start(app: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start the program with overrides; whatever is left of it is killed in the end."""
    started: list[subprocess.Popen[str]] = []

    def run(*overrides: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "HYDRA_FULL_ERROR": "1"}
        environment.pop("OMP_NUM_THREADS", None)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        if os.name == "posix":  # tests that run in the background ignore Ctrl-C, and what they start would, too
            pipes["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen([sys.executable, str(app), "-m", *overrides], env=environment, **pipes)
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def multirun(app: Path) -> Iterator[Callable[..., Sweep]]:
    """Run jobs in this process, by Hydra's own launcher; returns the sweep, also when the sweep was interrupted."""

    def run(task: Callable[[Any], Any], *overrides: str) -> Sweep:
        GlobalHydra.instance().clear()
        hydra = Hydra.create_main_hydra2("app", create_config_search_path(str(app.parent)))
        try:
            hydra.multirun("app", task, ["hydra.mode=MULTIRUN", "hydra/launcher=basic", *overrides], False)
        except KeyboardInterrupt:
            pass
        finally:
            finish()
        name = next(o.split("=")[1] for o in overrides if o.startswith("sweep.name="))
        return read_sweep(app.parent / "sweeps" / name)

    yield run
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
