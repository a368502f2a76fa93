"""What the sampler would meet on a batch of known texts: how soon drafts are right, flip less and settle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from recdepth.models import RecurrentDepthForCausalLM
from recdepth.objectives import DeepPass, Plan, SingleLanes, Staircase, WaveRun, deep_pass
from recdepth.objectives.lanes import draw_fronts


@dataclass(kw_only=True)
class SamplerView:
    """Counts over batches of known texts, of wavefronts of the sampler (r' = 1, shared KV) at random places.

    Every lane goes on until the last one of its window has reached the largest depth, on the model's own drafts; what
    counts of it are its read-outs up to that depth.

    Attributes:
        depths: at which drafts are compared with the true text.
        threshold: a lane has settled when ``‖s − s_prev‖ / ‖s‖`` falls below, one recurrence apart.
        width, headway, windows: lanes of a window, lanes opened a step, windows of a row.
        right, read: right drafts and all, by age in recurrences.
        flips, drafts: drafts that changed, and lanes that drafted.
        settling, lanes: sum of the recurrences until lanes settled, and how many lanes.
        agreeing, compared: positions where shared and per-depth KV predict the same token, and all.
    """

    depths: Sequence[int] = (1, 2, 4, 8)
    threshold: float = 0.03
    width: int = 8
    headway: int = 1
    windows: int = 2
    right: dict[int, float] = field(default_factory=dict, init=False)
    read: dict[int, float] = field(default_factory=dict, init=False)
    flips: float = field(default=0.0, init=False)
    drafts: float = field(default=0.0, init=False)
    settling: float = field(default=0.0, init=False)
    lanes: float = field(default=0.0, init=False)
    agreeing: float = field(default=0.0, init=False)
    compared: float = field(default=0.0, init=False)

    def metrics(self) -> dict[str, float]:
        """``draft_accuracy_depth_<d>``, ``flips_per_token``, ``recurrences_to_convergence``, ``kv_agreement``."""
        found = {f"draft_accuracy_depth_{d}": self.right[d] / n for d, n in self.read.items() if n}
        rates = {
            "flips_per_token": (self.flips, self.drafts),
            "recurrences_to_convergence": (self.settling, self.lanes),
            "kv_agreement": (self.agreeing, self.compared),
        }
        return found | {name: total / count for name, (total, count) in rates.items() if count}

    @torch.no_grad()
    def add(
        self, model: RecurrentDepthForCausalLM, input_ids: Tensor, labels: Tensor, num_steps: int, seed: int = 0
    ) -> None:
        """Count a batch; the draws depend on the seed alone.

        Args:
            model: in eval mode.
            input_ids, labels: [batch, time]; labels are not shifted, -100 ignored.
            num_steps: recurrences of the text before the windows, and of both sides of ``kv_agreement``.
            seed: of the places and of the noise.
        """
        deep = deep_pass(model, input_ids, num_steps, 1, seed=seed)
        targets = F.pad(labels[:, 1:], (0, 1), value=-100)
        plan = self._plan(draw_fronts(labels, self.windows, torch.Generator().manual_seed(seed)), seed)
        run = WaveRun(model, input_ids, deep, plan)
        self._count(run, plan.steps, targets.gather(1, run.positions.flatten(1)))
        self._compare_keys(model, input_ids, targets, deep, seed)

    def _plan(self, fronts: Tensor, seed: int) -> Plan:
        """Windows at these places, until their last lanes have the largest depth."""
        steps = max(self.depths) - (1 - self.width) // self.headway
        opens = Staircase(self.width, self.headway).opens((len(fronts), self.windows), steps, 1.0, None)
        return Plan(fronts, opens, steps, 1, torch.ones(fronts.shape, dtype=torch.bool), seed=seed)

    def _count(self, run: WaveRun, steps: int, wanted: Tensor) -> None:
        """Go through the steps of the windows; ``wanted`` are the true tokens behind the lanes."""
        deepest = max(self.depths)
        said = torch.full_like(wanted, -1)
        settled = torch.full(wanted.shape, deepest, device=wanted.device)
        ever = torch.zeros_like(wanted, dtype=torch.bool)
        for number in range(steps):
            look = run.step(number)
            assert look.logits is not None
            age = look.age.flatten(1)
            now = look.opened.flatten(1) & (age <= deepest) & (wanted != -100)
            proposals = look.logits.argmax(-1)
            self.flips += float((now & (said >= 0) & (proposals != said)).sum())
            said = torch.where(look.opened.flatten(1), proposals, said)
            for depth in self.depths:
                at = now & (age == depth)
                self.read[depth] = self.read.get(depth, 0.0) + float(at.sum())
                self.right[depth] = self.right.get(depth, 0.0) + float((at & (proposals == wanted)).sum())
            moved = (look.states - look.before).norm(dim=-1) / look.states.norm(dim=-1)
            settled = torch.where(now & (moved < self.threshold), settled.minimum(age), settled)
            ever |= now
        self.drafts += float(ever.sum())
        self.lanes += float(ever.sum())
        self.settling += float(settled[ever].sum())

    def _compare_keys(
        self, model: RecurrentDepthForCausalLM, input_ids: Tensor, targets: Tensor, deep: DeepPass, seed: int
    ) -> None:
        """Shared against per-depth KV, both over the true text with the same noise."""
        batch, time = input_ids.shape
        fronts = torch.arange(time, device=input_ids.device).expand(batch, -1)
        opens = SingleLanes().opens((batch, time), deep.depth, 1.0, None)
        drafting = torch.zeros(batch, time, dtype=torch.bool)
        look = WaveRun(model, input_ids, deep, Plan(fronts, opens, deep.depth, 1, drafting, seed=seed)).run()
        assert look.logits is not None
        counted = targets != -100
        self.agreeing += float(((look.logits.argmax(-1) == deep.logits.argmax(-1)) & counted).sum())
        self.compared += float(counted.sum())
