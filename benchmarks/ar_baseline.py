"""Is the autoregressive baseline honest? Its time per token against bare core passes.

    python benchmarks/ar_baseline.py [--model RUN/model] [--num-steps 32] [--limit 1.25]

A token of the autoregressive sampler should cost one embed, r core passes at width 1 and one decode, and little else:
a slow baseline would make every speed-up over it look good. Both are timed in one process, in turn, over the same
positions with the cache filled to the same length. Exits with 1 if the median ratio exceeds the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch

import recdepth
from recdepth.evaluation import machine_stamp
from recdepth.models import KVCache, RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.models.products import packed_products
from recdepth.sampling import Autoregressive


def random_model() -> RecurrentDepthForCausalLM:
    """A small model of the quickstart's size with random weights."""
    torch.manual_seed(0)
    return RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=128, hidden_size=128, num_attention_heads=4))


def sampler_seconds(
    model: RecurrentDepthForCausalLM, sampler: Autoregressive, prompt: list[int], new_tokens: int
) -> float:
    """Seconds per decoded token of the sampler; the first token comes from the prefill and is left out."""
    stats = sampler(model, [prompt], max_new_tokens=new_tokens).stats
    assert stats.core_passes == sampler.num_steps * (new_tokens - 1)
    return stats.decode_seconds / (new_tokens - 1)


@torch.inference_mode()
def bare_seconds(
    model: RecurrentDepthForCausalLM, sampler: Autoregressive, prompt: list[int], new_tokens: int
) -> float:
    """Seconds per token of one embed, r core passes and one decode, and nothing else, over the same positions."""
    cache = model.new_cache(1, len(prompt) + new_tokens, sampler.kv, sampler.num_steps)
    _fill(model, cache, prompt, sampler.num_steps)
    places = range(len(prompt), len(prompt) + new_tokens - 1)
    spans = [model.span(torch.tensor([[t]], device=model.device), cache, start=t, length=t + 1) for t in places]
    token = torch.tensor([[prompt[-1]]], device=model.device)
    noise = model.initial_state(model.embed(token, cache, spans[0]), torch.zeros(1).long(), token, seed=0)
    with packed_products(model):  # as samplers have them
        _wait(model)
        began = time.perf_counter()
        for span in spans:
            e, s = model.embed(token, cache, span), noise
            for depth in range(sampler.num_steps):
                s = model.recur(e, s, cache, span, depth)
            model.decode(s, cache, span)
        _wait(model)
        return (time.perf_counter() - began) / len(spans)


def _fill(model: RecurrentDepthForCausalLM, cache: KVCache, prompt: list[int], num_steps: int) -> None:
    ids = torch.tensor([prompt], device=model.device)
    positions = torch.arange(len(prompt), device=model.device)[None]
    span = model.span(positions, cache, start=0, length=len(prompt))
    e = model.embed(ids, cache, span)
    s = model.initial_state(e, torch.zeros(1, device=model.device).long(), positions, seed=0)
    for depth in range(num_steps):
        s = model.recur(e, s, cache, span, depth)
    model.decode(s, cache, span)


def _wait(model: RecurrentDepthForCausalLM) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="path or hub id; default: random weights of the quickstart's size")
    parser.add_argument("--num-steps", type=int, default=32, help="recurrences r per token")
    parser.add_argument("--prompt-length", type=int, default=32, help="tokens")
    parser.add_argument("--new-tokens", type=int, default=33, help="tokens, at least 2")
    parser.add_argument("--repeats", type=int, default=9, help="times each, in turn")
    parser.add_argument("--threads", type=int, help="torch threads; default: torch's own choice")
    parser.add_argument("--limit", type=float, default=1.25, help="largest acceptable ratio")
    args = parser.parse_args()
    if args.new_tokens < 2 or args.repeats < 1:
        parser.error("--new-tokens must be at least 2 and --repeats at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    model = (recdepth.load_model(args.model) if args.model else random_model()).eval()
    sampler = Autoregressive(num_steps=args.num_steps)
    prompt = [i % model.config.vocab_size for i in range(args.prompt_length)]

    sampled, bare = [], []
    for repeat in range(-1, args.repeats):  # -1 warms up
        a = sampler_seconds(model, sampler, prompt, args.new_tokens)
        b = bare_seconds(model, sampler, prompt, args.new_tokens)
        if repeat >= 0:
            sampled.append(a)
            bare.append(b)
    ratio = statistics.median(a / b for a, b in zip(sampled, bare, strict=True))
    result = {
        "mode": "eager",
        "num_steps": args.num_steps,
        "sampler_ms_per_token": round(1e3 * statistics.median(sampled), 4),
        "bare_ms_per_token": round(1e3 * statistics.median(bare), 4),
        "ratio": round(ratio, 4),
        "limit": args.limit,
        "repeats": args.repeats,
        "machine": machine_stamp(model),
    }
    print(json.dumps(result, indent=2))
    print("within the limit" if ratio <= args.limit else "over the limit")
    return int(ratio > args.limit)


if __name__ == "__main__":
    sys.exit(main())
