"""A training-time wavefront goes through the very states of the sampler."""

import numpy as np
import pytest
import torch

from recdepth.objectives import Plan, Staircase, WaveRun, deep_pass
from recdepth.sampling import DiffusionForcing, TokenChooser
from recdepth.sampling.decoding import Request
from recdepth.sampling.wavefront import Wavefront

SEED = 7


class TrueText(TokenChooser):
    """Chooses the tokens of a text, whatever the logits: no draft is ever wrong."""

    def __call__(self, logits, rows, positions):
        return torch.tensor(TrueText.text)[positions]


def sampler_steps(model, sampler, prompt, choose, steps, new_tokens):
    """Lanes' tokens, states and read-outs after each step of the engine."""
    wave = Wavefront(model, sampler.policy(model), choose, Request([prompt], [0], new_tokens), 1)
    found = []
    with torch.inference_mode():
        wave._admit()
        for number in range(steps):
            lanes = wave.front.lanes()
            tokens = wave.front.input_tokens(lanes)[0]
            wave.step(number)
            positions = torch.as_tensor(lanes.positions[0])
            found.append((tokens, wave.states[0, positions].clone(), np.array(wave.front.tokens[0])))
    return found


SETTINGS = [
    {},
    {"inner_steps": 2},
    {"inner_steps": 4, "num_steps": 6},  # the last step is a shorter one
    {"headway": 2},
    {"headway": 3, "momentum": 0.2},
    {"momentum": 0.3, "noise": 0.2},
    {"noise": 0.3, "noise_schedule": "linear", "headway": 4, "max_wavefront": 9},
    {"noise": 0.1, "noise_schedule": "constant", "inner_steps": 3},
    {"prefill_steps": 2, "inner_steps": 2},
]


# with more headway the sampler guesses what lanes open with: it cannot be told the true text then
CASES = [(True, each) for each in SETTINGS] + [(False, each) for each in SETTINGS if "headway" not in each]


@pytest.mark.parametrize(("drafting", "settings"), CASES, ids=str)
def test_a_window_goes_through_the_samplers_states(model, batch, settings, drafting) -> None:
    settings = {"num_steps": 6, "inner_steps": 1, "momentum": 0.0, "max_wavefront": 6, "headway": 1, **settings}
    sampler = DiffusionForcing(commit="depth", **settings)
    ids, front, width = batch["input_ids"][:1], 7, settings["max_wavefront"]
    TrueText.text = [*ids[0].tolist(), 0]
    choose = TokenChooser(seed=SEED) if drafting else TrueText(seed=SEED)
    prompt = ids[0, :front].tolist()
    # the first token of the engine is its own read-out of the prompt; the window is given it
    steps = -(-sampler.num_steps // sampler.inner_steps)
    engine = sampler_steps(model, sampler, prompt, choose, steps, new_tokens=11)
    ids = ids.clone()
    ids[0, front] = int(engine[0][0][0])

    with torch.no_grad():
        deep = deep_pass(model, ids, sampler.prefill_steps or sampler.num_steps, 1, seed=SEED)
        opens = Staircase(width, sampler.headway, sampler.inner_steps).opens((1, 1), steps, 1.0, None)
        run = WaveRun(
            model,
            ids,
            deep,
            Plan(
                fronts=torch.tensor([[front]]),
                opens=opens,
                recurrences=sampler.num_steps,
                inner_steps=sampler.inner_steps,
                drafting=torch.tensor([[drafting]]),
                momentum=sampler.momentum,
                noise=sampler.noise,
                noise_schedule=sampler.noise_schedule,
                seed=SEED,
            ),
        )
        changed = 0
        for number, (tokens, states, text) in enumerate(engine):
            look = run.step(number)
            lanes = len(tokens)
            assert look.opened[0, 0].sum() == lanes
            assert look.tokens[0, 0, :lanes].tolist() == tokens.tolist()
            torch.testing.assert_close(look.states[0, :lanes], states, rtol=0, atol=1e-12)
            if drafting:
                behind = slice(front + 1, front + 1 + lanes)
                assert run.text[0, 0, behind].tolist() == text[behind].tolist()
                changed += int((text[behind] != batch["input_ids"][0, behind].numpy()).sum())
        assert changed or not drafting  # the drafts were wrong ones


def test_many_windows_are_as_one_alone(model, batch) -> None:
    """Windows of a row, and rows of a batch, do not see each other, overlapping or not."""
    ids = batch["input_ids"]
    fronts = torch.tensor([[7, 9, 7], [3, 12, 16], [1, 2, 3]])
    opens = Staircase(5, (1, 2, 4)).opens((3, 3), 4, 1.0, torch.Generator().manual_seed(0))
    drafting = torch.tensor([[True, True, False], [False, True, True], [True, False, True]])
    settings = {"recurrences": 4, "inner_steps": 1, "seed": SEED, "noise": 0.1, "momentum": 0.1}
    with torch.no_grad():
        deep = deep_pass(model, ids, 4, 1, seed=SEED)
        whole = WaveRun(model, ids, deep, Plan(fronts, opens, drafting=drafting, **settings)).run()
        for window in range(3):
            part = np.s_[:, window : window + 1]
            plan = Plan(fronts[part], opens[part], drafting=drafting[part], **settings)
            alone = WaveRun(model, ids, deep, plan).run()
            assert torch.equal(alone.tokens, whole.tokens[part])
            opened = alone.opened[:, 0]
            ours, theirs = (x.states.unflatten(1, (-1, 5))[:, i] for x, i in ((whole, window), (alone, 0)))
            torch.testing.assert_close(ours[opened], theirs[opened], rtol=0, atol=1e-12)
            logits = [x.logits.unflatten(1, (-1, 5))[:, i] for x, i in ((whole, window), (alone, 0))]
            torch.testing.assert_close(logits[0][opened], logits[1][opened], rtol=0, atol=1e-12)
