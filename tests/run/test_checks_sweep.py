"""What is wrong with a sweep is told before any of its jobs starts."""

from pathlib import Path

import pytest

from recdepth import checks, checks_sweep
from recdepth.entry import sweep_problems
from recdepth.settings import ConfigError

CONF = Path(__file__).resolve().parents[2] / "conf"


def problems(*overrides: str, program: str = "train") -> list[str]:
    return sweep_problems(CONF, program, ["-m", *overrides])


def test_stopping_needs_a_launcher_that_can() -> None:
    (found,) = problems("seed=0,1", "sweep.on_error=stop", "hydra/launcher=slurm_local")
    assert found.startswith("sweep.on_error=stop: this launcher hands all jobs over at once")
    assert problems("seed=0,1", "sweep.on_error=stop", "hydra/launcher=pool") == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sweep.on_error=halt"], "sweep.on_error=halt is unknown; take continue or stop"),
        (["hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0 should be greater than or equal to 1"),
        (["hydra.launcher.n_jobs=two"], "hydra.launcher.n_jobs=two should be a valid integer"),
        (["hydra.launcher.grace_seconds=-1"], "hydra.launcher.grace_seconds=-1 should be greater than or equal to 0"),
        (["hydra.launcher.grace_seconds=abc"], "hydra.launcher.grace_seconds=abc should be a valid number"),
        (["hydra.sweeper.max_batch_size=-1"], "hydra.sweeper.max_batch_size=-1 should be greater than or equal to 1"),
        (["hydra/launcher=slurm_local", "hydra.launcher.timeout_min=0"], "hydra.launcher.timeout_min=0 should be"),
        (["optimized_metric=[val/loss,train/loss]"], "optimized_direction=minimize: 1 for 2 metrics"),
        (["optimized_direction=up"], "optimized_direction=up is unknown; take minimize or maximize"),
    ],
)
def test_settings_of_a_sweep_are_checked(overrides, expected) -> None:
    (found,) = problems("seed=0,1", *overrides)
    assert found.startswith(expected)


def test_a_sweep_does_not_run_into_the_folder_of_another(tmp_path) -> None:
    (tmp_path / "train/multiruns/a").mkdir(parents=True)
    (tmp_path / "train/multiruns/a/sweep.json").write_text("{}")
    (found,) = problems("seed=0,1", "sweep.name=a", f"paths.outputs={tmp_path}")
    assert found.startswith("sweep.name=a: ") and f"sweep.resume={tmp_path}/train/multiruns/a" in found


def test_trials_of_a_search_are_counted_from_one() -> None:
    pytest.importorskip("optuna", reason="the extra 'sweeps' is not installed")
    search = ["hydra/sweeper=optuna_search", "seed=range(0,3)", "hydra.sweeper.n_trials=0", "hydra.sweeper.n_jobs=null"]
    first, second = problems(*search)
    assert first.startswith("hydra.sweeper.n_trials=0 should be greater than or equal to 1")
    assert second.startswith("hydra.sweeper.n_jobs=null should be a valid integer")


def test_jobs_do_not_share_a_run_folder(tmp_path) -> None:
    (found,) = problems("seed=0,1", f"paths.run_dir={tmp_path}")
    assert found == f"seed=1: paths.run_dir={tmp_path} is the folder of several jobs; leave it out"
    assert problems("seed=0,1", f"paths.run_dir={tmp_path}/s${{seed}}") == []
    assert problems(f"paths.run_dir={tmp_path}/a,{tmp_path}/b", "model=tiny") == []


def test_a_missing_extra_is_named(monkeypatch) -> None:
    monkeypatch.setattr(checks_sweep, "find_spec", lambda name: None if name.endswith("sweeper") else object())
    (found,) = problems("seed=0,1", "hydra/sweeper=optuna_search")
    assert found == 'hydra/sweeper=optuna_search needs an extra: pip install -c constraints.txt -e ".[sweeps]"'


def test_the_ends_of_a_search_are_checked_before_it_starts() -> None:
    pytest.importorskip("optuna", reason="the extra 'sweeps' is not installed")
    search = ["hydra/sweeper=optuna_search", "model=tiny"]
    assert problems(*search, "optimizer.lr=interval(1e-3,1e-1)", "model.hidden_size=32,64") == []
    found = problems(*search, "optimizer.lr=interval(-1,3)", "model.hidden_size=choice(32,33)")
    assert any("optimizer.lr=-1" in problem for problem in found)
    assert any("model.hidden_size=33" in problem for problem in found)


def test_several_metrics_are_returned_in_their_order(composed) -> None:
    cfg = composed("optimized_metric=[val/loss,train/loss]", "optimized_direction=[minimize,minimize]")
    checks.check_train(cfg)
    assert checks.optimized_metric(cfg, {"train/loss": 1.0, "val/loss": 2.0}) == [2.0, 1.0]
    with pytest.raises(ConfigError, match="optimized_metric=val/los is not logged"):
        checks.check_train(composed("optimized_metric=[val/los,train/loss]", "optimized_direction=[minimize,minimize]"))


@pytest.mark.parametrize("name", ["local", "pool", "slurm", "slurm_local", "ray_cluster"])
def test_launchers_compose_and_instantiate(name) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.plugins import Plugins
    from hydra.core.utils import setup_globals

    if name.startswith("slurm"):
        pytest.importorskip("submitit", reason="the extra 'sweeps' is not installed")
    if name.startswith("ray"):
        pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    setup_globals()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=[f"hydra/launcher={name}"], return_hydra_config=True)
        assert config.hydra.launcher._target_
        launcher = Plugins.instance()._instantiate(config.hydra.launcher)
    assert type(launcher).__name__ == config.hydra.launcher._target_.rsplit(".", 1)[1]
