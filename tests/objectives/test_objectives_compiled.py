"""Terms on a model whose seams are compiled: the same numbers, and no graph made anew after the first steps."""

import torch
import torch._dynamo
from torch._dynamo.utils import counters

from recdepth import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.objectives import (
    Consistency,
    Contraction,
    DepthConsistency,
    DraftExposure,
    Staircase,
    WavefrontLoss,
    Weighted,
)

TERMS = {
    "drafts": WavefrontLoss(
        Staircase(4), windows=2, drafts=DraftExposure(0.7, 0.1), momentum=0.1, consistency=Consistency()
    ),
    "depth_consistency": DepthConsistency(Consistency(latent=0.1)),
    "contraction": Contraction(more_recurrences=2),
}


def make() -> RecurrentDepthForCausalLM:
    torch.manual_seed(0)
    config = RecurrentDepthConfig(
        vocab_size=16, hidden_size=16, num_attention_heads=2, core_layers=1, mean_recurrence=4, backprop_depth=2
    )
    return RecurrentDepthForCausalLM(config)


def test_compiled_seams_serve_every_step_with_the_same_graphs(monkeypatch) -> None:
    """Traced without a compiler: what recompiles and what breaks shows in the tracing."""
    torch._dynamo.reset()
    counters.clear()
    eager, compiled = make(), make()
    for name in ("embed", "recur", "decode"):
        seam = torch.compile(getattr(compiled, name), dynamic=False, backend="eager")
        monkeypatch.setitem(vars(compiled), name, seam)
    objective = Weighted({"next_token": 1.0, "drafts": 1.0, "depth_consistency": 0.5, "contraction": 0.5}, TERMS)
    ids = torch.randint(16, (2, 20))
    batch, graphs = {"input_ids": ids, "labels": ids}, []
    for number in range(6):  # depths 10, 4, 6, 7, 1, 3
        values = []
        for model in (eager, compiled):
            torch.manual_seed(number)
            loss = objective(model, batch, 1.0, torch.Generator().manual_seed(number))
            model.zero_grad()
            loss.mean.backward()
            values.append((loss.mean, torch.stack([p.grad.norm() for p in model.parameters()])))
        torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1] <= 12
    assert not counters["graph_break"]
