"""The W&B sweeps: what the client checks before it sends them, and the commands that an agent starts."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args, load_sweep_config

from recdepth import checks

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONF / "wandb_sweeps").glob("*.yaml"))])
def test_a_sweep_is_accepted_and_its_commands_compose(name, tmp_path) -> None:
    sweep: Any = load_sweep_config(str(CONF / "wandb_sweeps" / f"{name}.yaml"))
    checked = _validate_config_and_fill_distribution(sweep)
    assert checked["parameters"].keys() == sweep["parameters"].keys()
    assert (CONF.parent / sweep["program"]).is_file()

    chosen = {key: {"value": p["values"][-1] if "values" in p else p["max"]} for key, p in sweep["parameters"].items()}
    flags = create_sweep_command_args({"args": chosen})
    words = {"args_no_hyphens": flags["args_no_hyphens"], "program": [sweep["program"]], "env": ["env"]}
    command = [part for word in sweep["command"] for part in (words[word[2:-1]] if word.startswith("${") else [word])]
    assert command[:3] == ["env", "python", f"{name}.py"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").touch()
    folders = [f"paths.run_dir={tmp_path}", f"paths.outputs={tmp_path}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, overrides=[*command[3:], *folders])
    {"train": checks.check_train, "sample": checks.check_sample}[name](cfg)
    assert cfg.logger.mode == "online"
    for key, value in chosen.items():
        assert str(value["value"]) in str(cfg[key.split(".")[0]])
    names = [cfg.optimized_metric] if isinstance(cfg.optimized_metric, str) else list(cfg.optimized_metric)
    assert sweep["metric"]["name"] in names
