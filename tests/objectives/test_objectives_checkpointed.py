"""Recomputing recurrences in the backward pass: the same gradients from less memory, whatever the objective."""

import pytest
import torch

from recdepth.objectives import (
    Consistency,
    Contraction,
    DepthConsistency,
    DraftExposure,
    IndependentDepths,
    NextToken,
    SingleLanes,
    Staircase,
    StateNoise,
    WavefrontLoss,
    Weighted,
)

TERMS = {
    "drafts": WavefrontLoss(Staircase(width=4), 2, DraftExposure(0.5), momentum=0.1, consistency=Consistency()),
    "noise": WavefrontLoss(Staircase(width=4, inner_steps=2), 2, noise=StateNoise(0.2)),
    "independent": WavefrontLoss(IndependentDepths(width=4), windows=2),
    "terminal_kv": WavefrontLoss(SingleLanes(), windows=3),
    "depth_consistency": DepthConsistency(Consistency(latent=0.1)),
    "contraction": Contraction(more_recurrences=2),
}


def objective(name: str, saving: bool):
    settings = {"mean_recurrence": 6, "least_recurrence": 6, "checkpoint_recurrences": saving}
    if name == "next_token":
        return NextToken(**settings)
    return Weighted({"next_token": 1.0, name: 0.5}, {name: TERMS[name]}, **settings)


def measured(objective, model, batch):
    """Gradients, and the bytes that are kept between the forward and the backward pass."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)  # held, so that no address is used twice
        return tensor

    torch.manual_seed(0)
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = objective(model, batch, 1.0, torch.Generator().manual_seed(0))
    size = sum(nbytes for nbytes, _ in kept.values())
    kept.clear()
    loss.mean.backward()
    return loss, [p.grad.clone() for p in model.parameters()], size


@pytest.mark.parametrize("name", ["next_token", *TERMS])
def test_the_gradients_are_the_same_and_the_memory_is_less(model, batch, name) -> None:
    plain_loss, plain, plain_size = measured(objective(name, saving=False), model, batch)
    loss, saving, size = measured(objective(name, saving=True), model, batch)
    assert torch.equal(loss.sum, plain_loss.sum)
    assert all(torch.equal(a, b) for a, b in zip(saving, plain, strict=True))
    assert size < 0.7 * plain_size
