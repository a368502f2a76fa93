"""Products by oneDNN against PyTorch's own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.utils import run_and_get_code

import recdepth
from recdepth.models import products
from recdepth.models.products import Linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """oneDNN takes every product, whatever the machine; the shapes of those that the layer gave it."""
    seen: list[tuple[int, ...]] = []

    def suits(x: torch.Tensor, weight: torch.Tensor) -> bool:
        found = original(x, weight)
        if found:
            seen.append(tuple(x.shape))
        return found

    original = products._suits_onednn
    monkeypatch.setattr(products, "ONEDNN", True)
    monkeypatch.setattr(products, "LARGE", 1)
    monkeypatch.setattr(products, "_suits_onednn", suits)
    return seen


@pytest.mark.parametrize("shape", [(1, 1, 24), (3, 5, 24), (70, 24)])
def test_values_and_gradients_are_those_of_a_plain_product(shape, calls):
    layer = Linear(24, 40)
    x, target = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], 40)

    def of(y: torch.Tensor) -> list[torch.Tensor]:
        return [y, *torch.autograd.grad((y * target).sum(), (x, layer.weight))]

    for ours, plain in zip(of(layer(x)), of(F.linear(x, layer.weight)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    assert calls == [shape]


def test_a_frozen_input_or_weight_gets_no_gradient(calls):
    layer, x = Linear(8, 8), torch.randn(4, 8)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and x.grad is None
    layer.weight.requires_grad_(False)
    y = x.clone().requires_grad_(True)
    layer(y).sum().backward()
    torch.testing.assert_close(y.grad, layer.weight.sum(0).expand(4, 8))


def test_other_types_and_small_products_are_left_to_pytorch(calls, monkeypatch):
    Linear(8, 8).double()(torch.randn(64, 8, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(8, 8)(torch.randn(64, 8)).dtype == torch.bfloat16
    monkeypatch.setattr(products, "LARGE", 64 * 8 * 8 + 1)
    Linear(8, 8)(torch.randn(64, 8))
    assert calls == []


@pytest.mark.slow
def test_a_compiled_product_trains(calls):
    layer, x = Linear(16, 16), torch.randn(32, 16)
    plain = torch.autograd.grad(F.silu(F.linear(x, layer.weight)).sum(), layer.weight)[0]
    compiled = torch.compile(lambda y: F.silu(layer(y)), dynamic=False)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), layer.weight)[0], plain, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_graph_for_sampling_calls_the_product_without_python(calls):
    layer, x = Linear(16, 16), torch.randn(32, 16)
    with torch.no_grad():  # as after a training that was compiled
        torch.compile(lambda y: layer(y) + 1, dynamic=False)(x)
    products.call_without_python.__wrapped__()
    compiled = torch.compile(layer, dynamic=False, options={"cpp_wrapper": True})
    with torch.inference_mode():
        found, code = run_and_get_code(compiled, x)
        torch.testing.assert_close(found, F.linear(x, layer.weight), rtol=1e-5, atol=1e-5)
    assert "cpu__linear_pointwise(" in "".join(code)


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
