"""The data configs: all keys are settings of their classes, and all settings are in the configs."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import recdepth.data
from recdepth.data import DataModule
from recdepth.data.reasoning_gym import TaskDataSettings

CONF = Path(__file__).parents[2] / "conf" / "data"


def load(name: str) -> DictConfig:
    """A data config under a root with the top-level seed, as in train.yaml."""
    return OmegaConf.create({"seed": 3, "data": OmegaConf.load(CONF / f"{name}.yaml")}).data


def settings_of(target: str) -> set[str]:
    found = set(inspect.signature(getattr(recdepth.data, target.rsplit(".", 1)[1])).parameters)
    return (found - {"settings"}) | (set(TaskDataSettings.__annotations__) if "settings" in found else set())


def check(config: DictConfig) -> None:
    assert set(config) - {"_target_"} == settings_of(config._target_)
    for key in config:
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig) and "_target_" in config[key]:
            check(config[key])


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_configs_have_every_setting_and_build(name: str, tmp_path: Path) -> None:
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym", reason="the extra 'tasks' is not installed")
    config = load(name)
    check(config)
    if name == "text":
        config.source.path = str(tmp_path / "text.txt")
        (tmp_path / "text.txt").write_text("\n\n".join(f"paragraph {i}" for i in range(200)))
    data = instantiate(config)
    assert isinstance(data, DataModule)
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (config.batch_size, config.sequence_length)
    assert len(data.evaluation_items(4)) == 4


def test_tokenizer_by_override() -> None:
    config = load("word_problems")
    config.tokenizer = {"_target_": "recdepth.data.byte_tokenizer"}
    config.sequence_length, config.max_new_tokens = 512, 192
    assert len(instantiate(config).tokenizer) == 259


@pytest.mark.parametrize("name", ["word_problems", "pointer_chase"])
def test_the_top_level_seed_seeds_the_data(name: str) -> None:
    config = load(name)
    first = [instantiate(config).evaluation_items(4), instantiate(config).evaluation_items(4)]
    config._get_parent().seed = 4
    other = instantiate(config).evaluation_items(4)
    assert [i.prompt for i in first[0]] == [i.prompt for i in first[1]] != [i.prompt for i in other]
