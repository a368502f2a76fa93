"""A tiny pretrained decoder to make recurrent."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from recdepth.data import byte_tokenizer


def write_llama(folder: Path, **changes: int) -> LlamaForCausalLM:
    """A random Llama with a byte-level tokenizer, in a folder."""
    tokenizer = byte_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 9,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
