"""Replaying a trace: the text at every step is the engine's own; looking on costs nothing that is counted."""

import time

import numpy as np
import pytest
import torch

from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.sampling import Adaptive, Autoregressive, DiffusionForcing, Exact, Replay, Speculative, Trace, Tracers

SAMPLERS = {
    "autoregressive": Autoregressive(num_steps=3),
    "adaptive": Adaptive(num_steps=5),
    "diffusion_forcing": DiffusionForcing(num_steps=8, inner_steps=2, max_wavefront=5),
    "headway": DiffusionForcing(num_steps=6, inner_steps=1, headway=3, max_wavefront=8, exit_threshold=0.3),
    "no_prefill": DiffusionForcing(num_steps=6, inner_steps=2, prefill_steps=0, max_wavefront=8),
    "exact": Exact(num_steps=5, max_wavefront=6, draft_depth=2, confirm_flips=True, readout_growth=1.5),
    "speculative": Speculative(num_steps=4, draft_tokens=4),
}
PROMPTS = [[1, 2, 3], [4], [5, 6]]


@pytest.fixture(scope="module")
def model() -> RecurrentDepthForCausalLM:
    torch.manual_seed(0)
    return RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=30, hidden_size=32, num_attention_heads=2)).eval()


class Shadow:
    """Compares a replay of every row with the engine itself, after each step."""

    def __init__(self) -> None:
        self.engine = None
        self.seen = self.drafts = self.headway = 0

    def start(self, prompts) -> None:
        self.replays = [Replay(p, i) for i, p in enumerate(prompts)]
        self.opened = [False] * len(prompts)

    def record(self, step) -> None:
        front = self.engine.front
        for row, replay in enumerate(self.replays):
            if not (step.positions[row] >= 0).any():
                continue
            if not self.opened[row]:
                replay.open(step)
                self.opened[row] = True
            assert replay.advance(step)
            assert replay.front == front.front[row]
            assert replay.committed == front.new_tokens(row)
            if not front.finished[row]:  # guesses for lanes that have only been opened are not in the trace yet
                behind = max(replay.front + 1, replay.prompt_length)
                drafts = replay.drafts
                assert drafts == front.tokens[row, behind : behind + len(drafts)].tolist()
                assert len(drafts) >= front.front[row] + front.width[row] - behind - self.headway
                self.drafts += len(drafts)
            self.seen += 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_replay_says_what_the_engine_says(name, model, monkeypatch) -> None:
    sampler, shadow, trace = SAMPLERS[name], Shadow(), Trace()
    shadow.headway = sampler.policy().headway
    make = type(sampler)._engine

    def engine(self, *call):
        shadow.engine = make(self, *call)
        return shadow.engine

    monkeypatch.setattr(type(sampler), "_engine", engine)
    watched = sampler(model, PROMPTS, max_new_tokens=9, stop_tokens=[7, 11], trace=Tracers((shadow, trace)))
    assert shadow.seen == sum(len(trace.steps_of(row)) for row in range(3)) > 5
    assert (shadow.drafts > 0) == (name not in ("autoregressive", "adaptive"))
    assert watched.tokens == sampler(model, PROMPTS, max_new_tokens=9, stop_tokens=[7, 11]).tokens
    for replay, tokens in zip(shadow.replays, watched.tokens, strict=True):
        assert replay.committed in (tokens, [])  # nothing was replayed where the first token ended the text
    assert sum(r.flips for r in shadow.replays) == watched.stats.flips


class Slow:
    """A tracer that takes its time."""

    def start(self, prompts) -> None:
        self.seconds: list[float] = []

    def record(self, step) -> None:
        self.seconds.append(step.seconds)
        time.sleep(0.05)


def test_the_time_of_tracers_is_not_counted(model) -> None:
    slow = Slow()
    result = Autoregressive(num_steps=2)(model, [[1, 2]], max_new_tokens=9, trace=slow)
    assert len(slow.seconds) == 8
    assert np.all(np.diff(slow.seconds) > 0)
    assert slow.seconds[-1] <= result.stats.decode_seconds < 0.3  # 0.4 s were slept
