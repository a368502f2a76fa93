"""Compilers that do not take our C++: sampling goes on without it."""

import logging

import pytest
import torch

from recdepth.models import can_compile, kernels
from recdepth.models.attention import attend_by_position
from recdepth.models.direct import DirectGraph
from recdepth.models.products import Linear, PackedWeights

pytestmark = pytest.mark.skipif(not can_compile()[0], reason="needs a C++ compiler")


@pytest.fixture
def restored(monkeypatch):
    """What is refused during a test is not refused after it."""
    from torch._inductor.lowering import lowerings

    assert kernels.can_use_kernels()
    known = {kernel.operator: lowerings[kernel.operator] for kernel in kernels._kernels}
    monkeypatch.setattr(kernels, "_refused", [])
    yield
    lowerings.update(known)


def looks(model, settings, inputs):
    """A product and attention, both of our code where a compiler takes it."""
    x, k, v, rows, positions = inputs
    return attend_by_position(model(x)[:, None], k, v, rows, positions)


@pytest.mark.slow
@torch.inference_mode()
def test_code_that_a_compiler_refuses_is_done_without(restored, monkeypatch, caplog):
    torch.manual_seed(0)
    model = Linear(16, 16)
    for kernel in kernels._kernels:
        monkeypatch.setattr(kernel, "code", kernel.code + "\n#error refused\n")
        monkeypatch.setattr(kernel, "version", "refused")
    x, (k, v) = torch.randn(1, 3, 16), torch.randn(2, 1, 1, 5, 16)
    inputs = x, k, v, torch.zeros(1, 3, dtype=torch.long), torch.tensor([[0, 4, 2]])
    graph = DirectGraph(looks, {"cpp_wrapper": True}, PackedWeights())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(graph(model, None, inputs), looks(model, None, inputs))
    said = [record.message for record in caplog.records if record.name == kernels.log.name]
    assert len(said) == 1 and "without them" in said[0] and said[0].endswith("#error refused")
    assert not kernels.can_use_kernels()


def test_other_errors_are_not_taken_for_a_refusal(restored):
    assert not kernels.do_without_kernels(ValueError("no code at all"))
    assert kernels.can_use_kernels()


@pytest.mark.slow
def test_a_graph_without_our_code_is_not_refused_for_it(restored, caplog):
    """Such as one for a GPU: only its own error is said."""
    graph = DirectGraph(lambda model, settings, inputs: inputs[0].relu(), {"no_such_option": True})
    with caplog.at_level(logging.WARNING), pytest.raises(Exception, match="no_such_option"):
        graph(None, None, (torch.randn(2),))
    assert kernels.log.name not in {record.name for record in caplog.records}
    assert kernels.can_use_kernels()


def test_a_cpu_without_vectors_does_without(monkeypatch):
    import torch._inductor.cpu_vec_isa as isa

    monkeypatch.setattr(isa, "pick_vec_isa", lambda: isa.invalid_vec_isa)
    assert not kernels._made_known.__wrapped__()
