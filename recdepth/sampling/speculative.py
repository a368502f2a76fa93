"""Self-speculative decoding: a shallow draft of some tokens, then one parallel verification at full depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from recdepth.models import Places, Span

from .front import LaneBools, LaneInts, Lanes, Rows
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
        self._look = 1 if self._device.type == "cpu" else 8  # drafts between two looks for stop tokens, which wait

    def step(self, number: int) -> None:
        """One round: draft, verify, commit."""
        known = self.front.reopen()
        self.front.take_drafts(known, self._draft(self.front.lanes(), known))
        lanes = self.front.lanes()
        place, span = self._locate(lanes)
        e, s = place.read(self.embedded), place.read(self.states)
        for depth in range(self.draft_depth, self.policy.num_steps):
            s = self._count(self.seams.recur(e, s, self.cache, span, depth), lanes.active)
        chosen = self.choose(self.seams.decode(s, self.cache, span), self._streams, span.positions + 1)
        self.stats.readouts += int(lanes.active.sum())
        proposals, tokens = chosen.cpu().numpy()[:, : lanes.width], self.front.input_tokens(lanes)
        outcome = self.front.advance(lanes, proposals, np.False_)
        self._treat_flips(lanes, outcome, place)
        self._settle(lanes, outcome)
        if self.tracer is not None:
            self._record(number, lanes, tokens, proposals, None, outcome)

    def _draft(self, lanes: Lanes, known: Rows) -> Int[np.ndarray, "batch drafts"]:
        """Take the lanes whose tokens are known through the shallow model, then draft and take the others one by one.

        Returns:
            the drafted tokens of each row; what is behind a row's lanes, or its first stop token, may be anything.
        """
        most = int((lanes.active.sum(1) - known).max())
        rows, drafts = np.arange(len(known))[:, None], []
        tokens = self._lay(self.front.input_tokens(lanes)[:, : known.max()])
        offsets, going = np.arange(known.max())[None], lanes.active[:, :1]
        for ahead in range(most + 1):
            wanted = going & (offsets < known[:, None] + ahead) & (offsets < lanes.width)
            positions = np.where(wanted, lanes.positions[rows, np.minimum(offsets, lanes.width - 1)], -1)
            lane, span = self._place(positions)
            s = self._shallow(tokens, lane, span, positions >= 0)
            if ahead == most:  # what the last lane says is known after the verification
                break
            logits = self.seams.decode(s, self.cache, span)
            self.stats.readouts += int(wanted.sum())
            where = span.positions
            if not ahead:  # the last of the known lanes
                at = lane.rows, self._upload(known[:, None] - 1)
                logits, where = logits[at], where[at]
            tokens = self.choose(logits, self._streams, where + 1)
            drafts.append(tokens)
            if ahead % self._look == 0:  # whether any row goes on
                said = self.front.stop_in(torch.cat(drafts[-self._look :], dim=1).cpu().numpy())
                going = going & ~said
                if not going.any():
                    break
            offsets = known[:, None] + ahead
        return torch.cat(drafts, dim=1).cpu().numpy() if drafts else np.zeros((len(known), 0), dtype=np.int64)

    def _place(self, positions: LaneInts) -> tuple[Place, Span | Places]:
        """Where these lanes are, with their span."""
        alike = not self.policy.compile and positions.min() >= 0 and (positions == positions[0]).all()
        start = int(positions[0, 0]) if alike else None
        lane = Place(start, self._row_index(len(positions)), self._lay(positions, -1))
        return lane, self._span(lane, int(positions.max()) + 1)

    def _shallow(self, tokens: Tensor, lane: Place, span: Span | Places, active: LaneBools) -> Tensor:
        """``draft_depth`` recurrences of some lanes; returns their states."""
        e = self.seams.embed(tokens, self.cache, span)
        s = lane.read(self.fresh_states)
        for depth in range(self.draft_depth):
            s = self._count(self.seams.recur(e, s, self.cache, span, depth), active)
        lane.write(self.embedded, e)
        lane.write(self.states, s)
        return s

    def _count(self, s: Tensor, active: LaneBools) -> Tensor:
        self.stats.core_passes += 1
        self.stats.token_passes += int(active.sum())
        return s
