"""The seams of a recurrent-depth model one after the other, on buffers by position: refinement, and drafts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .cache import Buffers, Cache, Span

#: From logits [batch, time, vocab], and noise of that shape or None, to tokens [batch, time].
Pick = Callable[[Tensor, Tensor | None], Tensor]


class RefinementMixin:
    """What samplers do with several seams at once; compiled, it is one graph."""

    if TYPE_CHECKING:
        _as_span: Callable[[Tensor | Span, Cache | None], Span]

    def refine(
        self,
        input_ids: Int[Tensor, "batch tail"],
        buffers: Buffers,
        cache: Cache,
        positions: Tensor | Span,
        steps: int,
        pick: Pick,
        noise: Float[Tensor, "batch time vocab"] | None = None,
        weight: Float[Tensor, "batch time 1"] | None = None,
        score: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Int[Tensor, "batch time"], Tensor | None]:
        """The seams one after the other, on buffers by position: embed, mix, some recurrences, read out.

        Args:
            input_ids: tokens of the last so many lanes, which are embedded anew.
            buffers: where the lanes' states and embeddings are read and written.
            cache: keys and values of earlier positions.
            positions: logical positions of all lanes, or their span.
            steps: recurrences that the states get, the first ones of a per-depth cache.
            pick: from logits to tokens.
            noise: what ``pick`` gets, or None.
            weight: with ``buffers.mixed``, weight of the present embedding against the mixed one.
            score: of the states after and before.

        Returns:
            what the lanes say, and their scores.
        """
        span = self._as_span(positions, cache)
        at = span.rows, span.positions
        tail = span.tail(span.positions.shape[1] - input_ids.shape[1])
        seams: Any = type(self)  # not the instance's own, which may be compiled for training, or watched
        kept = buffers.embedded.dtype  # autocast has dtypes of its own
        buffers.embedded[at[0], tail.positions] = seams.embed(self, input_ids, cache, tail).to(kept)
        e = buffers.embedded[at]
        if buffers.mixed is not None:
            assert weight is not None, "mixed embeddings need a weight"
            e = torch.lerp(buffers.mixed[at], e, weight)
            buffers.mixed[at] = e.to(kept)
        s = before = (buffers.states if buffers.initial is None else buffers.initial)[at]
        for step in range(steps):
            s = seams.recur(self, e, s, cache, span, step)
        buffers.states[at] = s.to(kept)
        said = seams.decode(self, s, cache, span)
        return pick(said, noise), None if score is None else score(s, before)

    def draft(
        self,
        input_ids: Int[Tensor, "batch 1"],
        buffers: Buffers,
        cache: Cache,
        positions: Tensor | Span,
        steps: int,
        pick: Pick,
        noise: Float[Tensor, "batch time vocab"] | None = None,
    ) -> Int[Tensor, "batch time"]:
        """Refine lanes one by one, each with the token that the one before it reads out.

        Args:
            input_ids: token of the first lane.
            buffers: as for :meth:`refine`; new lanes begin with ``initial``.
            cache: keys and values of earlier positions.
            positions: logical positions of the lanes, or their span.
            steps: recurrences of each lane.
            pick: from logits to tokens.
            noise: what ``pick`` gets for each lane's read-out, or None.

        Returns:
            what each lane reads out: the token of the next.
        """
        span, drafts = self._as_span(positions, cache), []
        for lane in range(span.positions.shape[1]):
            place = span.part(lane, lane + 1)
            own = None if noise is None else noise[:, lane : lane + 1]
            input_ids, _ = type(self).refine(self, input_ids, buffers, cache, place, steps=steps, pick=pick, noise=own)
            drafts.append(input_ids)
        return torch.cat(drafts, dim=1)
