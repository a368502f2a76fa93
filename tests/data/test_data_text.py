"""Plain text: documents, packing, streaming, resuming."""

import json
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from recdepth.data import SPLITS, TextData, TextSource, byte_tokenizer, word_tokenizer
from recdepth.data.packing import encode_documents, pack, split_of_text

DOCUMENTS = [f"Document {i}:\n" + " ".join(f"{i}w{j}" for j in range(1 + i % 40)) for i in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents in three kinds of files, 100 in each."""
    path = tmp_path_factory.mktemp("text")
    (path / "a.txt").write_text("\n\n".join(DOCUMENTS[:100]) + "\n\n\n\n", encoding="utf-8")
    (path / "deep").mkdir()
    lines = [json.dumps({"text": text, "other": 1}) for text in DOCUMENTS[100:200]]
    (path / "deep" / "b.jsonl").write_text("\n".join(lines), encoding="utf-8")
    datasets.Dataset.from_dict({"text": DOCUMENTS[200:]}).to_parquet(path / "c.parquet")
    (path / "notes.md").write_text("not read")
    return path


def data(folder: Path, streaming: bool = False, **settings: int) -> TextData:
    settings = {"sequence_length": 64, "max_new_tokens": 16, "batch_size": 4, **settings}
    return TextData(TextSource(str(folder), streaming=streaming), **settings)


def want(split: str) -> list[str]:
    return [text for text in DOCUMENTS if split_of_text(text) == split]


def tokens(texts: list[str]) -> list[int]:
    return [token for ids in encode_documents(byte_tokenizer(), texts) for token in ids]


def test_sources_give_each_document_to_one_split(folder: Path) -> None:
    source = TextSource(str(folder))
    found = {split: list(source.texts(split)) for split in SPLITS}
    assert found == {split: want(split) for split in SPLITS}
    assert all(found.values())


def test_the_text_may_be_in_another_field(tmp_path: Path) -> None:
    lines = [json.dumps({"body": text, "n": i}) for i, text in enumerate(DOCUMENTS)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:200]))
    (tmp_path / "b.txt").write_text("\n\n".join(DOCUMENTS[200:]))
    source = TextSource(str(tmp_path), field="body")
    assert sorted(source.texts("train")) == sorted(want("train"))


def test_white_space_does_not_move_a_document_to_another_split(tmp_path: Path) -> None:
    for name, gap in (("a", "\n\n"), ("b", "\n\n\n")):
        (tmp_path / f"{name}.txt").write_text(gap.join(DOCUMENTS))
    source = TextSource(str(tmp_path))
    parts = [{" ".join(text.split()) for text in source.texts(split)} for split in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(DOCUMENTS)


def test_records_without_a_text_are_left_out(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in [*DOCUMENTS, None]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert list(TextSource(str(tmp_path)).texts("train")) == want("train")


def test_documents_in_text_files(tmp_path: Path) -> None:
    file = tmp_path / "one.txt"
    file.write_text("a b\nc\n\nd e\n \nf\n")
    for document, count in (("file", 1), ("paragraph", 2), ("line", 4)):
        source = TextSource(str(file), document=document)
        assert sum(len(list(source.texts(split))) for split in SPLITS) == count


def test_packing_by_hand() -> None:
    rows, rest = pack([[1, 2, 9], [3, 9], [4, 5, 6, 9]], 4)
    assert rows.tolist() == [[1, 2, 9, 3], [9, 4, 5, 6]]
    assert rest == [9]
    rows, rest = pack([[1, 2, 9], [3, 9], [4, 5, 6, 9]], 4, at_most=1)
    assert rows.tolist() == [[1, 2, 9, 3]]
    assert rest == []


def test_a_pass_over_packed_text_loses_nothing(folder: Path) -> None:
    text = data(folder)
    whole = tokens(want("train"))
    source = text._source()
    assert source.rows.flatten()[: len(whole)].tolist() == whole
    assert source.labels[source.labels != -100].flatten().tolist() == whole
    assert (source.labels[-1] == -100).sum() == -len(whole) % 64
    rows, batch_size = len(source.rows), 4
    passes = [np.concatenate([b["input_ids"] for b in islice(text.train_dataloader(), rows)]) for _ in range(2)]
    for drawn in passes:  # `rows` batches are `batch_size` passes
        for i in range(batch_size):
            one = drawn[i * rows : (i + 1) * rows]
            assert sorted(map(tuple, one)) == sorted(map(tuple, source.rows))
    assert not np.array_equal(passes[0][:rows], passes[0][rows : 2 * rows])


def test_streamed_text_loses_nothing_and_starts_again(folder: Path) -> None:
    text = data(folder, streaming=True)
    whole = tokens(want("train"))
    drawn = [b["input_ids"].flatten() for b in islice(text.train_dataloader(), 2 * len(whole) // 256)]
    found = torch.cat(drawn).tolist()
    assert found == (whole * 3)[: len(found)]
    assert len(found) > 1.9 * len(whole)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("after", [1, 30, 75, 150])
def test_resume_gives_the_same_next_batch(folder: Path, streaming: bool, after: int) -> None:
    text = data(folder, streaming)
    stream = iter(text.train_dataloader())
    for _ in range(after):
        next(stream)
    state = json.loads(json.dumps(text.state_dict()))  # plain types
    for exact in (True, False):
        resumed = data(folder, streaming)
        resumed.load_state_dict(state if exact else {"position": after})
        for got in islice(resumed.train_dataloader(), 3):
            follows = next(stream) if exact else got
            assert torch.equal(got["input_ids"], follows["input_ids"])
            assert torch.equal(got["labels"], follows["labels"])
            if exact:
                last = got
        if not exact:
            resumed.load_state_dict({"position": after + 2})
            assert torch.equal(next(iter(resumed.train_dataloader()))["input_ids"], last["input_ids"])
    if streaming:
        assert state["stream"]["reader"] is not None


def test_loss_is_on_all_tokens_and_validation_is_held_out(folder: Path) -> None:
    text = data(folder, validation_items=10)
    held_out = list(text.val_dataloader())
    assert [batch["input_ids"].shape for batch in held_out] == [(4, 64)] * 3
    found = torch.cat([batch["labels"] for batch in held_out])
    assert (found[10:] == -100).all()
    assert found[:10].flatten().tolist() == tokens(want("validation"))[:640]


def test_evaluation_items_continue_held_out_documents(folder: Path) -> None:
    text = data(folder)
    items = text.evaluation_items(20)
    assert items == data(folder).evaluation_items(20)
    assert any(not item.prompt.startswith("Document") for item in items)
    for item in items:
        assert any(item.prompt + item.answer in document for document in want("test"))
        assert not any(item.prompt + item.answer in document for document in want("train"))
        assert 0 < len(item.answer_ids) <= text.max_new_tokens
        assert len(item.prompt_ids) + text.max_new_tokens <= text.sequence_length
        assert text.score(item, item.answer_ids) == 1.0
        half = len(item.answer_ids) // 2
        assert text.score(item, item.answer_ids[:half]) == half / len(item.answer_ids)
        assert text.score(item, []) == 0.0
    with pytest.raises(ValueError, match=r"10000 test prompts were asked for, but .* only \d+; ask for fewer"):
        text.evaluation_items(10_000)


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_datasets_are_opened_as_told(streaming: bool, monkeypatch) -> None:
    calls = []

    def hub(*args: object, **kwargs: object) -> object:
        calls.append((args, kwargs))
        found = datasets.Dataset.from_dict({"body": DOCUMENTS})
        return found.to_iterable_dataset() if streaming else found

    monkeypatch.setattr("recdepth.data.packing.load_dataset", hub)
    source = TextSource("someone/corpus", "body", "en", "train[:1%]", streaming=streaming)
    text = TextData(source, sequence_length=64, max_new_tokens=16, batch_size=4)
    assert next(iter(text.train_dataloader()))["input_ids"].shape == (4, 64)
    assert list(source.texts("test")) == want("test")
    assert calls[0] == (("someone/corpus", "en"), {"split": "train[:1%]", "streaming": streaming})


def test_an_unknown_hub_dataset_is_named(monkeypatch) -> None:
    def hub(*args: object, **kwargs: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr("recdepth.data.packing.load_dataset", hub)
    with pytest.raises(ValueError, match=r"data.source.path='someone/corpus' .*offline; check the path or id"):
        TextSource("someone/corpus").open()


def test_nothing_is_written_to_the_datasets_cache(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    text = data(folder)
    next(iter(text.train_dataloader()))
    list(text.val_dataloader())
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: TextSource("./nowhere.txt"), r"data.source.path='./nowhere.txt' does not exist; give"),
        (lambda p: TextSource(""), r"data.source.path is empty"),
        (lambda p: TextSource(str(p), document="page"), r"document='page' is unknown; use one of file, paragraph"),
        (lambda p: TextSource(str(p / "empty")), r"empty' does not exist"),
        (lambda p: data(p, streaming=True, num_workers=1), r"data.num_workers=1 .*set data.num_workers=0"),
        (
            lambda p: list(TextSource(str(p / "c.parquet"), field="body").texts("train")),
            r"data.source.field='body': .*its fields are text; set data.source.field",
        ),
    ],
)
def test_error_texts(folder: Path, make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(folder)


def test_too_little_text_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "one.txt"
    document = next(text for text in DOCUMENTS if split_of_text(text) == "train")
    file.write_text(document)
    text = TextData(TextSource(str(file), document="file"))
    next(iter(text.train_dataloader()))
    with pytest.raises(ValueError, match=r"no documents for one of training and validation; add text"):
        text.val_dataloader()
    file.write_text(next(text for text in DOCUMENTS if split_of_text(text) == "test"))
    with pytest.raises(ValueError, match=r"no documents for training; add text"):
        next(iter(TextData(TextSource(str(file), document="file", streaming=True)).train_dataloader()))


def test_any_tokenizer_serves(folder: Path) -> None:
    tokenizer = word_tokenizer(DOCUMENTS)
    text = TextData(TextSource(str(folder)), tokenizer, 32, 8)
    assert next(iter(text.train_dataloader()))["input_ids"].max() < len(tokenizer)
