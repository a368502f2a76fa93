"""Decoding in rounds: a shallow draft of some tokens, then their lanes climb to full depth together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from recdepth.models import Buffers, Places, Span, compiled_width

from .decoding import Place
from .exits import LatentDiff, scores_states
from .front import LaneBools, LaneInts, Lanes, Rows
from .wavefront import MOST_TOGETHER, Wavefront

#: ‖s − s_prev‖ / ‖s‖ of each lane.
_MOVED = scores_states(LatentDiff(0.0))


class Speculation(Wavefront):
    """Rounds of drafting and climbing, on the wavefront's buffers and bookkeeping.

    A round drafts the next tokens one after the other with ``draft_depth`` recurrences each, then takes all these lanes
    to ``num_steps`` recurrences at once, and commits those whose inputs turn out right. A lane's draft recurrences are
    the first of its full ones (per-depth keys, the same initial state), so none is repeated, and the text is that of
    autoregressive decoding. On the way the lanes are read out at the policy's depths: where one proposes another token,
    the lanes behind it keep theirs as guesses and start anew, together, until all agree at that depth.

    With prefill off, or left open for a single row, the prompt's lanes are part of the first round: a draft needs their
    keys at its own depths only.

    With ``settle``, lanes that have come to a fixed point rest: once a recurrence moves a state by no more than
    rounding does, and all positions before it have settled as well, all it depends on stays as it is, and so do its
    further states and keys. They are those of the last recurrence then, up to rounding.

    Args:
        decoding: as for :class:`Decoding`; the policy has per-depth keys and ``max_wavefront`` lanes per round.
    """

    def __init__(self, *decoding: Any):
        super().__init__(*decoding)
        self._spared: LaneInts = np.zeros((0, 0), dtype=np.int64)  # recurrences that resting lanes did not take
        # drafts between two looks for stop tokens: a look waits for the device, a graph of several saves calls
        self._stride = 4 if self.policy.compile else 1 if self._device.type == "cpu" else 8
        self._together = MOST_TOGETHER if self.policy.compile else 1

    @property
    def _prefills(self) -> bool:
        # rows of a batch would wait for each other's prompts
        return bool(self.policy.prefill) and (self.policy.prefill_steps is not None or len(self.serves) > 1)

    def step(self, number: int) -> None:
        """One round: draft, climb, commit."""
        known = self.front.reopen()
        first, *stages = self.policy.readout_depths
        self.front.take_drafts(known, self._draft(self.front.lanes(), known, first))
        lanes = self.front.lanes()
        place, span = self._locate(lanes)
        if lanes.start == 0:  # lanes see lanes alone
            span = self.seams.span(place.positions, self.cache, start=0, length=lanes.width)
        e, s = place.read(self.embedded), place.read(self.states)
        below = first
        for depth in stages[:-1]:
            s = self._raise(e, s, span, below, depth, lanes.active)
            place.write(self.states, s)
            below = depth
            if not self._agree(lanes, known - 1, depth):  # all drafts do: what is left is the climb
                break
            e, s = place.read(self.embedded), place.read(self.states)
        self._spared = np.zeros_like(lanes.positions)
        s, resting = self._climb(e, s, lanes, place, span, below)
        self.stats.readouts += int(lanes.active.sum())
        chosen = self.choose(self.seams.decode(s, self.cache, span), self._streams, span.positions + 1)
        proposals, tokens = chosen.cpu().numpy()[:, : lanes.width], self.front.input_tokens(lanes)
        outcome = self.front.advance(lanes, proposals, np.False_)
        outcome = replace(outcome, age=outcome.age - self._spared)
        self._treat_flips(lanes, outcome, place)
        self._settle(lanes, outcome)
        if resting and not self.front.finished.all():  # later rounds read them
            self._repeat_keys(lanes, *resting)
        if self.tracer is not None:
            self._record(number, lanes, tokens, proposals, None, outcome)

    # --------------------------------------------------------------------------------------------------- the draft

    def _draft(self, lanes: Lanes, known: Rows, depth: int) -> Int[np.ndarray, "batch drafts"]:
        """Take the lanes whose tokens are known to a depth together, then draft and take the others one by one.

        Returns:
            the drafted tokens of each row; what is behind a row's lanes, or its first stop token, may be anything.
        """
        behind = np.maximum(self.front.width - known, 0)
        offsets = np.arange(known.max())[None]
        wanted = lanes.active[:, : known.max()] & (offsets < known[:, None])
        lane, span = self._place(np.where(wanted, lanes.positions[:, : known.max()], -1))
        tokens = self._lay(self.front.input_tokens(lanes)[:, : known.max()])
        s = self._shallow(tokens, lane, span, wanted, depth)
        if not behind.any():  # what the last lane says is known after the climb
            return np.zeros((len(known), 0), dtype=np.int64)
        last = lane.rows, self._upload(known[:, None] - 1)
        tokens = self.choose(self.seams.decode(s, self.cache, span)[last], self._streams, span.positions[last] + 1)
        self.stats.readouts += int(wanted.sum())
        return self._draft_behind(tokens, self.front.front + known, behind, depth).cpu().numpy()

    def _draft_behind(self, tokens: Tensor, first: Rows, count: Rows, depth: int) -> Int[Tensor, "batch drafts"]:
        """Draft so many lanes of each row one by one, from a position and its token on; a row ends at a stop token."""
        mixed = self.mixed if self.policy.momentum else None
        buffers, drafts = Buffers(self.states, self.embedded, mixed, self.fresh_states), [tokens]
        most, stride = int(count.max()), self._stride
        ahead = np.arange(-(-most // stride) * stride if self.policy.compile else most)
        places = self._upload(np.where(ahead < count[:, None], first[:, None] + ahead, -1))
        alike = not self.policy.compile and bool((first == first[0]).all() and (count == most).all())
        going, done = np.ones_like(count, dtype=bool), np.zeros_like(count)
        for begin in range(0, most, stride):
            going = going & (begin < count) & ~self.front.stop_in(drafts[-1].cpu().numpy())
            if not going.any():
                break
            if not going.all():
                places[self._upload(~going), begin:] = -1
                alike = False
            done += going * stride
            start, length = int(first[0]) + begin, int((first + np.minimum(count, begin + stride)).max())
            some = places[:, begin : begin + stride]
            span = self.seams.span(some, self.cache, start=start if alike else None, length=length)
            choice: Any = {"pick": self.choose.pick, "noise": self._noise(span)}
            drafts.append(self.seams.draft(drafts[-1][:, -1:], buffers, self.cache, span, steps=depth, **choice))
        done = np.minimum(done, count)
        self.stats.core_passes += depth * int(done.max())
        self.stats.token_passes += depth * int(done.sum())
        self.stats.readouts += int(done.sum())
        return torch.cat(drafts, dim=1)

    def _noise(self, span: Span | Places) -> Tensor | None:
        """For the choice of what lanes say."""
        if not self.choose.temperature:
            return None
        return self.choose.noise(self._streams[:, None], span.positions + 1, self.model.config.vocab_size)

    def _place(self, positions: LaneInts) -> tuple[Place, Span | Places]:
        """Where these lanes are, with their span."""
        alike = not self.policy.compile and positions.min() >= 0 and (positions == positions[0]).all()
        start = int(positions[0, 0]) if alike else None
        lane = Place(start, self._row_index(len(positions)), self._lay(positions, -1))
        return lane, self._span(lane, int(positions.max()) + 1)

    def _shallow(self, tokens: Tensor, lane: Place, span: Span | Places, active: LaneBools, depth: int) -> Tensor:
        """The first recurrences of some lanes, together; returns their states."""
        e = self.seams.embed(tokens, self.cache, span)
        s = lane.read(self.fresh_states)
        s = self._raise(e, s, span, 0, depth, active)
        lane.write(self.embedded, e)
        lane.write(self.states, s)
        return s

    def _raise(self, e: Tensor, s: Tensor, span: Span | Places, begin: int, end: int, active: LaneBools) -> Tensor:
        """The recurrences of lanes from one depth to another."""
        self.stats.core_passes += end - begin
        self.stats.token_passes += (end - begin) * int(active.sum())
        return self._pass_on(e, s, span, begin, end - begin)

    # ----------------------------------------------------------------------------------------------- on the way up

    def _climb(
        self, e: Tensor, s: Tensor, lanes: Lanes, place: Place, span: Span | Places, depth: int
    ) -> tuple[Tensor, tuple[int, int, int] | None]:
        """The recurrences that are left, without the lanes that rest.

        Returns:
            all states; and of the lanes at the end that rest, if any: the first, the one behind the last, their depth.
        """
        top, whole, active, first = self.policy.num_steps, place, lanes.active, 0
        working, resting = active.any(1), None
        alike_from = int(self._alike_from[working].max())
        while depth < top:
            look = next((d for d in range(max(depth + 1, alike_from), top) if self._looks_at(d)), None)
            if look is None:
                s = self._raise(e, s, span, depth, top, active)
                break
            before = self._raise(e, s, span, depth, look - 1, active)
            s, depth = self._raise(e, before, span, look - 1, look, active), look
            count = self._settled(s, before, active)
            if count == active.shape[1]:
                resting = first, lanes.width, depth
                self._spared[:, first:] = top - depth
                break
            width = active.shape[1] - count
            width = compiled_width(width) if self.policy.compile else width
            if width >= s.shape[1]:
                continue
            begin = min(count, s.shape[1] - width)  # padding is at the end
            place.write(self.states, s)
            self._spared[:, first : first + begin] = top - depth
            self._repeat_keys(lanes, first, first + begin, depth)
            first, end, active = first + begin, begin + width, active[:, begin:]
            e, s, place = e[:, begin:end].contiguous(), s[:, begin:end].contiguous(), place.part(begin, end)
            span = self._span(place, lanes.end)
        self._alike_from[working] = resting[2] if resting else top
        if place is whole:
            return s, resting
        place.write(self.states, s)
        return whole.read(self.states), resting

    def _at_rest(self, s: Tensor, before: Tensor, read: LaneBools, depth: int) -> bool:
        return self._looks_at(depth) and self._settled(s, before, read) == read.shape[1]

    def _looks_at(self, depth: int) -> bool:
        """Whether to see after a recurrence which lanes have settled: that waits for the device."""
        return bool(self.policy.settle) and depth % 2 == 0 and depth < self.policy.num_steps

    def _settled(self, s: Tensor, before: Tensor, active: LaneBools) -> int:
        """How many lanes at the front, the same for all rows, have settled or are not in use."""
        unit = self.policy.settle * torch.finfo(s.dtype).eps
        moving = active & ~(_MOVED(s, before).cpu().numpy()[:, : active.shape[1]] <= unit)
        return int(np.where(moving.any(1), moving.argmax(1), active.shape[1]).min())

    def _repeat_keys(self, lanes: Lanes, begin: int, end: int, depth: int) -> None:
        """Let the deeper keys of lanes that rest be those of this depth."""
        positions, active = lanes.positions[:, begin:end], lanes.active[:, begin:end]
        if len(positions) == 1:
            self.cache.settle(np.s_[:], slice(int(positions[0, 0]), int(positions[0, -1]) + 1), depth)
            return
        rows, columns = np.nonzero(active)
        self.cache.settle(self._upload(rows), self._upload(positions[rows, columns]), depth)

    def _agree(self, lanes: Lanes, first: Rows, depth: int) -> bool:
        """Read lanes out at a depth, from the first in question of each row on, until no draft changes any more.

        Returns:
            whether any has.
        """
        proposals, changed = np.zeros_like(lanes.positions), False
        places, active = self._from(lanes, first)
        while active.any():
            positions = np.where(active, np.take_along_axis(lanes.positions, places, 1), -1)
            lane, span = self._place(positions)
            if changed:
                tokens = np.take_along_axis(self.front.input_tokens(lanes), places, 1)
                s = self._shallow(self._lay(tokens), lane, span, active, depth)
                self.stats.discarded_passes += depth * int(active.sum())
            else:
                s = lane.read(self.states)
            self.stats.readouts += int(active.sum())
            chosen = self.choose(self.seams.decode(s, self.cache, span), self._streams, span.positions + 1)
            rows, columns = np.nonzero(active)
            read = np.zeros_like(lanes.active)
            read[rows, places[rows, columns]] = True
            proposals[read] = chosen.cpu().numpy()[rows, columns]
            flipped, withdrawn = self.front.redraft(lanes, proposals, read, depth)
            self.stats.flips += int(flipped.sum())
            self.stats.flips_withdrawn += withdrawn
            changed = changed or bool(flipped.any())
            places, active = self._from(lanes, np.where(flipped.any(1), flipped.argmax(1), lanes.width))
        return changed

    def _from(self, lanes: Lanes, first: Rows) -> tuple[LaneInts, LaneBools]:
        """Each row's lanes from the given one on: their indices, side by side, and which of them there are."""
        places = first[:, None] + np.arange(max(int((lanes.width - first).max()), 0))
        inside = places < lanes.width
        places = np.minimum(places, lanes.width - 1)
        return places, inside & np.take_along_axis(lanes.active, places, 1)
