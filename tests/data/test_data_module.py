"""The data module for tasks: labels, shapes, resuming, curriculum, workers."""

from itertools import islice
from pathlib import Path

import lightning
import pytest
import torch
from tokenizers import processors
from torch import Tensor

from recdepth.data import ItemTooLongError, PointerChase, ReasoningGym, TaskData, WordProblems, byte_tokenizer


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def batches(data: TaskData, n: int) -> list[dict[str, Tensor]]:
    return list(islice(data.train_dataloader(), n))


def test_labels_by_hand() -> None:
    data = TaskData(WordProblems(), batch_size=2)
    batch = batches(data, 1)[0]
    for i in range(2):
        item = data.task.item("train", i)
        prompt = data.encode_prompt(item.prompt)
        answer = [*data.tokenizer(item.answer)["input_ids"], data.tokenizer.eos_token_id]
        rest = 112 - len(prompt) - len(answer)
        assert batch["input_ids"][i].tolist() == prompt + answer + [data.tokenizer.pad_token_id] * rest
        assert batch["labels"][i].tolist() == [-100] * len(prompt) + answer + [-100] * rest


@pytest.mark.parametrize("tokenizer", [None, byte_tokenizer()])
def test_shapes_are_static(tokenizer) -> None:
    length = 112 if tokenizer is None else 500
    data = TaskData(WordProblems(), tokenizer, length, length * 3 // 5, batch_size=16, validation_items=21)
    held_out = list(data.val_dataloader())
    assert len(held_out) == 2
    for batch in batches(data, 40) + held_out:
        for key in ("input_ids", "labels"):
            assert batch[key].shape == (16, length)
            assert batch[key].dtype == torch.int64
        assert 0 <= batch["input_ids"].min() <= batch["input_ids"].max() < len(data.tokenizer)
    assert (held_out[1]["labels"][5:] == -100).all()
    assert (held_out[1]["labels"][:5] != -100).any(dim=1).all()
    assert [equal(a, b) for a, b in zip(held_out, data.val_dataloader(), strict=True)] == [True, True]


def test_evaluation_items_and_score() -> None:
    data = TaskData(WordProblems())
    items = data.evaluation_items(20)
    assert items == data.evaluation_items(30)[:20] == TaskData(WordProblems()).evaluation_items(20)
    for evaluation_item in items:
        assert data.encode_prompt(evaluation_item.prompt) == evaluation_item.prompt_ids
        assert len(evaluation_item.prompt_ids) + data.max_new_tokens <= data.sequence_length
        assert evaluation_item.answer_ids[-1] in data.stop_tokens
        assert data.decode(evaluation_item.answer_ids) == evaluation_item.answer
        assert data.score(evaluation_item, evaluation_item.answer_ids) == 1.0
        assert data.score(evaluation_item, [*evaluation_item.answer_ids, 5, 6]) == 1.0
        assert data.score(evaluation_item, evaluation_item.answer_ids[:-2]) == 0.0
        assert data.score(evaluation_item, []) == 0.0
    assert not {e.prompt for e in items} & {e.prompt for e in data.evaluation_items(20, "validation")}


def test_resume_gives_the_same_next_batch() -> None:
    data = TaskData(PointerChase(level=2), sequence_length=80, max_new_tokens=36)
    stream = iter(data.train_dataloader())
    for _ in range(45):
        next(stream)
    state = data.state_dict()
    assert state == {"position": 45, "level": 2}
    resumed = TaskData(PointerChase(), sequence_length=80, max_new_tokens=36)
    resumed.load_state_dict(state)
    assert resumed.level == 2
    for ours, theirs in zip(batches(resumed, 40), islice(stream, 40), strict=True):
        assert equal(ours, theirs)


class Recorder(lightning.LightningModule):
    """Records the batches that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch["input_ids"])
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, steps: int, resume: str | None = None, **settings: object) -> tuple[Recorder, TaskData, str]:
    data, module = TaskData(WordProblems(), batch_size=4, validation_items=8), Recorder()
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **settings,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    path = str(folder / f"{steps}.ckpt")
    trainer.save_checkpoint(path)
    return module, data, path


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_training_sees_the_batches_of_an_unbroken_one(tmp_path: Path) -> None:
    often = {"val_check_interval": 3, "check_val_every_n_epoch": None, "limit_train_batches": 5}
    whole, _, _ = fit(tmp_path, 12, **often)
    first, data, path = fit(tmp_path, 7, **often)
    assert data.state_dict() == {"position": 7}
    second, data, _ = fit(tmp_path, 12, resume=path, **often)
    assert data.state_dict() == {"position": 12}
    assert torch.equal(torch.stack(first.seen + second.seen), torch.stack(whole.seen))
    assert torch.equal(whole.seen[11], batches(TaskData(WordProblems(), batch_size=4), 12)[11]["input_ids"])


@pytest.mark.filterwarnings("ignore")
def test_overfitting_repeats_the_same_batches(tmp_path: Path) -> None:
    module, _, _ = fit(tmp_path, 6, overfit_batches=2, limit_val_batches=0)
    for i in range(6):
        assert torch.equal(module.seen[i], module.seen[i % 2])
    assert not torch.equal(module.seen[0], module.seen[1])


def test_a_new_level_counts_from_the_next_batch() -> None:
    data = TaskData(PointerChase(level=1), sequence_length=80, max_new_tokens=36, batch_size=32)
    stream = iter(data.train_dataloader())
    for _ in range(5):
        next(stream)
    assert (data.level, data.max_level) == (1, 8)
    data.level = 5
    batch = next(stream)
    validation = next(iter(data.val_dataloader()))
    assert data.level == 5
    want = TaskData(PointerChase(level=5), sequence_length=80, max_new_tokens=36, batch_size=32)
    want.load_state_dict({"position": 5})
    assert equal(batch, batches(want, 1)[0])
    want.level = 8
    assert equal(validation, next(iter(want.val_dataloader())))
    assert want.evaluation_items(20, "validation") != data.evaluation_items(20, "validation")
    assert want.evaluation_items(20) == data.evaluation_items(20)
    with pytest.raises(AttributeError, match="level"):
        _ = TaskData(WordProblems()).level


def test_workers_give_the_same_batches_and_learn_of_the_level() -> None:
    def make(num_workers: int) -> TaskData:
        return TaskData(PointerChase(level=1), None, 80, 36, batch_size=8, num_workers=num_workers)

    data, alone = make(2), make(0)
    stream = iter(data.train_dataloader())
    for want in batches(alone, 3):
        assert equal(next(stream), want)
    assert data.state_dict() == alone.state_dict()
    data.level = alone.level = 8
    next(stream)
    late = list(islice(stream, 12))[-1]
    alone.load_state_dict({"position": 15, "level": 8})
    assert equal(late, batches(alone, 1)[0])


def test_processes_share_the_stream_out() -> None:
    data = TaskData(WordProblems(), batch_size=4)
    whole = batches(data, 6)
    for rank in range(2):
        source = data._source().batches(rank, 2)
        for want, got in zip(whole[rank::2], source, strict=False):
            assert equal(want, got)


def test_long_items_are_left_out_on_request() -> None:
    settings = {"sequence_length": 112, "max_new_tokens": 52, "batch_size": 8}
    with pytest.raises(ItemTooLongError, match=r"data.max_new_tokens=52; set data.max_new_tokens=\d+ or more"):
        TaskData(WordProblems(), **settings)
    data = TaskData(WordProblems(), drop_long=True, **settings)
    batch = batches(data, 3)[-1]
    assert ((batch["labels"] != -100).sum(dim=1) <= 52).all()
    assert max(len(item.answer_ids) for item in data.evaluation_items(50)) <= 52
    assert equal(batch, batches(TaskData(WordProblems(), drop_long=True, **settings), 3)[-1])


def test_reasoning_gym_prompts_end_alike_in_training_and_sampling() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra 'tasks' is not installed")
    data = TaskData(ReasoningGym("chain_sum"), sequence_length=128, max_new_tokens=16)
    item = data.evaluation_items(1)[0]
    assert item.prompt.endswith("\n")
    assert data.encode_prompt(item.prompt.strip()) == data.encode_prompt(item.prompt) == item.prompt_ids
    assert data.score(item, item.answer_ids) == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0, "num_workers": -1}, r"data.batch_size=0 must be at least 1; data.num_workers=-1"),
        ({"max_new_tokens": 112}, r"data.max_new_tokens=112 leaves no room .*data.sequence_length=112; lower it or"),
        ({"validation_items": 0}, r"data.validation_items=0"),
        ({"sequence_length": 80}, r"prompt of \d+ tokens is longer than the 20 .*set data.sequence_length="),
    ],
)
def test_error_texts(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskData(WordProblems(), **settings)


def test_unknown_words_in_a_prompt_are_named() -> None:
    data = TaskData(WordProblems())
    with pytest.raises(ValueError, match=r"does not know: dogs, 7x; .*data.tokenizer"):
        data.encode_prompt("Zoe has 4 dogs 7x")
    with pytest.raises(ValueError, match="empty"):
        data.encode_prompt("")
    with pytest.raises(ValueError, match="empty"):
        TaskData(ReasoningGym("chain_sum"), sequence_length=2048, max_new_tokens=999).encode_prompt("")


def test_a_start_token_that_also_stands_for_the_unknown_is_no_unknown_word(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<eos>", "unk_token": "<eos>"})  # as GPT-2's, which adds it
    start = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", start)]
    )
    data = TaskData(WordProblems(), tokenizer=tokenizer, sequence_length=512, max_new_tokens=256)
    assert data.encode_prompt("4 dogs") == [start, *byte_tokenizer()("4 dogs")["input_ids"]]
