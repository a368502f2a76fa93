"""Self-speculative decoding: a shallow draft of some tokens, then one parallel verification at full depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .front import LaneInts, Lanes
from .wavefront import Place, Wavefront


class Speculation(Wavefront):
    """Rounds of drafting and verifying, on the wavefront's buffers and bookkeeping.

    A round drafts the next tokens one after the other with ``draft_depth`` recurrences each, then takes all these lanes
    from ``draft_depth`` to ``num_steps`` recurrences at once, and commits those whose inputs turn out right. A lane's
    draft recurrences are the first of its full ones (per-depth keys, the same initial state), so none is repeated, and
    the text is that of autoregressive decoding.

    Args:
        draft_depth: recurrences of a drafted token.
        wavefront: as for :class:`Wavefront`; the policy has per-depth keys and ``max_wavefront`` tokens per draft.
    """

    def __init__(self, *wavefront: Any, draft_depth: int):
        super().__init__(*wavefront)
        self.draft_depth = draft_depth

    def step(self, number: int) -> None:
        """One round: draft, verify, commit."""
        self.front.reopen()
        lanes = self.front.lanes()
        place, span = self._locate(lanes)
        drafts = self._draft(lanes, place)
        e, s = place.read(self.embedded), place.read(self.states)
        for depth in range(self.draft_depth, self.policy.num_steps):
            s = self._count(self.seams.recur(e, s, self.cache, span, depth), lanes.active)
        proposals = self.choose(self.seams.decode(s, self.cache, span), self._streams, span.positions + 1)
        self.stats.readouts += int(lanes.active.sum())
        both = torch.stack([drafts, proposals[:, : lanes.width]]).cpu().numpy()
        tokens = self.front.take_drafts(lanes, both[0])
        outcome = self.front.advance(lanes, both[1], np.False_)
        self._treat_flips(lanes, outcome, place)
        self._settle(lanes, outcome)
        if self.tracer is not None:
            self._record(number, lanes, tokens, both[1], None, outcome)

    def _draft(self, lanes: Lanes, place: Place) -> Tensor:
        """Draft lane by lane, all rows at once; the tokens stay on the device.

        Returns:
            [batch, lanes], the token that each lane proposes for the next position (the last lane is not read out).
        """
        rows = np.arange(len(lanes.active))
        token = self._upload(self.front.tokens[rows, lanes.positions[:, 0]])[:, None]
        drafts = []
        for i in range(lanes.width):
            lane = place.part(i, i + 1)
            span = self._span(lane, int(lanes.positions[:, i].max()) + 1)
            e = self.seams.embed(token, self.cache, span)
            s = lane.read(self.fresh_states)
            for depth in range(self.draft_depth):
                s = self._count(self.seams.recur(e, s, self.cache, span, depth), lanes.active[:, i : i + 1])
            lane.write(self.embedded, e)
            lane.write(self.states, s)
            if i + 1 < lanes.width:  # what the last lane says is known after the verification
                token = self.choose(self.seams.decode(s, self.cache, span), self._streams, span.positions + 1)
                self.stats.readouts += int(lanes.active[:, i].sum())
            drafts.append(token)
        return torch.cat(drafts, dim=1)

    def _count(self, s: Tensor, active: LaneInts) -> Tensor:
        self.stats.core_passes += 1
        self.stats.token_passes += int(active.sum())
        return s
