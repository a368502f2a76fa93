"""How the weights of products lie in memory."""

import copy

import torch

import recdepth
from recdepth.models.products import Linear


def test_weights_lie_as_their_transposes_wherever_they_come_from(tmp_path):
    config = recdepth.RecurrentDepthConfig(vocab_size=20, hidden_size=16, num_attention_heads=2)
    model = recdepth.RecurrentDepthForCausalLM(config)
    model.save_pretrained(tmp_path)
    loaded = [recdepth.load_model(tmp_path), recdepth.RecurrentDepthForCausalLM.from_pretrained(tmp_path)]
    for each in (model, copy.deepcopy(model), model.double(), *loaded):
        weights = {name: m.weight for name, m in each.named_modules() if isinstance(m, Linear) and name != "head"}
        assert len(weights) > 8
        assert all(weight.t().is_contiguous() and not weight.is_contiguous() for weight in weights.values())
    for ours, theirs in zip(model.float().parameters(), loaded[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
