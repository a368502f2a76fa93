"""Short steps of the wavefront, each one graph: refinement and the front's bookkeeping, which stays on the device.

The rules are those of :class:`~recdepth.sampling.front.Front`, which runs every other kind of step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recdepth.models import Buffers, Packing, Span, compiled_capacity, compiled_width, sampling_seams
from recdepth.models.refinement import Pick

from .exits import scores_states
from .guesses import guess
from .policies import Policy

if TYPE_CHECKING:
    from .wavefront import Wavefront

#: Most recurrences in one graph: longer ones take longer to make, and gain less.
LONGEST = 2
#: Lanes up to which a single row's graphs are filled up with further steps: to call one takes as long as a tenth of two
#: such steps. The row may end before the last of them, which then is for nothing. All lanes are embedded anew.
NARROW = 8


class FrontTensors(NamedTuple):
    """What a step reads and changes of a front; names as there.

    Attributes:
        limit: most lanes of each row.
        counts: so far; positions committed, recurrences that they had had, flips, steps, lanes over all steps, and the
            most lanes of a row.
        settings: r, the exit's threshold, and η.
    """

    tokens: Int[Tensor, "batch places"]
    depth: Int[Tensor, "batch places"]
    age: Int[Tensor, "batch places"]
    front: Int[Tensor, " batch"]
    width: Int[Tensor, " batch"]
    stale: Int[Tensor, " batch"]
    finished: Bool[Tensor, " batch"]
    counts: Int[Tensor, " six"]
    prompt: Int[Tensor, " batch"]
    last: Int[Tensor, " batch"]
    stop: Int[Tensor, " stops"]
    limit: Int[Tensor, " batch"]
    settings: Float[Tensor, " three"]


class Seen(NamedTuple):
    """What a step decided, [batch, width]: proposed tokens, scores, changed tokens of the lane behind, and commits."""

    said: Tensor
    score: Tensor | None
    flips: Tensor
    committed: Tensor


@dataclass(frozen=True, eq=False)
class FusedStep:
    """One step on tensors alone, or several; made by :func:`fused_step`, so that equal ones are the same object.

    Attributes:
        together: steps, one after the other.
        steps: recurrences of each.
        headway: lanes that may open.
        width: lanes of each row, closed ones included.
        places: of several rows' open lanes, packed; 0 for one row's, as they are.
        tail: the last so many lanes, which are embedded anew; all of them where they are packed.
        stops: number of stop tokens.
        mixing: whether there is momentum.
        traced: whether to return what a trace wants to know.
        score: of an exit criterion on states, or None.
        pick: from logits to tokens.
    """

    together: int
    steps: int
    headway: int
    width: int
    places: int
    tail: int
    stops: int
    mixing: bool
    traced: bool
    score: Callable[..., Tensor] | None
    pick: Pick

    @property
    def name(self) -> str:
        """What profiles show."""
        return f"step_{self.width}_{self.places or self.tail}" + f"_{self.together}" * (self.together > 1)

    @property
    def recurrences(self) -> int:
        """Core passes of a call."""
        return self.together * self.steps

    def __call__(self, model: Any, cache: Any, span: Callable[..., Span], *inputs: Tensor) -> Seen | None:
        """Refine the open lanes, let drafts flip, commit and open; what the last of the steps decided, if traced."""
        for _ in range(self.together):
            seen = self._step(model, cache, span, *inputs)
        return seen if self.traced else None

    def _step(self, model: Any, cache: Any, span: Callable[..., Span], *inputs: Tensor) -> Seen:
        count = len(FrontTensors._fields)
        front, (states, embedded, *more) = FrontTensors(*inputs[:count]), inputs[count:]
        mixed = more.pop(0) if self.mixing else None
        lane = torch.arange(self.width, device=front.front.device)
        active = lane < front.width[:, None]
        positions = torch.where(active, front.front[:, None] + lane, -1)
        here = torch.arange(len(positions), device=positions.device)[:, None], positions
        noise = more[0] if more else None
        said, score = self._refine(model, cache, span, front, here, Buffers(states, embedded, mixed), noise)
        flips, committed = self._advance(front, active, here, said, score)
        return Seen(said, score, flips, committed)

    def lanes(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Int[Tensor, "1 width"]]:
        """Embeddings, states and positions of one row's lanes, before the step: for its core passes alone."""
        count = len(FrontTensors._fields)
        front, (states, embedded) = FrontTensors(*inputs[:count]), inputs[count : count + 2]
        assert len(front.front) == 1, "passes of packed rows cannot be run bare"
        lane = torch.arange(self.width, device=states.device)
        positions = torch.where(lane < front.width[:, None], front.front[:, None] + lane, -1)
        return embedded[:, : self.width], states[:, : self.width], positions

    def _refine(
        self,
        model: Any,
        cache: Any,
        span: Callable[..., Span],
        front: FrontTensors,
        here: tuple[Tensor, Tensor],
        buffers: Buffers,
        noise: Tensor | None,
    ) -> tuple[Int[Tensor, "batch width"], Tensor | None]:
        """The tokens that lanes propose, and their scores."""
        ids, positions, packing = front.tokens[here], here[1], None
        weight = None
        if buffers.mixed is not None:  # a new lane has no previous embedding
            *_, momentum = front.settings.unbind()
            weight = torch.where(front.age[here] == 0, 1.0, 1.0 - momentum)[..., None].to(buffers.mixed.dtype)
        if self.places:
            packing = Packing.of(front.width, self.width, self.places)
            positions = torch.where(packing.used, packing.pack(positions), -1)
            ids = packing.pack(ids)
            weight = None if weight is None else packing.pack(weight)
        seams: Any = type(model)  # not the instance's own, which may be compiled for training
        said, score = seams.refine(
            model,
            ids[:, -self.tail :],
            buffers,
            cache,
            span(positions, packing),
            steps=self.steps,
            weight=weight,
            score=self.score,
            pick=self.pick,
            noise=noise,
        )
        if packing is None:
            return said, score
        return packing.unpack(said), None if score is None else packing.unpack(score)

    def _advance(
        self,
        front: FrontTensors,
        active: Bool[Tensor, "batch width"],
        here: tuple[Tensor, Tensor],
        said: Int[Tensor, "batch width"],
        score: Float[Tensor, "batch width"] | None,
    ) -> tuple[Bool[Tensor, "batch width"], Bool[Tensor, "batch width"]]:
        """As ``Front.advance`` with all lanes due, and drafts that change as soon as another token is said.

        Returns:
            lanes that changed the token of the next one, and those that are committed.
        """
        rows, positions = here
        lane = torch.arange(self.width, device=rows.device)
        num_steps, threshold, _ = front.settings.unbind()
        depth, age = front.depth[here] + self.steps, front.age[here] + self.steps

        behind = rows, torch.where(active, positions + 1, -1)
        held = front.tokens[behind]
        heard = active & (positions >= front.prompt[:, None] - 1)  # prompt tokens never change
        differs = heard & (said != held)
        text = torch.where(differs, said, held)
        front.tokens[behind] = text
        flips = differs & (lane + 1 < front.width[:, None])  # the position behind is a lane too
        first_flip = torch.where(flips, lane + 1, self.width).amin(1)  # the first lane whose own token changed

        done = depth >= num_steps
        if score is not None:
            done = done | (score < threshold.to(score.dtype))
        done = done & active & (lane < first_flip[:, None])
        count = torch.where(done, self.width, lane).amin(1)  # up to the first that is not
        stops = heard & (lane < count[:, None]) & (text[..., None] == front.stop).any(-1)
        first_stop = torch.where(stops, lane, self.width).amin(1)
        count = torch.minimum(count, first_stop + 1)
        committed = lane < count[:, None]

        lanes, steps = front.width.sum(), (front.width > 0).any()
        *sums, widest = front.counts.unbind()
        more = [count.sum(), (age * committed).sum(), flips.sum(), steps, lanes]
        sums = [before + new for before, new in zip(sums, more, strict=True)]
        front.counts.copy_(torch.stack([*sums, torch.maximum(widest, front.width.max())]))
        front.depth[here] = torch.where(lane < first_flip[:, None], depth, 0)
        front.age[here] = age
        unchanged = torch.minimum(first_flip, front.width)
        front.stale.copy_(front.front + torch.maximum(unchanged, count))
        begin, open_lanes = front.front + count, front.width - count
        finished = front.finished | (first_stop < self.width) | (begin >= front.last)
        room = torch.minimum(front.last - begin, front.limit)
        width = torch.maximum(torch.minimum(open_lanes + self.headway, room), open_lanes).masked_fill(finished, 0)
        front.front.copy_(begin)
        front.width.copy_(width)
        front.finished.copy_(finished)
        if self.headway > 1:  # the first new lane's token was proposed by the lane before it
            guess(front.tokens, begin + open_lanes + 1, width - open_lanes - 1, self.headway - 1)
        return flips, committed


#: A step by its attributes.
fused_step = functools.cache(FusedStep)


class Look(NamedTuple):
    """Lone lanes after some recurrences, and how much these have moved them."""

    states: Float[Tensor, "batch 1 dim"]
    score: Float[Tensor, "batch 1"]


@dataclass(frozen=True, eq=False)
class FusedLook:
    """The recurrences of lone lanes between two looks, and the second; made by :func:`fused_look`.

    Attributes:
        steps: recurrences.
        score: of an exit criterion on states.
    """

    steps: int
    score: Callable[..., Tensor]

    @property
    def name(self) -> str:
        """What profiles show."""
        return f"look_{self.steps}"

    def __call__(self, model: Any, cache: Any, span: Callable[..., Span], *inputs: Tensor) -> Look:
        """Look at lanes; inputs are their positions, their embeddings, and their states before."""
        positions, e, before = inputs
        s, place = before, span(positions)
        seams: Any = type(model)  # not the instance's own, which may be compiled for training
        for step in range(self.steps):
            s = seams.recur(model, e, s, cache, place, step)
        return Look(s, self.score(s, before))

    def lanes(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Int[Tensor, "batch 1"]]:
        """As a step's."""
        positions, e, before = inputs
        return e, before, positions

    @property
    def recurrences(self) -> int:
        """As a step's."""
        return self.steps


#: A look by its attributes.
fused_look = functools.cache(FusedLook)


def fused_look_of(policy: Policy) -> FusedLook | None:
    """The graph of the looks of a policy's lone lanes; None where they differ, or are too long for one."""
    alike = policy.num_steps % policy.inner_steps == 0 and not policy.noise
    if not (policy.compile and policy.kv == "shared" and policy.inner_steps <= LONGEST and alike):
        return None
    assert policy.exit is not None
    return fused_look(policy.inner_steps, scores_states(policy.exit))


def packed_places(lanes: int) -> int:
    """Places that are compiled for so many lanes of several rows: few numbers, as they multiply with widths."""
    if lanes <= 32:
        return max(8, compiled_width(lanes))
    power = 1 << (lanes - 1).bit_length()
    return power * 3 // 4 if lanes <= power * 3 // 4 else power


class FusedFront:
    """Runs a wavefront's steps as graphs. On a CPU the tensors share the front's memory: nothing is copied.

    Args:
        wavefront: of which :meth:`can_run` says yes.
    """

    def __init__(self, wavefront: Wavefront):
        self.wavefront = wavefront
        self.seams = sampling_seams(wavefront.model)
        exit = wavefront.policy.exit
        self._score = scores_states(exit) if exit else None
        self._counts = np.zeros(6, dtype=np.int64)
        threshold = exit.threshold if exit else 0.0
        settings = [wavefront.policy.num_steps, threshold, wavefront.policy.momentum]
        self._settings = torch.tensor(settings, dtype=torch.float64, device=wavefront.model.device)
        self._inputs: tuple[Tensor, ...] = ()
        self._shares_memory = wavefront._device.type == "cpu"

    @staticmethod
    def can_run(wavefront: Wavefront) -> bool:
        """Whether steps are short and alike, read all lanes out, and keep states on a flip."""
        policy, exit = wavefront.policy, wavefront.policy.exit
        short = policy.compile and policy.kv == "shared" and policy.inner_steps <= LONGEST
        alike = policy.num_steps % policy.inner_steps == 0 and policy.draft_depth == 1 and policy.max_wavefront > 1
        plain = policy.on_flip == "keep" and not policy.noise and not policy.confirm_flips
        return short and alike and plain and policy.always_due and not (exit and exit.reads_logits)

    def upload(self) -> None:
        """Take the front's arrays over: they are others since rows came or went."""
        of, front, policy = self.wavefront, self.wavefront.front, self.wavefront.policy
        limit = np.full_like(front.prompt, policy.max_wavefront)
        arrays = vars(front) | {"counts": self._counts}
        arrays["limit"] = limit if policy.prefill else np.maximum(limit, front.prompt)
        names = [name for name in FrontTensors._fields if name != "settings"]
        copy = not self._shares_memory
        tensors = [torch.from_numpy(arrays[name]).to(of._device, copy=copy) for name in names]
        self._inputs = (*tensors, self._settings, of.states, of.embedded, *([of.mixed] if policy.momentum else []))

    def step(self) -> Seen | None:
        """One step of all rows, or some of a narrow one; returns what a trace wants to know, if there is one."""
        of, front, policy = self.wavefront, self.wavefront.front, self.wavefront.policy
        widest, batch, traced = int(front.width.max()), len(front.width), of.tracer is not None
        together = 1
        if batch == 1:
            begin, together = int(front.front[0]), self._together()
            # lanes may be committed, and others opened, before the last of the steps
            most = widest + policy.headway * (together - 1)
            end = min(begin + most, int(front.last[0]))
            width = compiled_width(min(most, end - begin, max(widest, policy.max_wavefront)))
            stale = int(front.stale[0]) - begin
            places, tail = 0, width if width <= NARROW else compiled_width(max(width - stale, 1))
        else:  # packed, they are embedded anew together
            width = compiled_width(widest)
            end = int(np.where(front.width > 0, front.front + front.width, 0).max())
            places = tail = packed_places(int(front.width.sum()))
        shape, pick, mixing = (width, places, tail, len(front.stop)), of.choose.pick, bool(policy.momentum)
        step = fused_step(together, policy.inner_steps, policy.headway, *shape, mixing, traced, self._score, pick)
        noise = () if of.choose.temperature == 0 else (self._noise(places or width),)
        seen: Seen | None = self.seams.step(step, (*self._inputs, *noise), of.cache, compiled_capacity(end))
        if not self._shares_memory:
            self._download(texts=traced)
        stats = of.stats
        stats.committed, of._recurrences, stats.flips, steps, lanes, stats.widest = self._counts.tolist()
        stats.core_passes = policy.inner_steps * steps
        stats.token_passes, stats.readouts = policy.inner_steps * lanes, lanes
        return seen

    def _together(self) -> int:
        """Steps of a single row in one graph; a trace looks at each, and noise is drawn for each."""
        of, policy = self.wavefront, self.wavefront.policy
        widest = policy.max_wavefront if policy.prefill else max(policy.max_wavefront, int(of.front.prompt[0]))
        alone = of.tracer is not None or of.choose.temperature > 0
        return 1 if alone or widest > NARROW else LONGEST // policy.inner_steps

    def _noise(self, places: int) -> Tensor:
        """For the choice of what lanes say, [1, places, vocab], in the order in which rows are packed."""
        of, front = self.wavefront, self.wavefront.front
        row, column = np.nonzero(np.arange(front.width.max()) < front.width[:, None])
        rows, behind = (np.zeros((1, places), dtype=np.int64) for _ in range(2))
        rows[0, : len(row)], behind[0, : len(row)] = row, front.front[row] + column + 1
        upload = of._upload
        noise = of.choose.noise(of._streams[upload(rows)], upload(behind), of.model.config.vocab_size)
        assert noise is not None
        return noise

    def _download(self, texts: bool) -> None:
        """Bring back what steps change: where rows are, and their texts if wanted, or if a row has ended."""
        front, tensors = self.wavefront.front, FrontTensors(*self._inputs[: len(FrontTensors._fields)])
        rows = torch.stack([tensors.front, tensors.width, tensors.stale, tensors.finished.long()])
        both = torch.cat([tensors.counts, rows.flatten()]).cpu().numpy()
        self._counts[:], before = both[:6], front.finished.sum()
        front.front[:], front.width[:], front.stale[:], front.finished[:] = both[6:].reshape(4, -1)
        if texts or front.finished.sum() > before:
            front.tokens[:], front.depth[:], front.age[:] = (
                torch.stack([tensors.tokens, tensors.depth, tensors.age]).cpu().numpy()
            )
