"""How soon states come to rest, from the command line to JSON and picture."""

import json

import numpy as np
import pytest
import torch

from benchmarks import settling
from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.sampling import Autoregressive, Exact


def tiny(gain: float) -> RecurrentDepthForCausalLM:
    torch.manual_seed(0)
    config = RecurrentDepthConfig(
        vocab_size=64, hidden_size=16, num_attention_heads=2, core_layers=1, max_position_embeddings=256
    )
    model = RecurrentDepthForCausalLM(config).eval()
    with torch.no_grad():
        model.injection.weight[:, :16] *= gain  # how much of a state outlasts a recurrence
    return model


def test_a_position_rests_when_all_before_it_do() -> None:
    text = np.array([[9, 9, 9, 9], [1, 9, 1, 9], [1, 1, 1, 9], [1, 1, 1, 9]])
    assert settling.rest(text, 1.0).tolist() == [2, 3, 3, 4]


def test_moves_are_those_of_decoding() -> None:
    """With keys of every depth, whose states a sampler leaves in its buffers; labels say where a text ends."""
    model = tiny(1.0).double()
    prompt = [3, 1, 4]
    seen = []
    recur = model.recur
    model.recur = lambda e, s, *rest: seen.append((s.clone(), recur(e, s, *rest))) or seen[-1][1]
    tokens = Autoregressive(num_steps=6)(model, [prompt], max_new_tokens=5).tokens[0]
    del model.recur
    ids = torch.tensor([[*prompt, *tokens, 0, 0]])
    (text,) = settling.moves(model, {"input_ids": ids, "labels": ids.masked_fill(torch.arange(10) > 7, -100)}, 6)
    assert text.shape == (6, 8)
    for depth in range(6):
        lanes = [seen[depth], *(seen[6 * n + depth] for n in range(1, 5))]  # the prefill, then token by token
        theirs = torch.cat([((after - s).norm(dim=-1) / after.norm(dim=-1))[0] for s, after in lanes])
        np.testing.assert_allclose(text[depth, :7], theirs.numpy(), rtol=1e-9)


def test_what_contracts_faster_rests_sooner(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    words = []
    for name, gain in (("slow", 2.0), ("fast", 0.1)):
        tiny(gain).save_pretrained(tmp_path / name)
        words.append(f"{name}={tmp_path / name}")
    data = ["--data", "word_problems", "task.max_steps=4", "batch_size=4"]
    out = tmp_path / "out"
    assert settling.main([*words, *data, "--num-steps", "12", "--device", "cpu", "--out", str(out)]) == 0
    found = json.loads((out / "settling.json").read_text())["models"]
    assert found["fast"]["rest"]["256"][0] < found["slow"]["rest"]["256"][0] <= 12
    assert found["fast"]["texts"] == 4 and len(found["fast"]["moves"]["0.5"]) == 12
    assert (out / "settling.png").stat().st_size > 1000
    assert "fast: at rest within 16 units after" in capsys.readouterr().out
    work = []
    for word in words:
        model = RecurrentDepthForCausalLM.from_pretrained(word.partition("=")[2])
        stats = Exact(num_steps=12, group=8, settle=256)(model, [[3, 1, 4]], max_new_tokens=8).stats
        work.append(stats.token_passes / stats.new_tokens)
    assert work[1] < work[0]


def test_mistakes_are_named(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert settling.main([str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
    for words, message in ((["a=x", "a=y"], "a is there twice"), (["x", "--num-steps", "0"], "at least 1")):
        with pytest.raises(SystemExit):
            settling.main(words)
        assert message in capsys.readouterr().err
