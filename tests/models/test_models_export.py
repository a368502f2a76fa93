"""Formats both ways: checkpoints written by hand load, and what is exported is the format that was loaded."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import recdepth
from recdepth.models import export

sys.path.insert(0, str(Path(__file__).parent))
from checkpoints import DIM, FORMATS, HEADS, MLP, VOCAB, write

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
families = pytest.mark.parametrize("family", ["huginn", "raven_llama", "ouro"])


def logits(model, r=3, **call):
    ids = torch.randint(0, model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids, num_steps=r, seed=0, **call).logits


@families
def test_exported_golden_checkpoints_are_the_originals_bit_for_bit(tmp_path, family):
    model = recdepth.load_model(GOLDEN / family)
    recdepth.export_model(model, tmp_path / "out", family=family)
    original, written = (load_file(folder / "model.safetensors") for folder in (GOLDEN / family, tmp_path / "out"))
    assert original.keys() == written.keys()
    assert all(torch.equal(original[name], written[name]) for name in original)
    before, after = (json.loads((f / "config.json").read_text()) for f in (GOLDEN / family, tmp_path / "out"))
    leftovers = {"padding_multiple", "initial_state_mode"} | ({"rope_base"} if family == "raven_llama" else set())
    assert {key: after.get(key) for key in before.keys() - leftovers} == {
        key: value for key, value in before.items() if key not in leftovers
    }
    assert after["auto_map"].keys() == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}


@families
@pytest.mark.parametrize("shards", [1, 3])
def test_checkpoints_written_by_hand_load_and_come_back(tmp_path, family, shards):
    tensors = write(tmp_path / "in", FORMATS[family](), shards=shards)
    model = recdepth.load_model(tmp_path / "in")
    recdepth.export_model(model, tmp_path / "out", family=family, max_shard_size=4_000 if shards > 1 else "5GB")
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (shards > 1)
    again = recdepth.load_model(tmp_path / "out")
    assert again.config.to_dict() == model.config.to_dict()
    assert torch.equal(logits(again), logits(model))
    written = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        written |= load_file(file)
    assert written.keys() - {"freqs_cis"} == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)


@families
def test_our_own_format_keeps_every_family(tmp_path, family):
    write(tmp_path / "in", FORMATS[family]())
    model = recdepth.load_model(tmp_path / "in")
    model.save_pretrained(tmp_path / "saved")
    recdepth.export_model(model, tmp_path / "exported")
    for folder in ("saved", "exported"):
        again = recdepth.load_model(tmp_path / folder)
        assert torch.equal(logits(again), logits(model))
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / folder)), logits(model))
        recdepth.export_model(again, tmp_path / folder / family, family=family)
        assert torch.equal(logits(recdepth.load_model(tmp_path / folder / family)), logits(model))


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_the_rows_alone(tmp_path, family, side):
    write(tmp_path, FORMATS[family]())
    model, lengths = recdepth.load_model(tmp_path, dtype=torch.float64), [9, 4, 7]
    ids, count = torch.randint(0, VOCAB, (3, 9)), torch.arange(9)
    mask = torch.stack([(count >= 9 - n) if side == "left" else (count < n) for n in lengths]).long()
    with torch.no_grad():
        batch = model(ids, num_steps=4, attention_mask=mask, seed=0).logits
        for row, keep in enumerate(mask.bool()):
            noise = model.initial_state(torch.zeros(3, 9, DIM).double(), torch.arange(3), count.expand(3, -1), seed=0)
            state = noise[row : row + 1, : lengths[row]]
            alone = model(ids[row : row + 1, keep], num_steps=4, initial_state=state).logits
            torch.testing.assert_close(batch[row, keep], alone[0])


def test_a_retrofitted_llama_that_ignores_its_state_is_the_llama(tmp_path):
    """transformers' Llama as the reference for blocks, shared heads and stretched waves."""
    config, shapes = FORMATS["raven_llama"]()
    tensors = write(tmp_path, (config, shapes))
    model = recdepth.load_model(tmp_path)
    with torch.no_grad():
        model.injection.weight.copy_(torch.cat([torch.zeros(DIM, DIM), torch.eye(DIM)], dim=1))
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=DIM,
            intermediate_size=MLP,
            num_hidden_layers=5,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_theta": config["rope_theta"], **config["rope_scaling"]},
        )
    ).eval()
    llama.model.embed_tokens.weight.data = tensors["transformer.wte.weight"]
    llama.model.norm.weight.data = tensors["transformer.ln_f.weight"]
    llama.lm_head.weight.data = tensors["lm_head.weight"]
    blocks = [f"prelude.{i}" for i in (0, 1)] + ["core_block.0"] + [f"coda.{i}" for i in (0, 1)]
    for layer, block in zip(llama.model.layers, blocks, strict=True):
        part = {name: tensors[f"transformer.{block}.{name}.weight"] for name in ("attn.Wqkv", "mlp.fc")}
        q, k, v = part["attn.Wqkv"].split([DIM, DIM // 2, DIM // 2])
        layer.self_attn.q_proj.weight.data, layer.self_attn.k_proj.weight.data = q, k
        layer.self_attn.v_proj.weight.data = v
        layer.self_attn.o_proj.weight.data = tensors[f"transformer.{block}.attn.proj.weight"]
        layer.mlp.gate_proj.weight.data, layer.mlp.up_proj.weight.data = part["mlp.fc"].chunk(2)
        layer.mlp.down_proj.weight.data = tensors[f"transformer.{block}.mlp.proj.weight"]
        layer.input_layernorm.weight.data = tensors[f"transformer.{block}.norm_1.weight"]
        layer.post_attention_layernorm.weight.data = tensors[f"transformer.{block}.norm_2.weight"]
    ids = torch.randint(0, VOCAB, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(model(ids, num_steps=3, seed=0).logits, llama(ids).logits, atol=1e-4, rtol=1e-4)


def test_shared_key_heads_equal_as_many_copies_of_them(tmp_path):
    tensors = write(tmp_path, FORMATS["ouro"]())
    shared = recdepth.load_model(tmp_path)
    config, shapes = FORMATS["ouro"](num_key_value_heads=HEADS)
    write(tmp_path, (config, {n: (DIM, DIM) if "k_proj" in n or "v_proj" in n else s for n, s in shapes.items()}))
    copies = load_file(tmp_path / "model.safetensors")
    for name, tensor in tensors.items():
        if "k_proj" in name or "v_proj" in name:
            tensor = tensor.unflatten(0, (2, -1)).repeat_interleave(HEADS // 2, dim=0).flatten(0, 1)
        copies[name] = tensor.contiguous()
    export.save_file(copies, tmp_path / "model.safetensors")
    torch.testing.assert_close(logits(shared), logits(recdepth.load_model(tmp_path)), atol=1e-5, rtol=1e-5)


def test_a_model_made_here_can_be_a_huginn(tmp_path):
    config = recdepth.RecurrentDepthConfig(vocab_size=30, hidden_size=16, num_attention_heads=2, eos_token_id=3)
    model = recdepth.RecurrentDepthForCausalLM(config).eval()
    recdepth.export_model(model, tmp_path, family="huginn")
    again = recdepth.load_model(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert again.config.eos_token_id == 3
    raw = json.loads((tmp_path / "config.json").read_text())
    assert "tie_word_embeddings" not in raw  # Huginn's configuration class would get it twice


def test_what_a_format_cannot_store_is_named_at_once(tmp_path):
    config = recdepth.RecurrentDepthConfig(
        hidden_size=16, num_attention_heads=2, num_key_value_heads=1, qk_bias=False, norm_placement="pre"
    )
    model = recdepth.RecurrentDepthForCausalLM(config)
    with pytest.raises(ValueError, match=r"(?s)huginn:.*norm_placement='pre'.*'sandwich'.*num_key_value_heads=1"):
        recdepth.export_model(model, tmp_path / "out", family="huginn")
    with pytest.raises(ValueError, match=r"family='llama' is unknown; take one of recdepth, huginn"):
        recdepth.export_model(model, tmp_path / "out", family="llama")
    assert not list(tmp_path.iterdir())


def test_an_export_touches_no_file_but_its_own(tmp_path, monkeypatch):
    model = recdepth.load_model(GOLDEN / "ouro")
    theirs = ["out.new/notes.txt", "out/model_ema.safetensors", "out/models.safetensors", "out/model-notes.safetensors"]
    for name in theirs:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("theirs")
    for size in (100_000, "5GB"):
        recdepth.export_model(model, tmp_path / "out", max_shard_size=size)
        assert all((tmp_path / name).read_text() == "theirs" for name in theirs)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.new"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recdepth.export_model(model, ".")
    assert torch.equal(logits(recdepth.load_model(tmp_path / "here")), logits(model))


def test_how_to_generate_is_exported(tmp_path):
    model = recdepth.load_model(GOLDEN / "ouro")
    model.generation_config.num_steps, model.generation_config.eos_token_id = 3, [5, 7]
    found = recdepth.load_model(recdepth.export_model(model, tmp_path / "out")).generation_config
    assert (found.num_steps, found.eos_token_id) == (3, [5, 7])


def test_an_index_that_is_left_over_is_not_read(tmp_path):
    model = recdepth.load_model(GOLDEN / "ouro")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    model.save_pretrained(tmp_path)  # leaves the index of the shards that it deletes
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert torch.equal(logits(recdepth.load_model(tmp_path)), logits(model))


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    model = recdepth.load_model(GOLDEN / "ouro")
    recdepth.export_model(model, tmp_path / "out", family="ouro")
    (tmp_path / "out" / "modeling_ouro.py").write_text("theirs")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with monkeypatch.context() as patch:

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        patch.setattr(export, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            recdepth.export_model(model, tmp_path / "out", family="ouro")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    recdepth.export_model(model, tmp_path / "out", family="ouro", max_shard_size=100_000)
    left = {file.name for file in (tmp_path / "out").iterdir()}
    assert "modeling_ouro.py" in left and "model.safetensors" not in left  # weights of the earlier export are gone
    assert torch.equal(logits(recdepth.load_model(tmp_path / "out")), logits(model))
