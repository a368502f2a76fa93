"""Loss terms on top of a deep pass: wavefronts, shallow read-outs pulled towards deep ones, states that settle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from recdepth.models import RecurrentDepthForCausalLM
from recdepth.sampling import NOISE_SCHEDULES
from recdepth.sampling.policies import Schedule as NoiseSchedule

from .base import Loss
from .deep import DeepPass, call, deep_pass, recompute
from .lanes import Fronts, IndependentDepths, Schedule, draw_fronts
from .wave import Look, Plan, WaveRun

#: Units of rounding by which settled states may still move.
ROUNDING = 16


class Term(Protocol):
    """A loss that shares the deep pass of a step with the others; added up by :class:`Weighted`."""

    def __call__(
        self,
        model: RecurrentDepthForCausalLM,
        batch: Mapping[str, Tensor],
        deep: DeepPass,
        progress: float,
        generator: torch.Generator | None,
    ) -> Loss:
        """The term of a batch; arguments as in :class:`~recdepth.objectives.Objective`, and the deep pass."""
        ...

    @property
    def through_states(self) -> bool:
        """Whether the term's gradient flows through the deep pass, and nowhere else."""
        ...


@dataclass(frozen=True)
class DraftExposure:
    """What the lanes of a window hold as input, where it is not the true text; the targets are the true tokens.

    A drafting window feeds itself: after every step, lane j's likeliest token becomes the input of lane j+1, and lanes
    that open two or more at a time begin with tokens that are looked up in the text, all as in sampling.

    Args:
        share: of the windows draft; the others see the true text.
        random_tokens: probability that a lane opens with a random token, corrected after one step.
        wrong: weight of lanes that hold a wrong token, or stand behind one. They teach the model to look ahead past
            tokens that it does not know yet, which is what more than one lane a step can gain by, and at the cost of
            hedging: what they are to say does not follow from what they are given.

    Raises:
        ValueError: for values that are no fractions.
    """

    share: float = 0.5
    random_tokens: float = 0.0
    wrong: float = 1.0

    def __post_init__(self) -> None:
        if wrong := [k for k in ("share", "random_tokens", "wrong") if not 0 <= getattr(self, k) <= 1]:
            raise ValueError("; ".join(f"{k}={getattr(self, k)} must lie between 0 and 1" for k in wrong))


@dataclass(frozen=True)
class StateNoise:
    """The sampler's noise along the recurrence: ``s ← (1−β_a)·s + β_a·z`` before the step at age a, z like ``s_0``.

    Args:
        beta: β.
        schedule: how β falls with the age: ``inverse`` β/(1+a), ``linear`` β·(1−a/r) or ``constant``.

    Raises:
        ValueError: for values out of range.
    """

    beta: float = 0.1
    schedule: NoiseSchedule = "inverse"

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta={self.beta} must lie between 0 and 1")
        if self.schedule not in NOISE_SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is unknown; take one of {', '.join(sorted(NOISE_SCHEDULES))}")


@dataclass(frozen=True)
class Consistency:
    """How far shallow read-outs are from deep ones of the same position; the deep side gets no gradient.

    ``kl · KL(p_deep ‖ p_shallow) + latent · ‖n(s_shallow) − n(s_deep)‖² / ‖n(s_deep)‖²``, n the model's norm.

    Args:
        kl: weight of the divergence, per nat.
        latent: weight of the squared distance of states, relative to the deep one.

    Raises:
        ValueError: for negative weights, or none.
    """

    kl: float = 1.0
    latent: float = 0.0

    def __post_init__(self) -> None:
        if min(self.kl, self.latent) < 0 or not self.kl + self.latent:
            raise ValueError(f"kl={self.kl} and latent={self.latent} must be at least 0, and one of them above it")

    def __call__(
        self,
        model: RecurrentDepthForCausalLM,
        logits: Float[Tensor, "places vocab"],
        states: Float[Tensor, "places dim"],
        deep_logits: Float[Tensor, "places vocab"],
        deep_states: Float[Tensor, "places dim"],
    ) -> Float[Tensor, " places"]:
        """The distance at every place; states before the norm."""
        distance = logits.new_zeros(len(logits))
        if self.kl:
            deep = deep_logits.detach().log_softmax(-1)
            distance = distance + self.kl * (deep.exp() * (deep - logits.log_softmax(-1))).sum(-1)
        if self.latent:
            target = model.norm(deep_states).detach()
            gap = (model.norm(states) - target).square().sum(-1) / target.square().sum(-1)
            distance = distance + self.latent * gap
        return distance


class WavefrontLoss:
    """Cross-entropy of the true next token, read out of every lane of training-time wavefronts.

    Windows of W lanes begin at places of the answers (see ``fronts``). Everything before a window is committed: its
    keys are those of the deep pass's last recurrence, or of a pass of ``prefill_steps`` recurrences, and gradients flow
    into them. Lane j opens at step ``o_j`` (see
    ``schedule``), runs until R = r + ``more_recurrences`` are over, with r those of the deep pass, and so is read out
    at depth ``R − o_j·r'``; in every recurrence it attends to the committed keys and to the newest ones of the lanes
    before it. With ``a_j`` the lanes' states, the loss is the mean of ``−log C(a_j)[y_{c+j+1}] + consistency`` over
    open lanes with a target (times ``drafts.wrong`` where the lane or one before it in the window does not hold the
    true token).

    Gradients flow through the steps that hold the last ``backprop_depth`` recurrences.

    Args:
        schedule: which lane opens when: :class:`Staircase`, :class:`IndependentDepths` or :class:`SingleLanes`.
        windows: per row of the batch; the cost of a recurrence is ``windows · width`` positions a row.
        drafts: inputs that are the model's own; None shows the true text.
        noise: on the states; None adds none.
        momentum: η, weight of the previous embedding.
        consistency: pulls every lane to the deep pass at its position; None leaves it out.
        backprop_depth: None takes the deep pass's.
        more_recurrences: that windows get beyond the deep pass's: where lanes open many at a time on guessed tokens,
            the drafts before them have to come right first.
        fronts: where windows begin: ``random`` places of the answers, or the ``first`` token of each, where a sampler
            that opens all lanes of an answer at once begins.
        prefill_steps: recurrences of the committed text, for samplers that read prompts in so lightly; None takes
            those of the deep pass, otherwise it is a pass of its own.

    Raises:
        ValueError: for values out of range.
    """

    through_states: ClassVar[bool] = False

    def __init__(
        self,
        schedule: Schedule,
        windows: int = 4,
        drafts: DraftExposure | None = None,
        noise: StateNoise | None = None,
        momentum: float = 0.0,
        consistency: Consistency | None = None,
        backprop_depth: int | None = None,
        more_recurrences: int = 0,
        fronts: Fronts = "random",
        prefill_steps: int | None = None,
    ):
        problems = [] if windows >= 1 else [f"windows={windows} must be at least 1"]
        if more_recurrences < 0:
            problems.append(f"more_recurrences={more_recurrences} must be at least 0")
        if not 0 <= momentum < 1:
            problems.append(f"momentum={momentum} must be at least 0 and below 1")
        if backprop_depth is not None and backprop_depth < 1:
            problems.append(f"backprop_depth={backprop_depth} must be at least 1")
        if prefill_steps is not None and prefill_steps < 1:
            problems.append(f"prefill_steps={prefill_steps} must be at least 1, or null")
        if drafts is not None and drafts.share and isinstance(schedule, IndependentDepths):
            problems.append("drafts need lanes that open one after the other: take a Staircase, or drafts=null")
        if fronts not in get_args(Fronts):
            problems.append(f"fronts={fronts!r} must be one of {', '.join(get_args(Fronts))}")
        if problems:
            raise ValueError("; ".join(problems))
        self.schedule = schedule
        self.windows = windows
        self.drafts = drafts
        self.noise = noise
        self.momentum = momentum
        self.consistency = consistency
        self.backprop_depth = backprop_depth
        self.more_recurrences = more_recurrences
        self.fronts = fronts
        self.prefill_steps = prefill_steps

    def plan(
        self,
        batch: Mapping[str, Tensor],
        deep: DeepPass,
        vocab: int,
        progress: float,
        generator: torch.Generator | None,
    ) -> Plan:
        """Draw windows, openings, drafting windows and random tokens."""
        fronts = draw_fronts(batch["labels"], self.windows, generator, self.fronts)
        shape = (len(fronts), self.windows)
        inner, recurrences = self.schedule.inner_steps, deep.depth + self.more_recurrences
        opens = self.schedule.opens(shape, -(-recurrences // inner), progress, generator)
        drafts = self.drafts or DraftExposure(share=0.0)
        replaced = None
        if drafts.random_tokens:
            other = torch.randint(vocab, opens.shape, generator=generator)
            hit = torch.rand(opens.shape, generator=generator) < drafts.random_tokens
            hit[..., 0] = False  # the first lane's token is final
            replaced = other.masked_fill(~hit, -1)
        return Plan(
            fronts=fronts,
            opens=opens,
            recurrences=recurrences,
            inner_steps=inner,
            drafting=torch.rand(shape, generator=generator) < drafts.share,
            replaced=replaced,
            momentum=self.momentum,
            noise=self.noise.beta if self.noise else 0.0,
            noise_schedule=self.noise.schedule if self.noise else "inverse",
            backprop_depth=self.backprop_depth or len(deep.states),
            checkpoint_recurrences=deep.checkpoint_recurrences,
        )

    def __call__(
        self,
        model: RecurrentDepthForCausalLM,
        batch: Mapping[str, Tensor],
        deep: DeepPass,
        progress: float,
        generator: torch.Generator | None,
    ) -> Loss:
        """The term of a batch; see :class:`Term`."""
        plan, ids, text = self.plan(batch, deep, model.config.vocab_size, progress, generator), batch["input_ids"], deep
        if self.prefill_steps is not None:
            text = deep_pass(
                model,
                ids,
                self.prefill_steps,
                self.prefill_steps,
                checkpoint_recurrences=deep.checkpoint_recurrences,
            )
        run = WaveRun(model, ids, text, plan)
        return self.loss(model, batch["labels"], deep, run.positions.flatten(1), run.run())

    def loss(
        self, model: RecurrentDepthForCausalLM, labels: Tensor, deep: DeepPass, positions: Tensor, look: Look
    ) -> Loss:
        """The loss of what the lanes read out; positions [batch, lanes]."""
        assert look.logits is not None
        targets = F.pad(labels[:, 1:], (0, 1), value=-100).gather(1, positions)
        counted = look.opened.flatten(1) & (targets != -100)
        targets = targets.masked_fill(~counted, -100).flatten()
        logits = look.logits.flatten(0, 1)
        losses = F.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
        if self.consistency is not None:
            row = torch.arange(len(positions), device=positions.device)[:, None]
            teacher = deep.logits[row, positions].flatten(0, 1), deep.states[-1][row, positions].flatten(0, 1)
            distance = self.consistency(model, logits, look.states.flatten(0, 1), *teacher)
            losses = losses + distance * counted.flatten()
        if self.drafts is not None and self.drafts.wrong != 1.0:
            losses = torch.where(look.right.flatten(), losses, self.drafts.wrong * losses)
        total = losses.sum()
        with torch.no_grad():
            count = counted.sum().clamp(min=1)
            right = (logits.argmax(-1) == targets).sum() / count
            inputs = (look.right.flatten(1) & counted).sum() / count
            mean_depth = (look.age.flatten(1) * counted).sum() / count
        return Loss(total, count, {"accuracy": right, "right_inputs": inputs, "lane_depth": mean_depth})


class DepthConsistency:
    """Pulls a shallow read-out of the deep pass itself towards its final one (see :class:`Consistency`).

    One shallow depth d is drawn for each batch, uniformly among the recurrences before the last that gradients flow
    through; the mean distance over the positions that predict a labelled token is the loss. Nothing to do where the
    pass has no such recurrence (r = 1).

    Args:
        distance: what is pulled, and how much.
    """

    through_states: ClassVar[bool] = True

    def __init__(self, distance: Consistency):
        self.distance = distance

    def __call__(
        self,
        model: RecurrentDepthForCausalLM,
        batch: Mapping[str, Tensor],
        deep: DeepPass,
        progress: float,
        generator: torch.Generator | None,
    ) -> Loss:
        """The term of a batch; see :class:`Term`."""
        counted = batch["labels"][:, 1:] != -100
        count = counted.sum().clamp(min=1)
        if len(deep.states) < 2:
            return Loss(deep.logits.sum() * 0.0, count)
        which = int(torch.randint(len(deep.states) - 1, (), generator=generator))
        logits = model.decode(deep.states[which], None, deep.span)
        student = logits[:, :-1].flatten(0, 1), deep.states[which][:, :-1].flatten(0, 1)
        teacher = deep.logits[:, :-1].flatten(0, 1), deep.states[-1][:, :-1].flatten(0, 1)
        distance = self.distance(model, *student, *teacher)
        with torch.no_grad():
            agree = ((student[0].argmax(-1) == teacher[0].argmax(-1)) & counted.flatten()).sum() / count
        return Loss((distance * counted.flatten()).sum(), count, {"agreement": agree})


class Contraction:
    """Lets states come to rest sooner: how much of a move the next recurrence repeats.

    The states of the deep pass get up to ``more_recurrences`` further ones, a number drawn for each batch, without
    gradients. With s what comes of that, R the recurrence, all positions at once, and ``v = R(s) − s`` their last move,

        ``‖R(s + v) − R(s)‖² / (‖v‖² + ‖R(s + v) − R(s)‖²)``

    is the loss of a position: 0 where the next move is none, ½ where it is as long as the last. Gradients flow through
    both recurrences, not into s and v: they change how fast R contracts, not where to. Counted is every position up
    to a row's last labelled one, prompts too: a lane rests when all before it have settled. Moves of rounding's size
    count for nothing.

    That is a Jacobian regularisation (Bai, Koltun and Kolter 2021, arXiv 2106.14342) along the last move instead of at
    random: many recurrences leave the directions that contract most slowly, as a power iteration does.

    Args:
        more_recurrences: beyond the deep pass's, at most: those that samplers take in the end.

    Raises:
        ValueError: for a negative number.
    """

    through_states: ClassVar[bool] = False

    def __init__(self, more_recurrences: int = 8):
        if more_recurrences < 0:
            raise ValueError(f"more_recurrences={more_recurrences} must be at least 0")
        self.more_recurrences = more_recurrences

    def __call__(
        self,
        model: RecurrentDepthForCausalLM,
        batch: Mapping[str, Tensor],
        deep: DeepPass,
        progress: float,
        generator: torch.Generator | None,
    ) -> Loss:
        """The term of a batch; see :class:`Term`."""
        more = int(torch.randint(self.more_recurrences + 1, (), generator=generator))
        s, depth = deep.states[-1].detach(), deep.depth + more
        with torch.no_grad():
            for done in range(deep.depth, depth):
                s = model.recur(deep.embedded, s, None, deep.span, done)
        run = recompute if deep.checkpoint_recurrences and torch.is_grad_enabled() else call
        moved = [s]
        for done in (depth, depth + 1):  # like the states of the deep pass, so that its compiled graphs serve
            fixed = moved[-1].detach().requires_grad_(torch.is_grad_enabled())
            moved.append(run(model.recur, deep.embedded, fixed, None, deep.span, done))
        s, first, second = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in moved)
        before, after = (first.detach() - s).square().sum(-1), (second - first).square().sum(-1)
        size = first.detach().square().sum(-1)
        device = s.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else moved[0].dtype
        rounding = (ROUNDING * torch.finfo(dtype).eps) ** 2 * size
        left = after / (before + after + rounding)
        counted = (batch["labels"] != -100).flip(1).cumsum(1).flip(1) > 0
        count = counted.sum().clamp(min=1)
        with torch.no_grad():
            move = ((before / size).sqrt() * counted).sum() / count
        return Loss((left * counted).sum(), count, {"move": move})
