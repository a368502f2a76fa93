"""The benchmark of training steps: every objective beside next_token, on the same depths."""

import json

import pytest
import torch

from benchmarks import objectives
from recdepth import RecurrentDepthConfig, RecurrentDepthForCausalLM


def test_it_times_objectives_in_turn_and_writes_them(tmp_path, monkeypatch, capsys) -> None:
    size = ["model=tiny", "model.hidden_size=32", "model.mean_recurrence=2", "data.batch_size=2"]
    words = ["--objectives", "aware,weighted", "--steps", "3", "--warmup", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["objectives.py", *words, "--set", *size])
    assert objectives.main() == 0
    found = json.loads((tmp_path / "objectives.json").read_text())
    rows = found["objectives"]
    assert list(rows) == ["next_token", "aware", "weighted"] and found["steps"] == 3 and not found["compiled"]
    assert rows["next_token"]["ratio"] == 1.0 and rows["aware"]["milliseconds"] > 0
    assert rows["weighted"]["token_passes"] == rows["next_token"]["token_passes"]  # nothing but next_token is weighted
    assert 1.0 < rows["aware"]["token_passes"] / rows["next_token"]["token_passes"] < 2.0
    table = (tmp_path / "objectives.md").read_text()
    assert table in capsys.readouterr().out and "| aware |" in table


def test_seconds_and_depths_belong_to_the_step(model_and_batch) -> None:
    model, batch = model_and_batch
    objective = objectives.checks.build(objectives.config(["model=tiny"], "weighted"), "objective")
    counts = [objectives.token_passes(objective, model, [batch]) for _ in range(2)]
    assert counts[0] == counts[1] > 0
    assert objectives.step(objective, model, batch, 3) > 0
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture
def model_and_batch():
    ids = torch.randint(9, (2, 8))
    config = RecurrentDepthConfig(vocab_size=9, hidden_size=16, num_attention_heads=2, mean_recurrence=2)
    return RecurrentDepthForCausalLM(config), {"input_ids": ids, "labels": ids}
