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


@dataclass
class SamplerView:
    """Counts over batches, of :func:`sampler_view`; :meth:`metrics` makes shares and means of them.

    Attributes:
        right, read: right drafts and all, by age in recurrences.
        flips, drafts: drafts that changed, and lanes that drafted.
        settling, lanes: sum of the recurrences until lanes settled, and how many lanes.
        agreeing, compared: positions where shared and per-depth KV predict the same token, and all.
    """

    right: dict[int, float] = field(default_factory=dict)
    read: dict[int, float] = field(default_factory=dict)
    flips: float = 0.0
    drafts: float = 0.0
    settling: float = 0.0
    lanes: float = 0.0
    agreeing: float = 0.0
    compared: float = 0.0

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
def sampler_view(
    view: SamplerView,
    model: RecurrentDepthForCausalLM,
    input_ids: Tensor,
    labels: Tensor,
    *,
    num_steps: int,
    depths: Sequence[int] = (1, 2, 4, 8),
    threshold: float = 0.03,
    width: int = 8,
    headway: int = 1,
    windows: int = 2,
    seed: int = 0,
) -> None:
    """Add a batch to ``view``: wavefronts of the sampler (r' = 1, shared KV) at random places of the texts.

    Every lane goes on until the last one of its window has reached the largest depth, on the model's own drafts; what
    counts of it are its read-outs up to that depth. The draws depend on the seed alone.

    Args:
        view: gets the counts.
        model: in eval mode.
        input_ids, labels: [batch, time]; labels are not shifted, -100 ignored.
        num_steps: recurrences of the text before the windows, and of both sides of ``kv_agreement``.
        depths: at which drafts are compared with the true text.
        threshold: a lane has settled when ``‖s − s_prev‖ / ‖s‖`` falls below, one recurrence apart.
        width, headway, windows: lanes of a window, lanes opened a step, windows of a row.
        seed: of the places and of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    deep = deep_pass(model, input_ids, num_steps, 1, seed=seed)
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)
    fronts = draw_fronts(labels, windows, generator)
    deepest = max(depths)
    steps = deepest - (1 - width) // headway
    opens = Staircase(width, headway).opens((len(fronts), windows), steps, 1.0, None)
    drafting = torch.ones(fronts.shape, dtype=torch.bool)
    run = WaveRun(model, input_ids, deep, Plan(fronts, opens, steps, 1, drafting, seed=seed))
    wanted = targets.gather(1, run.positions.flatten(1))
    said = torch.full_like(wanted, -1)
    settled = torch.full(wanted.shape, deepest, device=wanted.device)
    ever = torch.zeros_like(wanted, dtype=torch.bool)
    for number in range(steps):
        look = run.step(number)
        assert look.logits is not None
        age = look.age.flatten(1)
        now = look.opened.flatten(1) & (age <= deepest) & (wanted != -100)
        proposals = look.logits.argmax(-1)
        view.flips += float((now & (said >= 0) & (proposals != said)).sum())
        said = torch.where(look.opened.flatten(1), proposals, said)
        for depth in depths:
            at = now & (age == depth)
            view.read[depth] = view.read.get(depth, 0.0) + float(at.sum())
            view.right[depth] = view.right.get(depth, 0.0) + float((at & (proposals == wanted)).sum())
        moved = (look.states - look.before).norm(dim=-1) / look.states.norm(dim=-1)
        settled = torch.where(now & (moved < threshold), settled.minimum(age), settled)
        ever |= now
    view.drafts += float(ever.sum())
    view.lanes += float(ever.sum())
    view.settling += float(settled[ever].sum())
    _compare_keys(view, model, input_ids, targets, deep, seed)


def _compare_keys(
    view: SamplerView, model: RecurrentDepthForCausalLM, input_ids: Tensor, targets: Tensor, deep: DeepPass, seed: int
) -> None:
    """Shared against per-depth KV, both over the true text with the same noise."""
    batch, time = input_ids.shape
    fronts = torch.arange(time, device=input_ids.device).expand(batch, -1)
    opens = SingleLanes().opens((batch, time), deep.depth, 1.0, None)
    drafting = torch.zeros(batch, time, dtype=torch.bool)
    look = WaveRun(model, input_ids, deep, Plan(fronts, opens, deep.depth, 1, drafting, seed=seed)).run()
    assert look.logits is not None
    counted = targets != -100
    view.agreeing += float(((look.logits.argmax(-1) == deep.logits.argmax(-1)) & counted).sum())
    view.compared += float(counted.sum())
