"""Finding what to sample from."""

import os

import pytest

from recdepth import RecurrentDepthConfig, RecurrentDepthForCausalLM, sources
from recdepth.data import byte_tokenizer
from recdepth.data.tokenizers import encode_texts
from recdepth.settings import ConfigError


def make_run(folder, age):
    (folder / "model").mkdir(parents=True)
    path = folder / "model" / "config.json"
    path.write_text("{}")
    os.utime(path, (1e9 - age, 1e9 - age))
    return folder


def test_the_newest_run_is_taken(tmp_path) -> None:
    make_run(tmp_path / "train/runs/2026-01-02/10-00-00-0", age=20)
    newest = make_run(tmp_path / "train/multiruns/2026-01-01_09-00-00-0/3", age=10)
    (tmp_path / "train/runs/2026-01-03/10-00-00-0/checkpoints").mkdir(parents=True)
    assert sources.run_folder(None, tmp_path) == newest


def test_a_missing_run_is_named_with_the_nearest(tmp_path) -> None:
    with pytest.raises(ConfigError, match="holds no run with a model"):
        sources.run_folder(None, tmp_path)
    run = make_run(tmp_path / "train/runs/2026-01-02/10-00-00-0", age=0)
    with pytest.raises(ConfigError, match=f"does not exist; the nearest: {run}"):
        sources.run_folder(f"{run}1", tmp_path)
    (tmp_path / "started").mkdir()
    with pytest.raises(ConfigError, match="has no model/"):
        sources.run_folder(str(tmp_path / "started"), tmp_path)


def test_a_bare_model_is_prompted_as_in_training_and_stops_where_it_says(tmp_path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<unk>"})  # known, and not added by itself
    tokenizer.save_pretrained(tmp_path)
    config = RecurrentDepthConfig(vocab_size=len(tokenizer), hidden_size=16, num_attention_heads=2)
    model = RecurrentDepthForCausalLM(config)
    model.generation_config.eos_token_id = [7, 9]
    source = sources.source_of_model(str(tmp_path), model, ["ab"])
    assert source.prompts[0].ids == tokenizer("ab")["input_ids"] == encode_texts(tokenizer, ["ab"], begin=True)[0]
    assert source.stop_tokens == sorted([tokenizer.eos_token_id, 7, 9])


def test_free_text_needs_no_quotes_of_hydras() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from recdepth.entry import _quoted

    for text in ["Zoe's, 4 = 5?", "a{b}c: [d]", "back\\slash", "x\\", "${not} an interpolation", "it\\'s"]:
        argument = _quoted(f"prompt={text}", ["prompt"])
        assert OverridesParser.create().parse_override(argument).value() == text
    for untouched in ["prompt='x'", "prompt=null", "prompt=[a,b]", "seed=1"]:
        assert _quoted(untouched, ["prompt"]) == untouched
