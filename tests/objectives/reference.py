"""One window at a time, one lane after the other in plain Python: what the terms compute, for a reader."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Notebook:
    """A differentiable cache: what each position wrote last, by layer."""

    def __init__(self):
        self.pages: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}

    def prelude_slot(self, layer):
        return layer

    def core_slot(self, layer, depth):
        return 100 + layer

    def coda_slot(self, layer):
        return 200 + layer

    def update(self, slot, keys, values, span):
        page = self.pages.setdefault(slot, {})
        for i, p in enumerate(span.positions[0].tolist()):
            page[p] = (keys[:, :, i], values[:, :, i])
        known = [page.get(p, page[min(page)]) for p in range(span.length)]  # unknown ones are masked: later positions
        return torch.stack([k for k, _ in known], 2), torch.stack([v for _, v in known], 2)


def window_loss(
    model,
    ids,
    labels,
    front,
    opens,
    recurrences,
    seed,
    row=0,
    drafting=False,
    keep=1 << 30,
    deep_keep=1 << 30,
    depth=None,
):
    """Losses and logits of one window of one row, inner_steps 1: {lane: (loss or None, logits)}.

    Args:
        ids, labels: lists, one row.
        opens: step at which each lane opens.
        keep: steps at the end that gradients flow through; ``deep_keep`` likewise for the text before.
        depth: recurrences of the text before; None for as many as the window gets.
    """
    cache, before = Notebook(), torch.tensor([list(range(front))])
    text = list(ids)

    def noise(positions):
        empty = torch.zeros(1, positions.shape[1], model.config.hidden_size, dtype=model.dtype)
        return model.initial_state(empty, torch.tensor([row]), positions, seed)

    if front:
        depth = depth or recurrences
        e, s = model.embed(torch.tensor([text[:front]]), cache, before), noise(before)
        for step in range(depth):
            s = s.detach() if step == max(0, depth - deep_keep) else s
            s = model.recur(e, s, cache, before, 0)
        model.decode(s, cache, before)

    state: dict[int, Tensor] = {}
    first_kept = max(0, recurrences - keep)
    for step in range(recurrences):
        lanes = [j for j, at in enumerate(opens) if at <= step and front + j < len(ids)]
        positions = torch.tensor([[front + j for j in lanes]])
        for j in lanes:
            if j not in state:
                state[j] = noise(torch.tensor([[front + j]]))[0, 0]
        if step == first_kept:
            state = {j: s.detach() for j, s in state.items()}
        with torch.set_grad_enabled(step >= first_kept):
            e = model.embed(torch.tensor([[text[front + j] for j in lanes]]), cache, positions)
            s = model.recur(e, torch.stack([state[j] for j in lanes])[None], cache, positions, 0)
            logits = model.decode(s, cache, positions)
        for i, j in enumerate(lanes):
            state[j] = s[0, i]
            if drafting and step < recurrences - 1 and front + j + 1 < len(ids):
                text[front + j + 1] = int(logits[0, i].argmax())
    found = {}
    for i, j in enumerate(lanes):
        target = labels[front + j + 1] if front + j + 1 < len(labels) else -100
        loss = None if target == -100 else F.cross_entropy(logits[0, i], torch.tensor(target))
        found[j] = (loss, logits[0, i])
    return found
