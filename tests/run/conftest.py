"""Composing configurations in-process, and running the entry points as people do."""

import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[2]
TINY = ["model=tiny", "model.hidden_size=32", "model.mean_recurrence=2", "debug=fdr"]


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., DictConfig]:
    """Compose ``train`` (or another primary config) with a run folder under tmp_path; ``sample`` finds a run there."""

    def make(*overrides: str, name: str = "train", folder: str = "run") -> DictConfig:
        paths = [f"paths.run_dir={tmp_path / folder}"]
        if name == "sample":
            paths.append(f"paths.outputs={tmp_path / 'outputs'}")
            (tmp_path / "outputs/train/model").mkdir(parents=True, exist_ok=True)
            (tmp_path / "outputs/train/model/config.json").touch()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose(name, overrides=[*paths, *overrides])

    return make


@pytest.fixture
def tiny(composed: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """A training configuration that runs in a second or two."""
    return lambda *overrides, folder="run": composed(*TINY, "report=false", *overrides, folder=folder)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run train.py or sample.py with overrides; outputs go under tmp_path."""

    def run(script: str, *overrides: str) -> "subprocess.CompletedProcess[str]":
        arguments = [sys.executable, str(ROOT / script), *overrides, f"paths.outputs={tmp_path / 'outputs'}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300, cwd=tmp_path)

    return run


@pytest.fixture
def launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """As ``command``, in this process: nothing is imported anew, which takes longer than most of what is tested."""

    def run(script: str, *overrides: str) -> "subprocess.CompletedProcess[str]":
        root, arguments = logging.getLogger(), [str(ROOT / script), *overrides, f"paths.outputs={tmp_path / 'outputs'}"]
        handlers, level = list(root.handlers), root.level
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # launch() sets it
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.chdir(tmp_path)
        GlobalHydra.instance().clear()
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as left:
                runpy.run_path(arguments[0], run_name="__main__")
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
            root.handlers[:] = handlers
            root.setLevel(level)  # not root.level = …: loggers remember what they asked before
        code = left.value.code
        return subprocess.CompletedProcess(arguments, code if isinstance(code, int) else 0, *capfd.readouterr())

    return run
