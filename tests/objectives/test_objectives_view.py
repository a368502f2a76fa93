"""The validation metrics that the sampler cares about, against the sampler itself."""

import numpy as np
import pytest
import torch

from recdepth.evaluation import SamplerView
from recdepth.sampling import DiffusionForcing, TokenChooser
from recdepth.sampling.decoding import Request
from recdepth.sampling.wavefront import Wavefront

SEED, WIDTH, DEEPEST = 2, 4, 5


@pytest.mark.parametrize("headway", [1, 2])
def test_the_view_counts_what_the_sampler_does(model, batch, monkeypatch, headway) -> None:
    """One window, begun where the engine begins; all that is read out and flips, by the engine's steps."""
    ids, front = batch["input_ids"][:1].clone(), 6
    settings = {"inner_steps": 1, "momentum": 0.0, "commit": "depth", "max_wavefront": WIDTH, "headway": headway}
    sampler = DiffusionForcing(num_steps=99, prefill_steps=4, **settings)  # nothing commits
    choose = TokenChooser(seed=SEED)
    engine = Wavefront(model, sampler.policy(model), choose, Request([ids[0, :front].tolist()], [0], 12), 1)
    right, read, flips, settled = {}, {}, 0, {}
    said: dict[int, int] = {}
    with torch.inference_mode():
        engine._admit()
        ids[0, front] = int(engine.front.tokens[0, front])
        for number in range(DEEPEST + WIDTH - 1):
            lanes = engine.front.lanes()
            before = engine.states.clone()
            engine.step(number)
            for p, age in zip(lanes.positions[0].tolist(), (lanes.age[0] + 1).tolist(), strict=True):
                proposal = int(engine.front.tokens[0, p + 1])
                if age <= DEEPEST:
                    flips += int(p in said and said[p] != proposal)
                    read[age] = read.get(age, 0) + 1
                    right[age] = right.get(age, 0) + int(proposal == ids[0, p + 1])
                    moved = (engine.states[0, p] - before[0, p]).norm() / engine.states[0, p].norm()
                    settled[p] = min(settled.get(p, DEEPEST), age if moved < 0.3 else DEEPEST)
                said[p] = proposal
    assert len(settled) == WIDTH
    monkeypatch.setattr("recdepth.evaluation.view.draw_fronts", lambda *_: torch.tensor([[front]]))
    view = SamplerView(depths=(1, 2, 3, 4, 5), threshold=0.3, width=WIDTH, windows=1, headway=headway)
    view.add(model, ids, ids, num_steps=4, seed=SEED)
    assert view.read == read and view.right == right and view.flips == flips > 0
    assert view.settling == sum(settled.values()) and view.lanes == view.drafts == WIDTH
    assert np.isclose(view.metrics()["draft_accuracy_depth_1"], right[1] / read[1])


def test_agreement_of_keys_is_counted_on_labelled_positions(model, batch) -> None:
    view = SamplerView(depths=(1,))
    view.add(model, **batch, num_steps=1)
    assert view.compared == (batch["labels"][:, 1:] != -100).sum()
    assert 0.5 < view.agreeing / view.compared <= 1.0
    again = SamplerView(depths=(1,))
    again.add(model, **batch, num_steps=1)
    assert view == again
