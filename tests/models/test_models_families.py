"""The public families beside Huginn: their implementations' logits, on tiny checkpoints in their formats."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import recdepth
from recdepth.sampling import Autoregressive, Exact, Speculative

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def expected(family):
    return load_file(GOLDEN / family / "expected.safetensors")


@pytest.mark.parametrize(("family", "r"), [("raven_llama", 1), ("raven_llama", 6), ("ouro", 1), ("ouro", 4)])
@pytest.mark.parametrize("state", ["own", "zeros"])
def test_logits_equal_the_public_implementation(family, r, state):
    model, tensors = recdepth.load_model(GOLDEN / family), expected(family)
    ids = tensors["input_ids"]
    zeros = torch.zeros(*ids.shape, model.config.hidden_size)
    if state == "own" and family != "ouro":
        pytest.skip("its own initial state is noise")
    with torch.no_grad():
        logits = model(ids, num_steps=r, initial_state=zeros if state == "zeros" else None).logits
    torch.testing.assert_close(logits, tensors[f"logits_r{r}"], atol=1e-4, rtol=0)


def test_the_exit_gate_reads_the_state_after_every_loop():
    model, tensors = recdepth.load_model(GOLDEN / "ouro"), expected("ouro")
    with torch.no_grad():
        latents = [model(tensors["input_ids"], num_steps=r).latents for r in (1, 2, 3, 4)]
        gates = torch.cat([model.exit_gate(x) for x in latents], dim=-1)
    torch.testing.assert_close(gates, tensors["gates_r4"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", [Autoregressive, Exact, Speculative])
def test_greedy_continuations_equal_the_public_implementation(sampler):
    model = recdepth.load_model(GOLDEN / "raven_llama")
    tokens = json.loads((GOLDEN / "raven_llama" / "expected.json").read_text())["runs"]["ar_full_kv_r3"]["tokens"]
    result = sampler(num_steps=3, init_scale=0.0)(model, [tokens[:20]], max_new_tokens=len(tokens) - 20)
    assert result.tokens == [tokens[20:]]
