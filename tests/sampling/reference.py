"""The sampler of docs/sampler.md written for a reader: one row, one lane at a time, everything kept per position."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recdepth.models.randomness import STEP_NOISE, truncated_normal
from recdepth.sampling import NOISE_SCHEDULES, DiffusionForcing, TokenChooser


def reference_sample(sampler: DiffusionForcing, model, prompt: list[int], max_new_tokens, stop_tokens, choose, row=0):
    """New tokens and the residuals of each step, for kv=shared."""
    r, config = sampler.num_steps, model.config
    y, state, mixed, depth, age = list(prompt), {}, {}, {}, {}
    cache = model.new_cache(1, config.max_position_embeddings, "shared")
    streams = torch.tensor([row])
    last = len(prompt) + max_new_tokens - 1
    residuals: list[dict[int, float]] = []

    def noise(p: int) -> Tensor:
        empty = torch.zeros(1, 1, config.hidden_size, dtype=model.dtype)
        return model.initial_state(empty, streams, torch.tensor([[p]]), choose.seed, sampler.init_scale)[0, 0]

    def together(values: dict[int, Tensor], lanes: list[int]) -> Tensor:
        return torch.stack([values[p] for p in lanes])[None]

    def read(states: Tensor, lanes: list[int]) -> list[int]:
        positions = torch.tensor([lanes])
        return choose(model.decode(states, cache, positions), streams, positions + 1)[0].tolist()

    def embed(lanes: list[int]) -> Tensor:
        return model.embed(torch.tensor([[y[p] for p in lanes]]), cache, torch.tensor([lanes]))

    lanes = list(range(len(prompt)))
    steps = r if sampler.prefill_steps is None else sampler.prefill_steps
    if steps:
        e, s = embed(lanes), torch.stack([noise(p) for p in lanes])[None]
        for _ in range(steps):
            s = model.recur(e, s, cache, torch.tensor([lanes]), 0)
        y.append(read(s, lanes)[-1])
        front, lanes = len(prompt), [len(prompt)]
        if y[front] in stop_tokens or front >= last:
            return y[len(prompt) :], residuals
    else:  # the tokens of the first further lanes are all looked up
        front, followed = 0, what_followed(y)
        more = max(0, min(sampler.headway - 1, sampler.max_wavefront - len(lanes), last - len(lanes)))
        y += [followed[i % len(followed)] for i in range(more)]
        lanes = list(range(len(lanes) + more))
    for p in lanes:
        state[p], depth[p], age[p] = noise(p), 0, 0

    while True:
        raw = embed(lanes)[0]
        for i, p in enumerate(lanes):
            mixed[p] = raw[i] if age[p] == 0 else sampler.momentum * mixed[p] + (1 - sampler.momentum) * raw[i]
        before = dict(state)
        for p in lanes:
            if sampler.noise:
                beta = float(NOISE_SCHEDULES[sampler.noise_schedule](sampler.noise, np.array(age[p]), r))
                keys = (torch.tensor(row), torch.tensor(p), torch.tensor(age[p]))
                z = truncated_normal(choose.seed, STEP_NOISE, *keys, count=config.hidden_size)
                z = z * (config.embedding_scale * (2 / (5 * config.hidden_size)) ** 0.5)
                state[p] = (1 - beta) * state[p] + beta * z.to(model.dtype)
        n = min(sampler.inner_steps, r - depth[front])
        s = together(state, lanes)
        for _ in range(n):
            s = model.recur(together(mixed, lanes), s, cache, torch.tensor([lanes]), 0)
        proposals = read(s, lanes)
        flipped, moved = set(), {}
        for i, p in enumerate(lanes):
            state[p] = s[0, i]
            depth[p] += n
            age[p] += n
            moved[p] = float((state[p] - before[p]).norm() / state[p].norm())
            behind = p + 1
            if behind < len(prompt):
                continue
            if behind in lanes and proposals[i] != y[behind]:
                flipped.add(behind)
            y[behind:] = [proposals[i], *y[behind + 1 :]]
        residuals.append(moved)
        reached = dict(depth)
        for p in lanes:
            if any(f <= p for f in flipped):
                depth[p] = 0
                if sampler.on_flip == "reset":
                    state[p], age[p] = noise(p), 0
                if sampler.on_flip == "renoise":
                    state[p] = (1 - sampler.renoise) * state[p] + sampler.renoise * noise(p)
        for p in list(lanes):
            done = reached[p] >= r or (sampler.commit == "latent_diff" and moved[p] < sampler.exit_threshold)
            if p in flipped or not done:
                break
            front, lanes = p + 1, lanes[1:]
            if front >= len(prompt) and (y[front] in stop_tokens or front >= last):
                return y[len(prompt) : front + 1], residuals
        opened = 0
        while opened < sampler.headway and len(lanes) < sampler.max_wavefront and front + len(lanes) < last:
            new = front + len(lanes)
            if opened == 0:  # proposed by the lane before it
                y, followed = y[: new + 1], what_followed(y[: new + 1])
            else:
                y.append(followed[(opened - 1) % len(followed)])
            opened += 1
            lanes.append(new)
            state[new], depth[new], age[new] = noise(new), 0, 0


def what_followed(y: list[int]) -> list[int]:
    """What followed the last time that the two last tokens, else the last one, occurred; else the last one."""
    best = max(
        ((i > 0 and y[i - 1] == y[-2], i) for i in range(len(y) - 1) if y[i] == y[-1]),
        default=(False, len(y) - 2),
    )
    return y[best[1] + 1 :]


def chooser(call: dict) -> TokenChooser:
    """The token chooser of a call."""
    return TokenChooser(**{k: call[k] for k in ("temperature", "top_k", "top_p", "min_p", "seed") if k in call})
