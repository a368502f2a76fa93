"""Self-speculative decoding: a shallow draft of some tokens, then one parallel verification at full depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recdepth.models import Places, Span

from .front import LaneInts, Lanes, Rows
from .wavefront import Place, Wavefront


class Speculation(Wavefront):
    """Rounds of drafting and verifying, on the wavefront's buffers and bookkeeping.

    A round drafts the next tokens one after the other with ``draft_depth`` recurrences each, then takes all these lanes
    from ``draft_depth`` to ``num_steps`` recurrences at once, and commits those whose inputs turn out right. A lane's
    draft recurrences are the first of its full ones (per-depth keys, the same initial state), so none is repeated, and
    the text is that of autoregressive decoding. With prefill off the prompt's lanes are part of the first round: a
    draft needs their keys at its own depths only.

    Args:
        draft_depth: recurrences of a drafted token.
        wavefront: as for :class:`Wavefront`; the policy has per-depth keys and ``max_wavefront`` tokens per draft.
    """

    def __init__(self, *wavefront: Any, draft_depth: int):
        super().__init__(*wavefront)
        self.draft_depth = draft_depth

    def step(self, number: int) -> None:
        """One round: draft, verify, commit."""
        known = self.front.reopen()
        lanes = self.front.lanes()
        place, span = self._locate(lanes)
        drafts = self._draft(lanes, known)
        e, s = place.read(self.embedded), place.read(self.states)
        for depth in range(self.draft_depth, self.policy.num_steps):
            s = self._count(self.seams.recur(e, s, self.cache, span, depth), lanes.active)
        proposals = self.choose(self.seams.decode(s, self.cache, span), self._streams, span.positions + 1)
        self.stats.readouts += int(lanes.active.sum())
        both = torch.cat([drafts, proposals[:, : lanes.width]], dim=1).cpu().numpy()
        count = drafts.shape[1]
        self.front.take_drafts(known, both[:, :count])
        tokens = self.front.input_tokens(lanes)
        outcome = self.front.advance(lanes, both[:, count:], np.False_)
        self._treat_flips(lanes, outcome, place)
        self._settle(lanes, outcome)
        if self.tracer is not None:
            self._record(number, lanes, tokens, both[:, count:], None, outcome)

    def _draft(self, lanes: Lanes, known: Rows) -> Tensor:
        """Take the lanes whose tokens are known through the shallow model, then draft and take the others one by one.

        Returns:
            [batch, drafts], the drafted tokens of each row, on the device; -1 columns of shorter rows hold anything.
        """
        rows = np.arange(len(known))[:, None]
        drafts: list[Tensor] = []
        tokens = self._lay(self.front.input_tokens(lanes)[:, : known.max()])
        offsets = np.arange(known.max())[None]
        for ahead in range(int((lanes.active.sum(1) - known).max(initial=0)) + 1):
            wanted = (offsets < known[:, None] + ahead) & (offsets < lanes.width)
            at = np.minimum(offsets, lanes.width - 1)
            positions = np.where(wanted, lanes.positions[rows, at], -1)
            lane, span = self._place(lanes, positions)
            last = self._upload(known[:, None] - 1) if not ahead else None
            tokens = self._shallow(tokens, lane, span, positions, last)
            drafts.append(tokens)
            offsets = known[:, None] + ahead
        return torch.cat(drafts[:-1], dim=1) if len(drafts) > 1 else tokens[:, :0]

    def _shallow(
        self, tokens: Tensor, lane: Place, span: Span | Places, positions: LaneInts, last: Tensor | None
    ) -> Tensor:
        """``draft_depth`` recurrences of some lanes.

        Returns:
            the token that the last of each row's lanes proposes, [batch, 1].
        """
        active = positions >= 0
        e = self.seams.embed(tokens, self.cache, span)
        s = lane.read(self.fresh_states)
        for depth in range(self.draft_depth):
            s = self._count(self.seams.recur(e, s, self.cache, span, depth), active)
        lane.write(self.embedded, e)
        lane.write(self.states, s)
        logits = self.seams.decode(s, self.cache, span)
        self.stats.readouts += int(active.sum())
        where = span.positions
        if last is not None:
            logits, where = logits[lane.rows, last], where[lane.rows, last]
        return self.choose(logits, self._streams, where + 1)

    def _place(self, lanes: Lanes, positions: LaneInts) -> tuple[Place, Span | Places]:
        """Where these lanes are, with their span."""
        start = None
        if lanes.start is not None and not self.policy.compile:
            start = int(positions[0, 0])
        place = Place(start, self._row_index(len(positions)), self._lay(positions, -1))
        return place, self._span(place, int(positions.max()) + 1)

    def _count(self, s: Tensor, active: LaneInts) -> Tensor:
        self.stats.core_passes += 1
        self.stats.token_passes += int(active.sum())
        return s
