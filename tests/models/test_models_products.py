"""How the weights of products lie in memory."""

import copy

import pytest
import torch

import recdepth
from recdepth.models import can_compile, products
from recdepth.models.kernels import can_use_kernels
from recdepth.models.products import Linear, PackedWeights, packed_products, packed_weights
from recdepth.sampling import Autoregressive, DiffusionForcing, Exact

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


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


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_large_products_take_packed_weights_for_a_while(monkeypatch, dtype):
    layer, calls = Linear(40, 24).to(dtype), []
    real = products._product
    monkeypatch.setattr(products, "_product", lambda x, weight: calls.append(weight.is_mkldnn) or real(x, weight))
    monkeypatch.setattr(products, "PACKED_FROM", [(0, 40 * 24 * 6)])
    few, many = torch.randn(1, 5, 40, dtype=dtype), torch.randn(2, 3, 40, dtype=dtype)
    with torch.inference_mode(), packed_products(layer):
        for x in (few, many):
            tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
            torch.testing.assert_close(layer(x), x @ layer.weight.t(), rtol=tolerance, atol=tolerance)
    half = [True, True] if products._packs(torch.bfloat16) else []
    assert calls == {torch.float32: [True], torch.bfloat16: half, torch.float64: []}[dtype]
    for least, sizes in ((40 * 24, 2), (40 * 24 + 1, 1)):  # a large weight is packed for fewer rows
        monkeypatch.setattr(products, "PACKED_FROM", [(least, 40 * 24 * 5), (0, 40 * 24 * 6)])
        calls.clear()
        with torch.inference_mode(), packed_products(layer):
            for x in (few, many):
                layer(x)
        assert len(calls) == {torch.float32: sizes, torch.bfloat16: len(half), torch.float64: 0}[dtype]
    monkeypatch.setattr(products, "PACKED_FROM", [(40 * 24 + 1, 0)])  # no copy of weights that never take it
    with torch.inference_mode(), packed_products(layer):
        assert (layer.packed is not None) == bool(half and dtype == torch.bfloat16)
    with pytest.raises(RuntimeError), packed_products(layer):
        layer(torch.ones(3, dtype=dtype))
    assert layer.packed is None and "packed" not in copy.deepcopy(layer).state_dict()


def test_a_cpu_without_bfloat16_packs_none(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    layer = Linear(40, 24).bfloat16()
    with torch.inference_mode(), packed_products(layer):
        assert layer.packed is None
        assert layer(torch.ones(2, 40, dtype=torch.bfloat16)).shape == (2, 24)


@needs_onednn
def test_samplers_take_weights_as_they_are_now_and_leave_large_models_alone(monkeypatch):
    torch.manual_seed(0)
    config = recdepth.RecurrentDepthConfig(vocab_size=20, hidden_size=16, num_attention_heads=2)
    model, seen, real = recdepth.RecurrentDepthForCausalLM(config).eval(), [], products._product
    monkeypatch.setattr(products, "_product", lambda x, weight: seen.append(weight) or real(x, weight))
    call = {"prompts": [[1, 2, 3], [4]], "max_new_tokens": 12}
    samplers = Autoregressive(num_steps=4), Exact(num_steps=4, group=6), DiffusionForcing(num_steps=4, inner_steps=1)
    for change in range(3):
        for sampler in samplers:
            expected = sampler(model, **call).tokens
            assert not seen
            with monkeypatch.context() as patch:
                patch.setattr(products, "PACKED_FROM", [(0, 0)])
                assert sampler(model, **call).tokens == expected
                assert seen
                seen.clear()
                patch.setattr(products, "PACKED_UP_TO", 1000)
                assert sampler(model, **call).tokens == expected
                assert not seen
        if change == 0:
            for layer in model.modules():
                if isinstance(layer, Linear):
                    torch.nn.init.normal_(layer.weight, std=0.2)  # in place
        else:
            model.load_state_dict(recdepth.RecurrentDepthForCausalLM(config).state_dict(), assign=True)
    assert len(packed_weights(model).tensors) == sum(isinstance(m, Linear) for m in model.modules())


@needs_onednn
@pytest.mark.parametrize("shape", [(40, 24), (3, 5)], ids=str)
def test_packed_weights_follow_changes_that_no_version_counts(monkeypatch, shape):
    monkeypatch.setattr(products, "PACKED_FROM", [(0, 0)])
    layer = Linear(*shape)
    with torch.inference_mode(), packed_products(layer):
        pass
    for change in (
        lambda w: torch.optim.AdamW([w], lr=0.1, fused=True).step(),
        lambda w: w.data.__iadd__(torch.randn(())),  # as adapters are merged
        lambda w: w.data.copy_(w.data.flip(0) * 2),
    ):
        version, before = layer.weight._version, layer.weight.detach().clone()
        layer.weight.grad = torch.randn_like(layer.weight)
        with torch.no_grad():
            change(layer.weight)
        assert layer.weight._version == version and not torch.equal(before, layer.weight)
        x = torch.randn(6, shape[0])
        with torch.inference_mode(), packed_products(layer):
            torch.testing.assert_close(products._product(x, layer.packed), x @ layer.weight.t())


@needs_onednn
def test_packing_that_is_cut_off_leaves_the_layers_to_training(monkeypatch):
    layers, pack, left = torch.nn.Sequential(Linear(8, 8), Linear(8, 8)), PackedWeights._pack, [1]

    def cut_off(self, *given):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        pack(self, *given)

    monkeypatch.setattr(PackedWeights, "_pack", cut_off)
    monkeypatch.setattr(products, "PACKED_FROM", [(0, 0)])
    with pytest.raises(KeyboardInterrupt), packed_products(layers):
        pass
    assert all(layer.packed is None for layer in layers)
    monkeypatch.undo()
    monkeypatch.setattr(products, "PACKED_FROM", [(0, 0)])
    with packed_products(layers):  # another thread trains meanwhile
        layers(torch.ones(2, 8)).sum().backward()
    assert all(layer.weight.grad is not None for layer in layers)


def test_autocast_chooses_dtypes_as_ever(monkeypatch):
    monkeypatch.setattr(products, "PACKED_FROM", [(0, 0)])
    layers = torch.nn.Sequential(Linear(8, 8), Linear(8, 4))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layers(torch.ones(2, 8))
        with packed_products(layers):
            assert torch.equal(layers(torch.ones(2, 8)), expected) and expected.dtype == torch.bfloat16


@pytest.mark.skipif(not can_compile()[0], reason="needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_products_of_ours_are_the_same_for_any_number_of_rows(dtype, two_threads):
    """Inside graphs: right, and bit for bit those of each row alone."""
    assert can_use_kernels()
    torch.manual_seed(0)
    shapes = (16, 8), (31, 130), (128, 900), (70, 1)
    weights = [torch.randn(inner, outer, dtype=dtype).t() for inner, outer in shapes]
    weights += [weight.contiguous() for weight in weights]  # as a tied embedding lies
    xs = [torch.randn(37, weight.shape[1], dtype=dtype) for weight in weights]

    def every(xs, weights):
        counts = 1, 2, 3, 4, 5, 8, 16, 19, 37
        return [[products.multiply(x[:n], w) + 0 for n in counts] for x, w in zip(xs, weights, strict=True)]

    compiled = torch.compile(every, dynamic=False, fullgraph=True, options={"cpp_wrapper": True})
    with torch.inference_mode():
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-4}.get(dtype, 0.1)
        for outs, x, weight in zip(compiled(xs, weights), xs, weights, strict=True):
            torch.testing.assert_close(outs[-1], x @ weight.t(), rtol=tolerance, atol=tolerance)
            assert all(torch.equal(out, outs[-1][: len(out)]) for out in outs)
