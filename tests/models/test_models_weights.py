"""Weight files: shards, dtypes, devices, memory, and what can be wrong with them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import recdepth
from recdepth.models.families import huginn

sys.path.insert(0, str(Path(__file__).parent))
from checkpoints import FORMATS, write

CLEAR_PEAK = Path("/proc/self/clear_refs")
MEASURE = """
import sys
from pathlib import Path
import recdepth

def memory(key):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
model = recdepth.load_model(sys.argv[1])
print(sum(p.nbytes for p in model.parameters()), memory("VmHWM") - before)
"""


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, "float64"])
def test_dtypes(tmp_path, stored, dtype):
    tensors = write(tmp_path, FORMATS["ouro"](), dtype=stored)
    model = recdepth.load_model(tmp_path, dtype=dtype)
    wanted = {None: stored, "float64": torch.float64}.get(dtype, dtype)
    assert {p.dtype for p in model.parameters()} == {wanted} == {model.config.dtype}
    assert torch.equal(model.core[1].mlp.proj.weight, tensors["model.layers.1.mlp.down_proj.weight"].to(wanted))


def test_the_largest_published_shape_has_the_published_number_of_parameters():
    """Huginn-0125: 3.5 B; its page on the hub counts 3.91 B, with the tied embedding twice."""
    shape = {"n_embd": 5280, "n_heads": 55, "intermediate_size": 17920, "vocab_size": 65536, "block_size": 4096}
    layers = {"n_layers_in_prelude": 2, "n_layers_in_recurrent_block": 4, "n_layers_in_coda": 2}
    with torch.device("meta"):
        model = recdepth.RecurrentDepthForCausalLM(huginn.convert_config({**shape, **layers}))
    count = sum(p.numel() for p in model.parameters())
    assert count == 3_564_976_800
    assert round((count + model.embedding.weight.numel()) / 1e9, 2) == 3.91


@pytest.mark.skipif(not CLEAR_PEAK.exists(), reason="needs Linux's peak memory")
@pytest.mark.parametrize("shards", [1, 4])
def test_loading_holds_no_second_copy(tmp_path, shards):
    """Of tensors that are fused: peak memory is that of the weights, and the part that is mapped meanwhile."""
    config, shapes = FORMATS["ouro"](vocab_size=30_000, hidden_size=256, intermediate_size=2048, num_hidden_layers=12)
    layer = {"self_attn.q_proj": (256, 256), "self_attn.k_proj": (128, 256), "self_attn.v_proj": (128, 256)}
    layer |= {"self_attn.o_proj": (256, 256), "mlp.down_proj": (256, 2048)}
    layer |= {"mlp.gate_proj": (2048, 256), "mlp.up_proj": (2048, 256)}
    norms = ["input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2"]
    layer |= dict.fromkeys(norms, (256,))
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(12) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (30_000, 256), "lm_head.weight": (30_000, 256)}
    shapes |= {
        "model.norm.weight": (256,),
        "model.early_exit_gate.weight": (1, 256),
        "model.early_exit_gate.bias": (1,),
    }
    size = sum(t.nbytes for t in write(tmp_path, (config, shapes), shards=shards).values())
    assert size > 140e6

    result = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    held, peak = map(int, result.stdout.split())
    assert held == size
    assert size < peak < size + 110e6  # 64 MB are mapped at most, and one tensor


def test_device_maps(tmp_path):
    write(tmp_path, FORMATS["ouro"]())
    assert recdepth.load_model(tmp_path, device_map={"": "cpu"}).device.type == "cpu"
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert recdepth.load_model(tmp_path, device_map="auto").device.type == wanted
    assert recdepth.load_model(tmp_path, device="meta").device.type == "meta"
    with pytest.raises(ValueError, match="must name one device for the whole model"):
        recdepth.load_model(tmp_path, device_map={"core": "cpu", "head": "cuda:0"})
    with pytest.raises(ValueError, match="exclude each other"):
        recdepth.load_model(tmp_path, device="cpu", device_map="auto")
    with pytest.raises(ValueError, match="dtype='int8' is unknown; take one of float64, float32"):
        recdepth.load_model(tmp_path, dtype="int8")


def test_pickles_are_refused_with_the_remedy(tmp_path):
    write(tmp_path, FORMATS["huginn"]())
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin may run code.*convert it.*save_file"):
        recdepth.load_model(tmp_path)


def test_shards_that_lack_something(tmp_path):
    write(tmp_path, FORMATS["raven_llama"](), shards=3)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-40])
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors cannot be read.*incomplete"):
        recdepth.load_model(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match=r"lacks weights: model-00002-of-00003\.safetensors"):
        recdepth.load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json is no index of safetensors"):
        recdepth.load_model(tmp_path)


@pytest.mark.parametrize("family", ["raven_llama", "ouro"])
def test_wrong_tensors_are_named_as_the_file_has_them(tmp_path, family):
    write(tmp_path, FORMATS[family]())
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(n for n in tensors if "proj.weight" in n)
    tensors[names[0]] = tensors[names[0]].T[:3].contiguous()
    del tensors[names[1]]
    tensors["extra.weight"] = torch.zeros(2)
    tensors[names[2]] = torch.zeros(tensors[names[2]].shape, dtype=torch.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        recdepth.load_model(tmp_path)
    for told in (f"{names[0]} has shape (3,", f"{names[1]} is missing", "extra.weight is not part", "stored as I8"):
        assert told in str(error.value)


def test_keys_and_values_of_another_shape_are_not_taken_for_each_other(tmp_path):
    """Fused, queries and keys have the right size in sum."""
    write(tmp_path, FORMATS["ouro"]())
    tensors = load_file(tmp_path / "model.safetensors")
    for name, rows in (("k_proj", 8), ("v_proj", 16)):
        tensors[f"model.layers.0.self_attn.{name}.weight"] = torch.zeros(rows, 24)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"k_proj\.weight has shape \(8, 24\) instead of \(12, 24\)"):
        recdepth.load_model(tmp_path)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("raven_llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "type 'yarn' is not supported"),
        ("raven_llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor.* missing"),
        ("raven_llama", {"rope_theta": None}, "needs rope_theta"),
        ("raven_llama", {"head_dim": 8}, "head_dim=8 is not supported, only 6"),
        ("raven_llama", {"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=4"),
        ("huginn", {"injection_type": "add"}, "injection_type='add' is not supported, only 'linear'"),
        ("ouro", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention are not supported"),
        ("ouro", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ("ouro", {"hidden_size": None}, "hidden_size missing"),
        ("ouro", {"hidden_size": "wide"}, "config.json"),
    ],
)
def test_variants_that_are_not_covered_say_so(tmp_path, family, change, message):
    write(tmp_path, FORMATS[family](**change))
    with pytest.raises(ValueError, match=message):
        recdepth.load_model(tmp_path)


def test_a_folder_may_be_overwritten_by_the_model_that_came_from_it(tmp_path):
    """The weights are no views of the file."""
    write(tmp_path, FORMATS["ouro"]())
    model = recdepth.load_model(tmp_path)
    before = {name: p.clone() for name, p in model.named_parameters()}
    (tmp_path / "model.safetensors").write_bytes(b"\0" * (tmp_path / "model.safetensors").stat().st_size)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
