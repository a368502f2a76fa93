"""Logits and greedy continuations of the public Huginn implementation, on a tiny checkpoint in its format."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import recdepth
from recdepth.sampling import Autoregressive, Exact

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "huginn"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture(scope="module")
def model():
    return recdepth.load_model(GOLDEN)


@pytest.fixture(scope="module")
def tensors():
    return load_file(GOLDEN / "expected.safetensors")


@pytest.mark.parametrize("r", [1, 4, 16])
def test_logits_equal_the_public_implementation(model, tensors, r):
    ids = tensors["input_ids"]
    with torch.no_grad():
        out = model(ids, num_steps=r, initial_state=torch.zeros(*ids.shape, model.config.hidden_size))
    torch.testing.assert_close(out.logits, tensors[f"logits_r{r}"], atol=1e-4, rtol=0)
    if r == 4:
        torch.testing.assert_close(out.latents, tensors["latents_r4"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(EXPECTED["runs"]))
def test_greedy_continuations_equal_the_public_implementation(model, name):
    tokens = EXPECTED["runs"][name]["tokens"]
    kv = "per_depth" if "full" in name else "shared"
    sampler = Autoregressive(num_steps=int(name.rsplit("r", 1)[1]), kv=kv, init_scale=0.0)
    assert sampler(model, [tokens[:24]], max_new_tokens=len(tokens) - 24).tokens == [tokens[24:]]


@pytest.mark.parametrize("name", [n for n in sorted(EXPECTED["runs"]) if "full" in n])
def test_exact_gives_the_same_continuations(model, name):
    tokens, r = EXPECTED["runs"][name]["tokens"], int(name.rsplit("r", 1)[1])
    sampler = Exact(num_steps=r, inner_steps=2, max_wavefront=6, init_scale=0.0)
    result = sampler(model, [tokens[:24]], max_new_tokens=len(tokens) - 24)
    assert result.tokens == [tokens[24:]]
    assert result.stats.core_passes < r * len(tokens[24:])


def test_a_stored_head_is_read_when_it_is_not_tied(tmp_path, model, tensors):
    config = json.loads((GOLDEN / "config.json").read_text())
    weights = load_file(GOLDEN / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"] * 2
    save_file(weights, tmp_path / "model.safetensors")
    ids = tensors["input_ids"]
    for tied, factor in ((True, 1), (False, 2)):  # a tied model ignores a stored copy of its head
        (tmp_path / "config.json").write_text(json.dumps(config | {"tie_embeddings": tied}))
        other = recdepth.load_model(tmp_path)
        with torch.no_grad():
            ours, theirs = (m(ids, num_steps=2, seed=0).logits for m in (other, model))
        torch.testing.assert_close(ours, theirs * factor)


def test_saved_in_our_format_it_is_the_same_model(tmp_path, model, tensors):
    model.save_pretrained(tmp_path)
    again = recdepth.load_model(tmp_path)
    with torch.no_grad():
        first, second = (m(tensors["input_ids"], num_steps=3, seed=0).logits for m in (model, again))
    assert torch.equal(first, second)
