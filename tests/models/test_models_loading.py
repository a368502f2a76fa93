"""Bad folders and bad settings: one clear error each."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import recdepth
from recdepth.models import load_config

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "huginn"


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((GOLDEN / name).read_bytes())
    return tmp_path


def _edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is not a folder"):
        recdepth.load_model(tmp_path / "nowhere")


def test_no_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        recdepth.load_model(folder)


def test_a_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        recdepth.load_model(folder)


def test_an_unknown_family(folder):
    _edit(folder, model_type="mystery")
    with pytest.raises(ValueError, match=r"model_type='mystery'.*known"):
        recdepth.load_model(folder)


@pytest.mark.parametrize("family", ["huginn", "raven_llama", "ouro"])
def test_a_configuration_alone_tells_the_family(tmp_path, family):
    golden = GOLDEN.with_name(family)
    (tmp_path / "config.json").write_bytes((golden / "config.json").read_bytes())
    ours, whole = load_config(tmp_path).to_dict(), load_config(golden).to_dict()
    assert ours == whole


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks weights: model\.safetensors"):
        recdepth.load_model(folder)


def test_truncated_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        recdepth.load_model(folder)


def test_wrong_shapes_are_all_named(folder):
    weights = load_file(folder / "model.safetensors")
    weights["transformer.adapter.weight"] = torch.zeros(3, 3)
    del weights["transformer.ln_f.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"(?s)adapter.weight has shape \(3, 3\) instead of \(32, 64\).*ln_f.weight is missing"
    ):
        recdepth.load_model(folder)


def test_a_retrofitted_llama_is_not_mistaken_for_a_huginn(folder):
    _edit(folder, num_key_value_heads=1)
    with pytest.raises(ValueError, match="num_key_value_heads=1"):
        recdepth.load_model(folder)


def test_our_own_format_is_checked_as_well(tmp_path):
    model = recdepth.RecurrentDepthForCausalLM(recdepth.RecurrentDepthConfig(hidden_size=8, num_attention_heads=2))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"norm\.weight is missing"):
        recdepth.load_model(tmp_path)
    _edit(tmp_path, num_attention_heads=3)
    with pytest.raises(ValueError, match=r"config\.json: impossible model settings"):
        recdepth.load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    _edit(tmp_path, num_attention_heads=2)
    with pytest.raises(ValueError, match="cannot be read"):
        recdepth.load_model(tmp_path)


def test_a_huginn_config_that_lacks_a_key(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["n_embd"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: n_embd missing"):
        recdepth.load_model(folder)


def test_no_tokenizer(folder):
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is missing"):
        recdepth.load_tokenizer(folder)


def test_impossible_configurations_name_everything_at_once():
    with pytest.raises(ValueError, match=r"(?s)core_layers=0.*prelude_layers=-1"):
        recdepth.RecurrentDepthConfig(core_layers=0, prelude_layers=-1)
    with pytest.raises(
        ValueError, match=r"hidden_size=30 is not divisible by num_attention_heads=4; take hidden_size=32"
    ):
        recdepth.RecurrentDepthConfig(hidden_size=30, num_attention_heads=4)
    with pytest.raises(ValueError, match=r"(?s)intermediate_size=-8.*norm_eps=-1"):
        recdepth.RecurrentDepthConfig(intermediate_size=-8, norm_eps=-1)
    with pytest.raises(ValueError, match="even head size"):
        recdepth.RecurrentDepthConfig(hidden_size=12, num_attention_heads=4)
