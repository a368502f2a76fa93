"""The model's seams: padding, caches, randomness, truncated gradients."""

import pytest
import torch

from recdepth.models import Flight, KVCache, RecurrentDepthConfig, RecurrentDepthForCausalLM, sample_depth
from recdepth.models.randomness import STATE, gumbel, truncated_normal, uniform


def build(**settings):
    defaults = {"vocab_size": 23, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 48}
    return RecurrentDepthForCausalLM(RecurrentDepthConfig(**(defaults | settings))).double().eval()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_the_rows_alone(side):
    model, lengths = build(), [9, 4, 7]
    ids = torch.randint(0, 23, (3, 9))
    count = torch.arange(9)
    mask = torch.stack([(count >= 9 - n) if side == "left" else (count < n) for n in lengths]).long()
    noise = torch.randn(3, 9, 16, dtype=torch.float64)
    batch = model(ids, num_steps=5, attention_mask=mask, initial_state=noise).logits
    assert torch.isfinite(batch).all()
    for row, keep in enumerate(mask.bool()):
        alone = model(ids[row : row + 1, keep], num_steps=5, initial_state=noise[row : row + 1, keep]).logits
        torch.testing.assert_close(batch[row, keep], alone[0])


@pytest.mark.parametrize("tensor_positions", [False, True])
def test_decoding_through_a_per_depth_cache_equals_the_parallel_forward(tensor_positions):
    model, r = build(prelude_layers=2, coda_layers=2), 4
    ids = torch.randint(0, 23, (2, 8))
    noise = torch.randn(2, 8, 16, dtype=torch.float64)
    parallel = model(ids, num_steps=r, initial_state=noise).logits
    cache = model.new_cache(2, 8, "per_depth", r)
    for begin, end in ((0, 3), (3, 4), (4, 5), (5, 8)):
        positions = torch.arange(begin, end).expand(2, -1)
        span = positions if tensor_positions else model.span(positions, cache, start=begin)
        e, s = model.embed(ids[:, begin:end], cache, span), noise[:, begin:end]
        for depth in range(r):
            s = model.recur(e, s, cache, span, depth)
        torch.testing.assert_close(model.decode(s, cache, span), parallel[:, begin:end])


@pytest.mark.parametrize("kind", ["tensor", "flight", "flights"])
def test_lanes_at_different_depths_read_the_slots_of_their_own_recurrence(kind):
    model, r = build(), 3
    ids = torch.randint(0, 23, (1, 6))
    noise = torch.randn(1, 6, 16, dtype=torch.float64)
    parallel = model(ids, num_steps=r, initial_state=noise).logits
    cache = model.new_cache(1, 6, "per_depth", r)
    states, depth = noise.clone(), torch.zeros(1, 6, dtype=torch.long)
    for tick in range(6 + r - 1):  # a staircase: position p starts at tick p
        lanes = [p for p in range(6) if 0 <= tick - p < r]
        span = model.span(torch.tensor([lanes]), cache, start=lanes[0])
        e = model.embed(ids[:, lanes], cache, span)
        own = {
            "tensor": depth[:, lanes],
            "flight": (Flight(0, len(lanes), range(tick - lanes[0], tick - lanes[-1] - 1, -1)),),
            "flights": tuple(Flight(i, i + 1, tick - p) for i, p in enumerate(lanes)),
        }[kind]
        states[:, lanes] = model.recur(e, states[:, lanes], cache, span, own)
        depth[:, lanes] += 1
    torch.testing.assert_close(model.decode(states, cache, torch.arange(6)[None]), parallel)


def test_slots_never_written_read_as_the_deepest_one():
    config = RecurrentDepthConfig(hidden_size=8, num_attention_heads=2, core_layers=2)
    cache = KVCache(config, batch=2, capacity=4, kv="per_depth", num_steps=3)
    cache.keys.normal_()
    cache.values.normal_()
    before = cache.keys.clone()
    cache.settle(torch.tensor([1]), torch.tensor([2]), torch.tensor([2]))
    for layer in range(2):
        first, second, third = (cache.core_slot(layer, d) for d in range(3))
        assert torch.equal(cache.keys[third, 1, :, 2], before[second, 1, :, 2])
        assert torch.equal(cache.keys[[first, second]], before[[first, second]])
    assert torch.equal(cache.keys[:, 0], before[:, 0])


def test_positions_of_one_depth_are_settled_alike_by_index_and_by_slice():
    config = RecurrentDepthConfig(hidden_size=8, num_attention_heads=2, core_layers=2)
    caches = [KVCache(config, batch=1, capacity=6, kv="per_depth", num_steps=4) for _ in range(3)]
    keys, values = torch.randn_like(caches[0].keys), torch.randn_like(caches[0].values)
    rows, positions = torch.zeros(3, dtype=torch.long), torch.tensor([2, 3, 4])
    ways = [(rows, positions, torch.full((3,), 2)), (rows, positions, 2), (slice(None), slice(2, 5), 2)]
    for cache, way in zip(caches, ways, strict=True):
        cache.keys.copy_(keys)
        cache.values.copy_(values)
        cache.settle(*way)
    assert not torch.equal(caches[0].keys, keys)
    for cache in caches[1:]:
        assert torch.equal(cache.keys, caches[0].keys) and torch.equal(cache.values, caches[0].values)


def test_memory_of_the_cache_is_what_its_shape_says():
    config = RecurrentDepthConfig(hidden_size=16, num_attention_heads=2, prelude_layers=1, core_layers=3, coda_layers=2)

    def size(kv, r):
        return KVCache(config, batch=2, capacity=10, kv=kv, num_steps=r, dtype=torch.float32).nbytes

    per_slot = 2 * 2 * 11 * 16 * 4  # keys and values, rows, positions and the spare one, width, bytes
    assert size("shared", 1) == size("shared", 32) == (1 + 3 + 2) * per_slot
    assert size("per_depth", 7) == (1 + 3 * 7 + 2) * per_slot


def test_a_cache_too_shallow_says_so():
    model = build()
    cache = model.new_cache(1, 4, "per_depth", 2)
    e = model.embed(torch.tensor([[1]]), cache, torch.tensor([[0]]))
    with pytest.raises(ValueError, match="num_steps=3, not 2"):
        model.recur(e, e, cache, torch.tensor([[0]]), 2)


def test_state_noise_is_a_function_of_seed_row_and_position():
    model = build()
    e = torch.zeros(3, 5, 16, dtype=torch.float64)
    positions = torch.arange(5).expand(3, -1)
    noise = model.initial_state(e, torch.tensor([0, 7, 2]), positions, seed=3)
    part = model.initial_state(e[:1, :2], torch.tensor([7]), torch.tensor([[4, 1]]), seed=3)
    assert torch.equal(part[0], noise[1, [4, 1]])
    assert not torch.isclose(noise, model.initial_state(e, torch.tensor([0, 7, 2]), positions, seed=4)).any()
    assert len(noise.flatten(0, 1).unique(dim=0)) == 15
    assert model.initial_state(e, None, positions, seed=None).shape == e.shape
    assert (model.initial_state(e, None, positions, seed=3, scale=0.0) == 0).all()


def test_the_noise_has_the_stated_distribution():
    rows, positions = torch.arange(40)[:, None], torch.arange(50)[None]
    u = uniform(1, STATE, rows, positions, count=16)
    assert ((u > 0) & (u < 1)).all()
    assert abs(u.mean() - 0.5) < 0.01
    assert abs(u.var() - 1 / 12) < 0.002
    flat = u.flatten(0, 1).T.corrcoef() - torch.eye(16)
    assert flat.abs().max() < 0.1
    z = truncated_normal(2, STATE, rows, positions, count=16)
    assert z.abs().max() <= 3
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 0.9866) < 0.01  # a normal cut at ±3
    g = gumbel(3, STATE, rows, positions, count=16)
    assert abs(g.mean() - 0.5772) < 0.03
    model = build(hidden_size=64)
    s = model.initial_state(torch.zeros(4, 40, 64), torch.arange(4), torch.arange(40).expand(4, -1), seed=0)
    assert abs(s.std() - 0.9866 * (2 / 5) ** 0.5) < 0.01


def test_gradients_flow_through_the_last_recurrences_only():
    model = build().train()
    ids = torch.randint(0, 23, (2, 6))
    noise = torch.randn(2, 6, 16, dtype=torch.float64)

    def gradient(**settings):
        model.zero_grad()
        model(ids, initial_state=noise, labels=ids, **settings).loss.backward()
        return model.core[0].attn.qkv.weight.grad.clone()

    full = gradient(num_steps=5)
    assert torch.equal(gradient(num_steps=5, backprop_depth=5), full)
    assert torch.equal(gradient(num_steps=5, backprop_depth=9), full)
    torch.testing.assert_close(gradient(num_steps=5, checkpoint_recurrences=True), full)
    truncated = gradient(num_steps=5, backprop_depth=2)
    assert not torch.allclose(truncated, full)
    with torch.no_grad():  # the first three recurrences by hand, then two with gradients
        positions = torch.arange(6).expand(2, -1)
        s = noise
        for _ in range(3):
            s = model.recur(model.embed(ids, None, positions), s, None, positions, 0)
    model.zero_grad()
    model(ids, num_steps=2, initial_state=s, labels=ids).loss.backward()
    torch.testing.assert_close(model.core[0].attn.qkv.weight.grad, truncated)


def test_labels_are_shifted_and_minus_100_is_ignored():
    model = build()
    ids = torch.randint(0, 23, (1, 6))
    labels = ids.clone()
    labels[:, :4] = -100
    out = model(ids, num_steps=2, labels=labels, seed=0)
    log_probabilities = out.logits.log_softmax(-1)
    by_hand = -(log_probabilities[0, 3, ids[0, 4]] + log_probabilities[0, 4, ids[0, 5]]) / 2
    torch.testing.assert_close(out.loss, by_hand)


def test_training_depth_has_the_stated_mean_and_can_be_seeded():
    generator = torch.Generator().manual_seed(0)
    depths = [sample_depth(8, generator) for _ in range(4000)]
    assert min(depths) >= 1
    assert abs(sum(depths) / len(depths) - 9) < 0.25  # mean of the rate plus one
    assert sample_depth(8, torch.Generator().manual_seed(1)) == sample_depth(8, torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="mean_recurrence=0"):
        sample_depth(0)


def test_bad_calls_of_forward():
    model = build()
    with pytest.raises(ValueError, match="num_steps=0"):
        model(torch.zeros(1, 3, dtype=torch.long), num_steps=0)
    with pytest.raises(ValueError, match="max_position_embeddings=48"):
        model(torch.zeros(1, 49, dtype=torch.long))
    with pytest.raises(ValueError, match="49 tokens exceed the context"):
        model(torch.zeros(1, 60, dtype=torch.long), attention_mask=(torch.arange(60) >= 11).long()[None])


def test_bfloat16_stays_close_and_gives_float32_logits():
    model = build(hidden_size=32).float()
    ids = torch.randint(0, 23, (2, 10))
    exact = model(ids, num_steps=4, seed=0).logits
    rough = model.to(torch.bfloat16)(ids, num_steps=4, seed=0).logits
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 0.05
