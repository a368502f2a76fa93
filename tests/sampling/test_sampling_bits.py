"""Compiled for a CPU, float32 passes have the same bits at any width: lossless texts do not hang on rounding."""

import pytest
import torch
import torch._inductor.config

from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM, can_compile, sampling_seams
from recdepth.models.kernels import can_use_kernels
from recdepth.sampling import Autoregressive, DiffusionForcing, Exact, Speculative
from recdepth.sampling.spare import _spare

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_compile()[0], reason=can_compile()[1])]


def large_weights(layers: int) -> RecurrentDepthForCausalLM:
    """A model whose recurrences do not contract."""
    torch.manual_seed(0)
    config = {"vocab_size": 29, "hidden_size": 32, "num_attention_heads": 2, "prelude_layers": layers, "core_layers": 1}
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(**config, coda_layers=layers)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


@torch._inductor.config.patch(compile_threads=1)
@torch.inference_mode()
def test_passes_are_the_same_bit_for_bit_at_any_width():
    assert can_use_kernels()
    model, count, at = large_weights(0), 16, torch.arange(16)  # the core's block is the others', too
    ids, start = torch.randint(0, 29, (1, count)), torch.randn(1, count, 32)
    seams = sampling_seams(model)

    def run(width: int, rows: int, together: int = 1) -> list[torch.Tensor]:
        cache, parts = model.new_cache(rows, 64, "per_depth", 4), []
        for begin in range(0, count, width):
            some = at[begin : begin + width]
            places = seams.span(some.expand(rows, -1), cache, length=begin + width)
            e = seams.embed(ids[:, some].expand(rows, -1), cache, places)
            s = start[:, some].expand(rows, -1, -1)
            for depth in range(0, 4, together):
                s = seams.recur(e, s, cache, places, depth, steps=together)
            parts.append((e, s, seams.decode(s, cache, places)))
        return [torch.cat(part, dim=1) for part in zip(*parts, strict=True)]

    alone = run(1, 1)
    for kind in ((4, 1), (16, 1), (1, 3), (1, 1, 4), (4, 1, 4)):  # the last two: four recurrences in one graph
        for ours, theirs in zip(run(*kind), alone, strict=True):
            assert torch.equal(ours, theirs.expand_as(ours)), kind


@torch._inductor.config.patch(compile_threads=1)
def test_lossless_samplers_give_the_text_of_autoregressive_decoding():
    model, call = large_weights(0), {"max_new_tokens": 24, "temperature": 1.0}
    prompts = [[1, 2, 3], [4, 5], [7]]
    for seed in range(4):
        reference = Autoregressive(num_steps=8, kv="per_depth", compile=True)
        one_by_one = [reference(model, [p], rows=[i], seed=seed, **call).tokens[0] for i, p in enumerate(prompts)]
        assert reference(model, prompts, seed=seed, **call).tokens == one_by_one
        for sampler in (
            Exact(num_steps=8, group=4, draft_depth=1, compile=True),
            Exact(num_steps=8, max_wavefront=4, compile=True),  # lanes at depths of their own
            Speculative(num_steps=8, draft_depth=2, draft_tokens=3, compile=True),
        ):
            for row, prompt in enumerate(prompts):
                found = sampler(model, [prompt], rows=[row], seed=seed, **call)
                assert found.tokens == [one_by_one[row]], sampler
                kept = _spare[model]  # serves the next call, which reads nothing of this one
                with torch.inference_mode():
                    kept.keys.fill_(torch.nan)
                    kept.values.fill_(torch.nan)
        shared = Autoregressive(num_steps=8, kv="shared", compile=True)(model, prompts, seed=seed, **call)
        wave = DiffusionForcing(
            num_steps=8, inner_steps=8, max_wavefront=1, momentum=0.0, noise=0.0, commit="depth", compile=True
        )
        assert wave(model, prompts, seed=seed, **call).tokens == shared.tokens
