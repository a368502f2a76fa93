"""Tiny random checkpoints in the public formats, written name by name: nothing here comes from the package."""

import json

import torch
from safetensors.torch import save_file

DIM, HEADS, MLP, VOCAB = 24, 4, 40, 31


def _blocks(prefix, count, shapes):
    return {f"{prefix}.{i}.{name}": shape for i in range(count) for name, shape in shapes.items()}


def huginn(**changes):
    """(config, shapes) of a Huginn: 2 prelude, 1 core, 2 coda blocks."""
    config = {
        "model_type": "huginn_raven",
        "architectures": ["RavenForCausalLM"],
        "n_embd": DIM,
        "n_heads": HEADS,
        "n_layers": 5,
        "block_size": 64,
        "vocab_size": VOCAB,
        "intermediate_size": MLP,
        "n_layers_in_prelude": 2,
        "n_layers_in_recurrent_block": 1,
        "n_layers_in_coda": 2,
        "qk_bias": True,
        "tie_embeddings": True,
        "mean_recurrence": 3,
        "mean_backprop_depth": 2,
    }
    block = {
        "attn.Wqkv.weight": (3 * DIM, DIM),
        "attn.qk_bias": (2, 1, HEADS, DIM // HEADS),
        "attn.proj.weight": (DIM, DIM),
        "mlp.fc.weight": (2 * MLP, DIM),
        "mlp.proj.weight": (DIM, MLP),
        **{f"norm_{i}.weight": (DIM,) for i in (1, 2, 3, 4)},
    }
    shapes = {
        "transformer.wte.weight": (VOCAB, DIM),
        "transformer.adapter.weight": (DIM, 2 * DIM),
        "transformer.ln_f.weight": (DIM,),
        **_blocks("transformer.prelude", 2, block),
        **_blocks("transformer.core_block", 1, block),
        **_blocks("transformer.coda", 2, block),
    }
    return config | changes, shapes


def raven_llama(**changes):
    """(config, shapes) of a retrofitted Llama with one key/value head for two query heads, and stretched waves."""
    config, _ = huginn()
    config |= {
        "block_size": 4096,
        "max_position_embeddings": 64,
        "num_key_value_heads": 2,
        "head_dim": DIM // HEADS,
        "qk_bias": False,
        "tie_embeddings": False,
        "norm_eps": 1e-5,
        "rope_base": 1.0,
        "rope_theta": 100.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_type": "llama3",
        },
        "init_values": {"std": 0.05, "embed_scale": 1.0},
    }
    block = {
        "attn.Wqkv.weight": (DIM + 2 * DIM // 2, DIM),
        "attn.proj.weight": (DIM, DIM),
        "mlp.fc.weight": (2 * MLP, DIM),
        "mlp.proj.weight": (DIM, MLP),
        "norm_1.weight": (DIM,),
        "norm_2.weight": (DIM,),
    }
    shapes = {
        "transformer.wte.weight": (VOCAB, DIM),
        "transformer.adapter.weight": (DIM, 2 * DIM),
        "transformer.ln_f.weight": (DIM,),
        "lm_head.weight": (VOCAB, DIM),
        **_blocks("transformer.prelude", 2, block),
        **_blocks("transformer.core_block", 1, block),
        **_blocks("transformer.coda", 2, block),
    }
    return config | changes, shapes


def ouro(**changes):
    """(config, shapes) of an Ouro with two layers and shared key/value heads."""
    config = {
        "model_type": "ouro",
        "architectures": ["OuroForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": DIM,
        "intermediate_size": MLP,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000.0,
        "tie_word_embeddings": False,
        "total_ut_steps": 3,
    }
    keys = config["num_key_value_heads"] * DIM // HEADS
    layer = {
        "self_attn.q_proj.weight": (DIM, DIM),
        "self_attn.k_proj.weight": (keys, DIM),
        "self_attn.v_proj.weight": (keys, DIM),
        "self_attn.o_proj.weight": (DIM, DIM),
        "mlp.gate_proj.weight": (MLP, DIM),
        "mlp.up_proj.weight": (MLP, DIM),
        "mlp.down_proj.weight": (DIM, MLP),
        "input_layernorm.weight": (DIM,),
        "input_layernorm_2.weight": (DIM,),
        "post_attention_layernorm.weight": (DIM,),
        "post_attention_layernorm_2.weight": (DIM,),
    }
    shapes = {
        "model.embed_tokens.weight": (VOCAB, DIM),
        **_blocks("model.layers", 2, layer),
        "model.norm.weight": (DIM,),
        "model.early_exit_gate.weight": (1, DIM),
        "model.early_exit_gate.bias": (1,),
        "lm_head.weight": (VOCAB, DIM),
    }
    return config | changes, shapes


FORMATS = {"huginn": huginn, "raven_llama": raven_llama, "ouro": ouro}


def write(folder, form, dtype=torch.float32, shards=1, seed=0):
    """Write a random checkpoint; returns its tensors."""
    config, shapes = form
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.1)
        tensors[name] = (values + (1 if len(shape) == 1 else 0)).to(dtype)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    files = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return tensors
