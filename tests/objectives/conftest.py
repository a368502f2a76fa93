"""A tiny float64 model whose weights are large enough for drafts to be wrong, and a batch for it."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from recdepth import RecurrentDepthConfig, RecurrentDepthForCausalLM

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture
def model() -> RecurrentDepthForCausalLM:
    torch.manual_seed(1)
    config = RecurrentDepthConfig(
        vocab_size=11, hidden_size=16, num_attention_heads=2, core_layers=2, mean_recurrence=3, backprop_depth=8
    )
    model = RecurrentDepthForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(11, (3, 18), generator=torch.Generator().manual_seed(5))
    labels = ids.clone()
    labels[:, :6] = -100
    labels[1, 14:] = -100
    return {"input_ids": ids, "labels": labels}


@pytest.fixture
def composed_objective():
    """The node of an objective, from conf/objective."""

    def make(name: str):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", overrides=[f"objective={name}"]).objective

    return make
