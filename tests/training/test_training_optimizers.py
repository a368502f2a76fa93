"""Muon and AdamW behind one face, and the schedules."""

import copy

import pytest
import torch
from torch.optim import AdamW, Muon

from recdepth import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.training import Constant, Cosine, MuonAdamW, WarmupStableDecay, parameter_groups
from recdepth.training.optimizers import orthogonalized


def model(tied: bool = True) -> RecurrentDepthForCausalLM:
    torch.manual_seed(1)
    config = RecurrentDepthConfig(vocab_size=11, hidden_size=16, num_attention_heads=2, tie_word_embeddings=tied)
    return RecurrentDepthForCausalLM(config)


def backward(network: RecurrentDepthForCausalLM, step: int) -> None:
    ids = torch.arange(step, step + 8)[None] % 11
    network(ids, num_steps=2, labels=ids, seed=step).loss.backward()


@pytest.mark.parametrize("tied", [True, False])
def test_groups_hold_every_parameter_once_by_role(tied) -> None:
    network = model(tied)
    groups = {g["role"]: g for g in parameter_groups(network)}
    listed = [p for g in groups.values() for p in g["params"]]
    assert {id(p) for p in listed} == {id(p) for p in network.parameters()}
    assert len(listed) == len({id(p) for p in listed})
    ends = {id(network.embedding.weight), id(network.head.weight)}
    assert {id(p) for p in groups["embedding"]["params"]} == ends
    assert all(p.ndim == 2 for p in groups["matrix"]["params"])
    assert groups["vector"]["weight_decay"] == 0.0
    assert "weight_decay" not in groups["matrix"]


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_one_face_steps_like_both_alone_with_one_schedule(adjust, monkeypatch) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch's Muon in float32, as ours on a CPU
    ours, theirs = model(), model()
    together = MuonAdamW(parameter_groups(ours), lr=0.02, adamw_lr=3e-3, weight_decay=0.1, adjust_lr=adjust)
    groups = parameter_groups(theirs)
    muon = Muon(groups[:1], lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn=adjust)
    adamw = AdamW(groups[1:], lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda i: 1 / (1 + i)) for o in (together, muon, adamw)]
    for step in range(4):
        for network in (ours, theirs):
            network.zero_grad()
            backward(network, step)
        for optimizer in (together, muon, adamw):
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    assert [g["lr"] for g in together.param_groups] == [g["lr"] for g in muon.param_groups + adamw.param_groups]
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 8, 8)])
def test_orthogonalized_keeps_directions_and_evens_lengths(shape) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b, c = coefficients = (3.4445, -4.7750, 2.0315)
    u, lengths, v = torch.linalg.svd(matrices / matrices.norm(dim=(1, 2), keepdim=True), full_matrices=False)
    for _ in range(5):
        lengths = a * lengths + b * lengths**3 + c * lengths**5
    expected = u @ torch.diag_embed(lengths) @ v
    for dtype, within in ((torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        found = orthogonalized(matrices, coefficients, 5, 1e-7, dtype)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=within)


def test_the_closure_is_called_with_gradients_and_its_loss_returned() -> None:
    network = model()
    optimizer = MuonAdamW(parameter_groups(network), lr=0.02, adamw_lr=3e-3)
    before = copy.deepcopy(network.state_dict())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        backward(network, 0)
        return torch.tensor(7.0)

    assert optimizer.step(closure) == 7.0
    assert any(not torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_a_checkpoint_continues_exactly() -> None:
    straight, stopped = model(), model()
    a = MuonAdamW(parameter_groups(straight), lr=0.02, adamw_lr=3e-3)
    b = MuonAdamW(parameter_groups(stopped), lr=0.02, adamw_lr=3e-3)
    for step in range(4):
        if step == 2:
            state = copy.deepcopy(b.state_dict())
            b = MuonAdamW(parameter_groups(stopped), lr=1.0, adamw_lr=1.0)
            b.load_state_dict(state)
        for network, optimizer in ((straight, a), (stopped, b)):
            network.zero_grad()
            backward(network, step)
            optimizer.step()
    for x, y in zip(straight.parameters(), stopped.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_groups_of_one_kind_only_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of both kinds"):
        MuonAdamW([{"params": [torch.nn.Parameter(torch.ones(2, 2))], "role": "matrix"}], lr=0.1, adamw_lr=0.1)


def test_schedules_pass_through_their_corners() -> None:
    wsd = WarmupStableDecay(warmup=0.1, decay=0.4, final=0.2)
    assert [wsd(p) for p in (0, 0.05, 0.1, 0.6)] == pytest.approx([0, 0.5, 1, 1])
    assert [wsd(p) for p in (0.8, 1.0)] == pytest.approx([0.6, 0.2])
    cosine = Cosine(warmup=0.2, final=0.1)
    assert [cosine(p) for p in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1, 0.55, 0.1])
    assert [Constant(warmup=0.5)(p) for p in (0.25, 0.5, 1)] == pytest.approx([0.5, 1, 1])
    assert Constant()(0) == WarmupStableDecay(warmup=0, decay=0)(0) == WarmupStableDecay(warmup=0, decay=0)(1) == 1


@pytest.mark.parametrize("make", [lambda: WarmupStableDecay(0.6, 0.6), lambda: Cosine(final=2), lambda: Constant(-1)])
def test_impossible_schedules_are_refused(make) -> None:
    with pytest.raises(ValueError):
        make()
