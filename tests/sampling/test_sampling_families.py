"""Samplers on models with shared key heads, with other norms, and without injection."""

import sys
from pathlib import Path

import pytest
import torch

from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.models.layers import attend
from recdepth.sampling import Adaptive, Autoregressive, DiffusionForcing, Exact, Speculative, capabilities

sys.path.insert(0, str(Path(__file__).parent))
from test_sampling_compiled import as_if_compiled

KINDS = {
    "llama": {"norm_placement": "pre", "rope_style": "half", "state_norm": "none"},
    "ouro": {
        "norm_placement": "inner_sandwich",
        "rope_style": "half",
        "state_norm": "every",
        "injection": "none",
        "embedding_scale": 1.0,
        "prelude_layers": 0,
        "coda_layers": 0,
        "kv_sharing_safe": False,
    },
}
PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5, 8], [7]]


def build(kind, **changes):
    torch.manual_seed(3)
    settings = {"vocab_size": 11, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings |= {"qk_bias": False, "max_position_embeddings": 64, **KINDS[kind], **changes}
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(**settings)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


kinds = pytest.mark.parametrize("kind", KINDS)


def parallel(model, prompt, r, new, seed=0):
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            tokens.append(int(model(torch.tensor([tokens]), num_steps=r, seed=seed).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@kinds
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("r", [1, 4])
def test_lossless_samplers_equal_the_parallel_forward(kind, compiled, r):
    model = build(kind)
    expected = [parallel(model, PROMPTS[0], r, 12)]
    call = {"max_new_tokens": 12}
    with as_if_compiled():
        for sampler in (
            Autoregressive(num_steps=r, compile=compiled),
            Exact(num_steps=r, max_wavefront=5, compile=compiled),
            Exact(num_steps=r, inner_steps=r, headway=2, max_wavefront=8, prefill_steps=0, compile=compiled),
            Speculative(num_steps=r, draft_tokens=4, compile=compiled),
        ):
            assert sampler(model, PROMPTS[:1], **call).tokens == expected
            together, alone = sampler(model, PROMPTS, **call).tokens, [None] * 3
            for row, prompt in enumerate(PROMPTS):
                alone[row] = sampler(model, [prompt], rows=[row], **call).tokens[0]
            assert together == alone


@kinds
def test_per_lane_attention_shares_key_heads_compiled_as_well(kind):
    model = build(kind)
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 3, 2, 6, 8)
    v = torch.randn_like(k)
    span = model.span(torch.tensor([[2, 3, 4], [1, 2, 5]]), model.new_cache(2, 8))
    expected = torch.stack([attend(q[:, :, i : i + 1], k[:, i], v[:, i], lane(span, i))[:, 0] for i in range(3)], 1)
    torch.testing.assert_close(attend(q, k, v, span), expected)
    compiled = torch.compile(attend, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(q, k, v, span), expected)


def lane(span, i):
    return type(span)(span.positions[:, i : i + 1], span.rotary, span.mask[:, :, i : i + 1], False, None, 6)


def test_a_sampler_says_what_the_model_lacks():
    model = build("ouro")
    assert capabilities(model.config) == {
        "injection": False,
        "decodable_at_depth": True,
        "kv_sharing_safe": False,
    }
    call = {"max_new_tokens": 4}
    for sampler, told in (
        (DiffusionForcing(num_steps=4), r"(?s)injection is missing.*sampler=exact.*kv_sharing_safe.*allow_unsupported"),
        (DiffusionForcing(num_steps=4, kv="per_depth", on_flip="reset"), "diffusion_forcing.*\n.*injection is missing"),
        (Adaptive(num_steps=4), "kv_sharing_safe is missing.*set kv=per_depth"),
        (Autoregressive(num_steps=4, kv="shared"), "kv_sharing_safe is missing"),
        (Exact(num_steps=4, init_scale=0.5), "init_scale=0.5 has no effect"),
    ):
        with pytest.raises(ValueError, match=told):
            sampler(model, PROMPTS, **call)
    allowed = DiffusionForcing(num_steps=4, max_wavefront=6, allow_unsupported=True)(model, PROMPTS, **call)
    assert [len(tokens) for tokens in allowed.tokens] == [4, 4, 4]
    assert Adaptive(num_steps=4, kv="per_depth", exit_threshold=0.0)(model, PROMPTS, **call).tokens == (
        Autoregressive(num_steps=4)(model, PROMPTS, **call).tokens
    )
    with pytest.raises(ValueError, match="decodable_at_depth is missing"):
        Adaptive(num_steps=4)(build("llama", decodable_at_depth=False), PROMPTS, **call)


def test_diffusion_forcing_runs_on_a_retrofitted_llama():
    model = build("llama")
    result = DiffusionForcing(num_steps=4, inner_steps=4, max_wavefront=1)(model, PROMPTS, max_new_tokens=8)
    assert result.tokens == Autoregressive(num_steps=4, kv="shared")(model, PROMPTS, max_new_tokens=8).tokens


def test_gradients_reach_everything_without_injection():
    model = build("ouro").train()
    ids = torch.randint(0, 11, (2, 7))
    model(ids, num_steps=3, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
