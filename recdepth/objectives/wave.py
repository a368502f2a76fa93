"""The training-time wavefront: the sampler's steps, in many windows of a batch at once, differentiable.

A window begins at a *front* c: the positions before it are committed, their keys are those of a deep pass over the
true text, and lanes c … c+W−1 are refined as :class:`recdepth.sampling.DiffusionForcing` refines them with shared KV.
All windows of all rows are lanes of the same passes, side by side; a mask keeps them apart. So a wavefront costs as
many sequential passes as one window has steps, whatever the length of the text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recdepth.models import RecurrentDepthForCausalLM, Span
from recdepth.models.randomness import STEP_NOISE, truncated_normal
from recdepth.sampling import NOISE_SCHEDULES
from recdepth.sampling.guesses import guess

from .deep import DeepPass, WindowCache, call, recompute

LaneInts = Int[Tensor, "batch windows width"]
LaneBools = Bool[Tensor, "batch windows width"]


@dataclass(frozen=True)
class Plan:
    """What happens in the windows of a batch. Host tensors but for ``fronts``.

    Attributes:
        fronts: [batch, windows], the position of each window's first lane; its token is final.
        opens: [batch, windows, width], the step at which each lane opens.
        steps: S; the first lanes get ``recurrences`` in all, ``inner_steps`` a step (the last step may be shorter).
        recurrences, inner_steps: see there.
        drafting: [batch, windows], windows whose inputs are the model's own read-outs; the others see the true text.
        replaced: [batch, windows, width], tokens that lanes open with, -1 for the usual one. It lasts one step.
        momentum: η, weight of the previous embedding.
        noise, noise_schedule: β, and how it falls with a lane's age.
        backprop_depth: gradients flow through the steps that hold the last so many recurrences.
        seed: of the states and of the noise, keyed as the sampler's; None draws them from torch's generator.
        checkpoint_recurrences: recompute recurrences in the backward pass to save memory.
    """

    fronts: Int[Tensor, "batch windows"]
    opens: LaneInts
    recurrences: int
    inner_steps: int
    drafting: Bool[Tensor, "batch windows"]
    replaced: LaneInts | None = None
    momentum: float = 0.0
    noise: float = 0.0
    noise_schedule: str = "inverse"
    backprop_depth: int = 1 << 30
    seed: int | None = None
    checkpoint_recurrences: bool = False

    @property
    def steps(self) -> int:
        return -(-self.recurrences // self.inner_steps)

    @property
    def steps_with_grad(self) -> int:
        return -(-min(self.backprop_depth, self.recurrences) // self.inner_steps)


@dataclass(frozen=True)
class Look:
    """The lanes after a step.

    Attributes:
        tokens: what they held as input.
        right: lanes that hold the true token, as do all before them in their window.
        opened: which lanes have opened; the others hold nothing of use.
        age: recurrences since they opened.
        states: [batch, lanes, dim], windows flattened into lanes, before the norm.
        before: the states before the step's recurrences and noise.
        logits: [batch, lanes, vocab]; None where nobody asked for them.
    """

    tokens: LaneInts
    right: LaneBools
    opened: LaneBools
    age: LaneInts
    states: Float[Tensor, "batch lanes dim"]
    before: Float[Tensor, "batch lanes dim"]
    logits: Float[Tensor, "batch lanes vocab"] | None


class WaveRun:
    """The windows of one batch; :meth:`step` goes on by a step, :meth:`run` to the end.

    Args:
        model: the model.
        input_ids: the true text.
        deep: a pass over it.
        plan: what is to happen.
    """

    def __init__(self, model: RecurrentDepthForCausalLM, input_ids: Tensor, deep: DeepPass, plan: Plan):
        self.model, self.plan = model, plan
        batch, windows, width = plan.opens.shape
        device, time = input_ids.device, input_ids.shape[1]
        positions = plan.fronts[:, :, None] + torch.arange(width, device=device)
        self.opens = plan.opens.to(device).masked_fill(positions >= time, plan.steps)  # beyond the text: never
        self.positions = positions.clamp(max=time - 1)
        self.text = torch.nn.functional.pad(input_ids, (0, 1))[:, None].repeat(1, windows, 1)  # one place to spare
        self._true = self.text.gather(2, self.positions)
        self.cache: WindowCache = deep.cache(model)
        self._span, self._mask = self._lay_out(time)
        self._replaced = None if plan.replaced is None else plan.replaced.to(device)
        empty = deep.logits.new_zeros(batch, windows * width, model.config.hidden_size, dtype=model.dtype)
        rows = torch.arange(batch, device=device)
        self.states = model.initial_state(empty, rows, self.positions.flatten(1), plan.seed)
        self._mixed = empty
        self._drafting = bool(plan.drafting.any())
        self._guessing = self._drafting and bool((plan.opens[..., 1:] == plan.opens[..., :-1]).any())
        falling = bool((plan.opens[..., 1:] >= plan.opens[..., :-1]).all())  # an open lane's neighbours are open
        self._fixed: Tensor | None = None  # the embedding, where no step changes it
        if falling and not self._drafting and plan.replaced is None:
            self._fixed = model.embed(self._tokens(0).flatten(1), self.cache, self._span)

    def _lay_out(self, time: int) -> tuple[Span, Tensor]:
        """The lanes' span, and which keys each lane sees once they are open: committed ones, then lanes."""
        batch, windows, width = self.positions.shape
        positions = self.positions.flatten(1)
        device = positions.device
        front = self.plan.fronts.repeat_interleave(width, dim=1)
        committed = torch.arange(time, device=device) < front[:, :, None]
        window = torch.arange(windows * width, device=device) // width
        lane = torch.arange(windows * width, device=device)
        lanes = (window[:, None] == window) & (lane <= lane[:, None])
        mask = torch.cat([committed, lanes.expand(batch, -1, -1)], dim=2)[:, None]
        rotary = self.model.rope_table(device)[positions][:, :, None]
        return Span(positions, rotary, mask, False, None, mask.shape[-1]), mask

    def run(self) -> Look:
        """All steps; gradients flow through the last ones only, and logits are read out at the end."""
        steps, grad = self.plan.steps, torch.is_grad_enabled()
        with torch.no_grad():
            for number in range(steps - self.plan.steps_with_grad):
                self.step(number)
        if grad:
            self.states = self.states.detach().requires_grad_()
            self._mixed = self._mixed.detach().requires_grad_()
        for number in range(steps - self.plan.steps_with_grad, steps - 1):
            self.step(number)
        return self.step(steps - 1, read=True)

    def step(self, number: int, read: bool = False) -> Look:
        """One step: embed, mix, add noise, recur, and read drafts out.

        Args:
            number: of the step, from 0.
            read: also read all lanes out with gradients.
        """
        opened, age = self.opens <= number, (number - self.opens) * self.plan.inner_steps
        span = replace(self._span, mask=self._visible(opened))
        tokens = self._tokens(number)
        e = self._embed(tokens, age, span)
        here, before = opened.flatten(1)[..., None], self.states
        s = torch.where(here, self._add_noise(before, age), before)
        passes = min(self.plan.inner_steps, self.plan.recurrences - number * self.plan.inner_steps)
        run = recompute if self.plan.checkpoint_recurrences and torch.is_grad_enabled() else call
        for _ in range(passes):
            s = torch.where(here, run(self.model.recur, e, s, self.cache, span, 0), s)
        self.states, logits = s, None
        if read:
            logits = self.model.decode(s, self.cache, span)
        elif self._drafting:
            with torch.no_grad():
                logits = self.model.decode(s.detach(), self.cache, span)
            self._draft(logits, opened)
        right = (tokens == self._true).long().cumprod(-1).bool()
        return Look(tokens, right, opened, age + passes, s, before, logits)

    def _visible(self, opened: LaneBools) -> Tensor:
        """Closed lanes are keys for themselves alone, so that no softmax is empty."""
        keys = opened.flatten(1)[:, None, None]
        alone = torch.eye(keys.shape[-1], dtype=torch.bool, device=keys.device)
        lanes = self._mask[..., -keys.shape[-1] :] & (keys | alone)
        return torch.cat([self._mask[..., : -keys.shape[-1]], lanes], dim=-1)

    def _tokens(self, number: int) -> LaneInts:
        """What the lanes hold in this step."""
        if self._guessing:
            self._guess(number)
        tokens = self.text.gather(2, self.positions)
        if self._replaced is not None:
            tokens = torch.where((self.opens == number) & (self._replaced >= 0), self._replaced, tokens)
        return tokens

    def _guess(self, number: int) -> None:
        """Tokens for lanes that open together with the one before them, which has drafted nothing: looked up."""
        fresh = self.opens == number
        together = fresh[..., 1:] & fresh[..., :-1] & self.plan.drafting.to(fresh.device)[..., None]
        guessed = together.flatten(0, 1).long()
        if not guessed.any():
            return
        first = self.positions.flatten(0, 1).gather(1, guessed.argmax(1, keepdim=True) + 1)
        guess(self.text.view(len(guessed), -1), first[:, 0], guessed.sum(1), guessed.shape[1])

    def _embed(self, tokens: LaneInts, age: LaneInts, span: Span) -> Tensor:
        """Prelude, then momentum: ``e ← η·e_prev + (1−η)·e``; a new lane has no previous embedding."""
        if self._fixed is not None:
            return self._fixed
        e = self.model.embed(tokens.flatten(1), self.cache, span)
        if self.plan.momentum:
            share = (age > 0).flatten(1)[..., None].to(e.dtype) * self.plan.momentum
            e = torch.lerp(e, self._mixed, share)
            self._mixed = e
        return e

    def _add_noise(self, s: Tensor, age: LaneInts) -> Tensor:
        """``s ← (1−β_a)·s + β_a·z``."""
        plan, config = self.plan, self.model.config
        if not plan.noise:
            return s
        positions, age = self.positions.flatten(1), age.flatten(1).clamp(min=0)
        if plan.seed is None:
            z = nn.init.trunc_normal_(torch.empty_like(s, dtype=torch.float32, requires_grad=False), a=-3.0, b=3.0)
        else:
            rows = torch.arange(len(s), device=s.device)[:, None]
            z = truncated_normal(plan.seed, STEP_NOISE, rows, positions, age, count=config.hidden_size)
        z = z * config.state_scale
        beta = NOISE_SCHEDULES[plan.noise_schedule](plan.noise, age.cpu().numpy(), plan.recurrences)
        return torch.lerp(s, z.to(s.dtype), torch.from_numpy(beta).to(s)[..., None])

    def _draft(self, logits: Tensor, opened: LaneBools) -> None:
        """Open lanes of drafting windows write what they read out behind themselves (greedily)."""
        writes = opened & self.plan.drafting.to(opened.device)[..., None]
        spare = self.text.shape[-1] - 1
        behind = (self.positions + 1).masked_fill(~writes, spare)
        self.text = self.text.scatter(2, behind, logits.argmax(-1).view_as(behind))
