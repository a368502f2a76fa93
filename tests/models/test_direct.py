"""Compiled graphs that are called directly do what torch.compile's would."""

import gc
import weakref
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recdepth.models import can_compile, products
from recdepth.models.direct import DirectGraph
from recdepth.models.products import Linear, PackedWeights

pytestmark = pytest.mark.skipif(not can_compile()[0], reason="needs a compiler")


class Pair(NamedTuple):
    sum: Tensor
    nothing: Tensor | None
    product: Tensor


def linear(model, settings, inputs, stores):
    (x,), (store,) = inputs, stores
    store[settings] = x.sum()
    return model(x)


def pair(model, settings, inputs):
    x, y = inputs
    return Pair(x + y * settings, None, model(x) * y)


def silent(model, settings, inputs, stores):
    stores[0].add_(model(inputs[0]).sum())


SCALE = torch.tensor(2.0)


def scaled(model, settings, inputs):
    return model(inputs[0]) * SCALE * inputs[1]


@pytest.fixture
def direct(monkeypatch):
    """Counts calls that go through torch.compile."""

    def make(run, model, settings, *groups):
        graph, slow = DirectGraph(run, {"cpp_wrapper": True}, PackedWeights()), [0]
        through = graph._compiled

        def counted(*call):
            slow[0] += 1
            return through(*call)

        graph._compiled = counted
        return (lambda *groups: graph(model, settings, *groups)), slow

    return make


@torch.inference_mode()
def test_later_calls_are_direct_and_take_other_tensors_in_any_order(direct):
    model = nn.Linear(3, 3, bias=False)
    call, slow = direct(pair, model, 3.0)
    for seed in range(3):
        x, y = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed))
        found, expected = call((x, y)), pair(model, 3.0, (x, y))
        assert isinstance(found, Pair) and found.nothing is None
        torch.testing.assert_close((found.sum, found.product), (expected.sum, expected.product))
        found, expected = call([y, x]), pair(model, 3.0, (y, x))
        torch.testing.assert_close((found.sum, found.product), (expected.sum, expected.product))
    assert slow == [1]


@torch.inference_mode()
def test_tensors_are_written_in_place_and_weights_are_those_of_the_moment(direct):
    model = nn.Linear(3, 3, bias=False)
    call, slow = direct(linear, model, 1)
    stores = [torch.zeros(4) for _ in range(3)]
    for i, store in enumerate(stores):
        x = torch.full((2, 3), float(i + 1))
        torch.testing.assert_close(call([x], [store]), model(x))
        assert store.tolist() == [0, 6 * (i + 1), 0, 0]
        if i == 0:
            model.weight.data = torch.ones(3, 3)
        else:
            model.weight = nn.Parameter(torch.full((3, 3), 2.0))
    assert slow == [1]


@torch.inference_mode()
def test_a_function_without_a_result(direct):
    model, total = nn.Linear(3, 3, bias=False), torch.zeros(())
    call, slow = direct(silent, model, None)
    for _ in range(3):
        assert call([torch.ones(1, 3)], [total]) is None
    torch.testing.assert_close(total, 3 * model.weight.sum())
    assert slow == [1]


@torch.inference_mode()
@pytest.mark.parametrize("case", ["a tensor from elsewhere", "a tensor given twice"])
def test_what_cannot_be_told_goes_through_torch_compile(direct, case):
    model, strange = nn.Linear(3, 3, bias=False), case == "a tensor from elsewhere"
    call, slow = direct(scaled if strange else pair, model, 1.0)
    for _ in range(3):
        x = torch.randn(4, 3)
        if strange:
            torch.testing.assert_close(call((x, x + 1)), 2 * model(x) * (x + 1))
        else:
            torch.testing.assert_close(call((x, x)).sum, 2 * x)
    assert slow == [3]


class Products(nn.Module):
    """A large product, a small one, one with a bias, and one whose weight is looked up as well."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.large, self.small, self.biased = Linear(64, 48), Linear(48, 4), nn.Linear(4, 200)
        self.tied = nn.Parameter(torch.randn(40, 200))
        self.to(dtype)

    def forward(self, x):
        x = F.linear(self.biased(self.small(self.large(x))), self.tied)
        return self.tied[0].sum() + x


def product(model, settings, inputs):
    (x,) = inputs
    return model(x)


def changed(model):
    """The model after each of several changes of its weights."""
    yield model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with torch.inference_mode(False), torch.enable_grad():
        model(torch.ones(1, 64, dtype=model.tied.dtype)).sum().backward()
    optimizer.step()
    yield model
    model.load_state_dict({name: torch.randn_like(weight) for name, weight in model.state_dict().items()})
    yield model
    model.large.weight.data = torch.randn_like(model.large.weight)
    yield model
    model.large.weight = nn.Parameter(torch.randn_like(model.large.weight))  # an inference tensor: has no version
    yield model
    model.large.weight.fill_(0.1)
    yield model


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_products_keep_up_with_changes_of_weights_packed_or_not(dtype):
    torch.manual_seed(0)
    with torch.inference_mode(False):
        model = Products(dtype)
    packed = PackedWeights()
    graph = DirectGraph(product, {"cpp_wrapper": True}, packed)
    close = {"rtol": 2e-2, "atol": 0.5} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-3}
    for each in changed(model):
        packed.refresh()
        for _ in range(2):
            x = torch.randn(1, 20, 64).to(dtype)
            torch.testing.assert_close(graph(model, None, (x,)), each(x), **close)
        # our own code needs no copy
        assert len(packed.tensors) == (2 if dtype == torch.bfloat16 and products._packs(dtype) else 0)
        assert all(name == "weight" and weight.is_mkldnn for (name, _), weight in packed.tensors.items())


def test_a_model_that_is_gone_takes_its_weights_along(direct):
    model = Linear(3, 3)
    weight = weakref.ref(model.weight)
    call, slow = direct(silent, model, None)
    store = torch.zeros(())
    with torch.inference_mode():
        for _ in range(2):
            call((torch.ones(1, 3),), (store,))
    assert slow == [1]
    del model, call
    gc.collect()
    assert weight() is None
