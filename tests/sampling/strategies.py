"""Random models, prompts and settings for property tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache

import torch
from hypothesis import strategies as st

from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM

#: RECDEPTH_DTYPE=float32 for a run by hand: models that contract only, since others amplify its rounding.
DTYPE = getattr(torch, os.environ.get("RECDEPTH_DTYPE", "float64"))


@lru_cache(maxsize=64)
def tiny_model(
    seed: int, vocab: int, layers: tuple[int, int, int], gain: float, hold: float = 1.0
) -> RecurrentDepthForCausalLM:
    """A random model, float64 unless told otherwise.

    A large gain on the core's weights makes one that amplifies differences; one that holds little of its state comes to
    a fixed point within some recurrences.
    """
    torch.manual_seed(seed)
    config = RecurrentDepthConfig(
        vocab_size=vocab,
        hidden_size=8,
        num_attention_heads=2,
        intermediate_size=12,
        prelude_layers=layers[0],
        core_layers=layers[1],
        coda_layers=layers[2],
        max_position_embeddings=40,
    )
    model = RecurrentDepthForCausalLM(config).to(DTYPE).eval()
    with torch.no_grad():
        for block in model.core:
            for weight in (block.attn.qkv.weight, block.attn.proj.weight, block.mlp.fc.weight, block.mlp.proj.weight):
                weight *= gain
        assert model.injection is not None
        model.injection.weight[:, : config.hidden_size] *= hold
        for parameter in model.parameters():
            if parameter.ndim != 2:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def chaotic(model: RecurrentDepthForCausalLM, text: Callable[[RecurrentDepthForCausalLM], object]) -> bool:
    """Whether rounding alone changes a text: weights that differ in their last bits give another one."""
    expected = text(model)
    for seed in range(3):
        torch.manual_seed(seed)
        other = deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter *= 1 + 4 * torch.finfo(parameter.dtype).eps * torch.randn_like(parameter)
        if text(other) != expected:
            return True
    return False


TAME, ALL = (0.5, 1.0), (0.5, 1.0, 6.0)


def models(gains: tuple[float, ...] = ALL) -> st.SearchStrategy[RecurrentDepthForCausalLM]:
    """Models of several shapes."""
    gains = gains if torch.float64 == DTYPE else TAME
    return st.builds(
        tiny_model,
        seed=st.integers(0, 7),
        vocab=st.sampled_from([3, 11, 29]),
        layers=st.sampled_from([(1, 2, 1), (0, 1, 0), (2, 1, 2)]),
        gain=st.sampled_from(gains),
        hold=st.sampled_from([1.0, 1.0, 0.03]),
    )


@st.composite
def cases(draw, max_rows: int = 1, gains: tuple[float, ...] = ALL):
    """(model, prompts, call settings)."""
    model = draw(models(gains))
    vocab = model.config.vocab_size
    prompts = draw(st.lists(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=7), min_size=1, max_size=max_rows))
    temperature = draw(st.sampled_from([0.0, 0.0, 0.7, 1.5]))
    call = {
        "max_new_tokens": draw(st.integers(0, 12)),
        "stop_tokens": draw(st.lists(st.integers(0, vocab - 1), max_size=1)),
        "temperature": temperature,
        "seed": draw(st.integers(0, 2**63)),
    }
    if temperature:
        call |= draw(st.sampled_from([{}, {"top_k": 2}, {"top_p": 0.8}, {"min_p": 0.1}]))
    return model, prompts, call


depths = st.integers(1, 8)
COMMITS = ("latent_diff", "depth", "cosine", "entropy_diff", "kl", "argmax_stability")


@st.composite
def diffusion_settings(draw, commits=COMMITS, **fixed):
    """Settings of DiffusionForcing, prefill on."""
    r = draw(depths)
    settings = {
        "num_steps": r,
        "inner_steps": draw(st.integers(1, r)),
        "exit_threshold": draw(st.sampled_from([0.0, 0.05, 0.3, 1.0])),
        "momentum": draw(st.sampled_from([0.0, 0.1, 0.6])),
        "noise": draw(st.sampled_from([0.0, 0.0, 0.2])),
        "noise_schedule": draw(st.sampled_from(["inverse", "linear", "constant"])),
        "headway": draw(st.integers(1, 3)),
        "max_wavefront": draw(st.integers(1, 9)),
        "kv": draw(st.sampled_from(["shared", "per_depth"])),
        "on_flip": draw(st.sampled_from(["keep", "renoise", "reset"])),
        "renoise": draw(st.sampled_from([0.5, 0.2])),
        "commit": draw(st.sampled_from(commits)),
        "prefill_steps": draw(st.sampled_from([None, None, 1])),
        "init_scale": draw(st.sampled_from([1.0, 0.0])),
    }
    settings |= fixed
    if settings["commit"] == "depth":
        settings["exit_threshold"] = None
    elif settings["commit"] == "argmax_stability":
        settings["exit_threshold"] = draw(st.sampled_from([1.0, 0.5, 0.3]))
    return settings
