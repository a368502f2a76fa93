"""The estimate of training memory against what autograd keeps, and against a whole step at Huginn's size."""

import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recdepth import memory as command
from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.objectives.next_token import next_token_loss
from recdepth.theory import training_memory, weights
from recdepth.training import Lora

SMALL = {"vocab_size": 50, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 168, "core_layers": 2}
HUGINN = {
    "vocab_size": 65536,
    "hidden_size": 5280,
    "num_attention_heads": 55,
    "intermediate_size": 17920,
    "prelude_layers": 2,
    "core_layers": 4,
    "coda_layers": 2,
    "max_position_embeddings": 4096,
}


def adapted(model: RecurrentDepthForCausalLM, rank: int) -> RecurrentDepthForCausalLM:
    if rank:
        pytest.importorskip("peft")
        Lora(r=rank).add_to(model)
    return model


def kept_by_autograd(model: RecurrentDepthForCausalLM, batch: int, length: int, **settings) -> int:
    """Bytes of all storages that the graph holds, but for weights and the rotary table."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), model.rope_table(torch.device("cpu"))]}
    seen = []

    def pack(tensor):
        seen.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    ids = torch.randint(model.config.vocab_size, (batch, length))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = next_token_loss(model(ids, **settings).logits, ids, 1)  # its latents are gone now
    alive = {storage.data_ptr(): storage.nbytes() for ref in seen if (storage := ref()) is not None}
    size = sum(nbytes for address, nbytes in alive.items() if address not in own)
    loss.mean.backward()
    return size


@pytest.mark.parametrize("again", [False, True], ids=["all kept", "computed again"])
@pytest.mark.parametrize("rank", [0, 8], ids=["all weights", "adapters"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "length", "depth"), [(1, 64, 3), (3, 96, 2)])
def test_what_is_kept_is_estimated_to_3_percent(dtype, rank, again, batch, length, depth):
    config = RecurrentDepthConfig(**SMALL, backprop_depth=depth)
    model = adapted(RecurrentDepthForCausalLM(config).to(dtype), rank)
    kept = kept_by_autograd(model, batch, length, num_steps=5, backprop_depth=depth, checkpoint_recurrences=again)
    estimate = training_memory(
        config,
        batch,
        length,
        weight_bytes=dtype.itemsize,
        checkpoint_recurrences=again,
        lora_rank=rank,
        fused_norms=False,
    )
    log_probabilities = 4 * batch * length * config.vocab_size
    assert kept == pytest.approx(estimate.kept + log_probabilities, rel=0.03)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert estimate.trained == trained
    assert estimate.weights == sum(p.nbytes for p in model.parameters())
    assert estimate.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "shape", [SMALL, HUGINN, SMALL | {"tie_word_embeddings": False, "qk_bias": False}, SMALL | {"exit_gate": True}]
)
def test_weights_are_counted_exactly(shape):
    with torch.device("meta"):
        model = RecurrentDepthForCausalLM(RecurrentDepthConfig(**shape))
    assert weights(model.config) == sum(p.numel() for p in model.parameters())


class Peak(TorchDispatchMode):
    """Follows the bytes of all tensors that are alive."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._alive = {}

    def see(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            size = storage.nbytes()
            self._alive[key] = weakref.ref(storage, lambda _: self._gone(key, size))
            self.now += size

    def _gone(self, key, size):
        del self._alive[key]
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor)
        self.peak = max(self.peak, self.now)
        return out


@pytest.mark.parametrize(
    ("rank", "dtype", "again", "low", "high"),
    [
        (16, torch.bfloat16, True, 0.98, 1.0),
        (16, torch.bfloat16, False, 0.98, 1.0),
        (0, torch.float32, False, 1.0, 1.12),
    ],
)
def test_a_whole_step_at_huginns_size(rank, dtype, again, low, high):
    """Every operation of forward and backward pass on tensors without data; the optimizer's state is not part of it."""
    config = RecurrentDepthConfig(**HUGINN, backprop_depth=8)
    with torch.device("meta"):
        model = adapted(RecurrentDepthForCausalLM(config).to(dtype), rank)
    with FakeTensorMode():
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    empty = torch.empty(weight.shape, dtype=weight.dtype)
                    module._parameters[name] = torch.nn.Parameter(empty, requires_grad=weight.requires_grad)
        model.tie_weights()
        model._rope.clear()
        peak = Peak()
        for weight in model.parameters():
            peak.see(weight.data)
        with peak:
            ids, state = torch.zeros(1, 1024, dtype=torch.long), torch.zeros(1, 1024, 5280, dtype=dtype)
            settings = {"num_steps": 10, "backprop_depth": 8, "checkpoint_recurrences": again, "initial_state": state}
            next_token_loss(model(ids, **settings).logits, ids, 1).mean.backward()
    estimate = training_memory(
        config,
        1,
        1024,
        weight_bytes=dtype.itemsize,
        checkpoint_recurrences=again,
        lora_rank=rank,
        fused_norms=False,
    )
    assert low < (estimate.peak - estimate.optimizer) / peak.peak < high


def test_the_recipe_for_24_gb_has_room_to_spare(capsys):
    pytest.importorskip("peft")
    assert command.main(["experiment=finetune/huginn_24gb", "model=huginn", "vocab_size=65536"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3,564.98 M parameters, 12.54 M trained; 4 × 1024 tokens at a time"
    total = float(next(line for line in lines if line.startswith("at most")).split()[2])
    assert 10 < total < 0.8 * 24e9 / 2**30


def test_the_command_takes_the_shape_of_a_checkpoint(tmp_path, capsys):
    pytest.importorskip("peft")
    RecurrentDepthForCausalLM(RecurrentDepthConfig(**SMALL)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()  # the weights are not needed
    words = ["experiment=finetune/lora", f"init_from={tmp_path}", "objective=aware", "model.backprop_depth=3"]
    assert command.main(words) == 0
    shown = capsys.readouterr().out
    assert "3 that gradients flow through" in shown
    assert "Not counted: what objective.weights adds (drafts)." in shown
    assert command.main(["model=tiny", "trainer=bf16"]) == 0
    assert "64 a token" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=finetune/full"], "init_from=null: model=pretrained has its shape from there"),
        (["model=hugin"], "did you mean huginn"),
        (["model=huginn", "vocab_size=many"], "vocab_size=many must be a number of tokens"),
        (["experiment=finetune/full", "init_from=./nowhere"], "init_from=./nowhere is no folder"),
        (["experiment=finetune/huginn_24gb"], "without it, name a shape: model=huginn vocab_size=65536"),
    ],
    ids=str,
)
def test_what_cannot_be_estimated_is_explained(words, message, capsys):
    assert command.main(words) == 2
    assert message in capsys.readouterr().err
