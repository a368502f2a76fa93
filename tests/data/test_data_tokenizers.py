"""Tokenizers: exact round trips, and loading with plain AutoTokenizer."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

pytest.importorskip("reasoning_gym", reason="the extra 'tasks' is not installed")

from recdepth.data import (
    PointerChase,
    ReasoningGym,
    WordProblems,
    byte_tokenizer,
    character_tokenizer,
    pretrained_tokenizer,
)
from recdepth.data.tokenizers import TextEncoder, encode_texts

GSM = ReasoningGym("gsm_symbolic", {"size": 30_000})
CHARACTERS = character_tokenizer(["abc xyz\n", "0123456789.é日"])
ALL = {
    "words": WordProblems().build_tokenizer(),
    "pointers": PointerChase().build_tokenizer(),
    "characters": CHARACTERS,
    "bytes": byte_tokenizer(),
}
SAMPLES = {
    "words": "Now Zoe has 48 - 6 = 42; then 42 + 3 = 45; #### 45",
    "pointers": "a c, b a; 12 hops from b?",
    "characters": "  a\n\n é日 0.1 ",
    "bytes": "\t× • é\r\n  'x'  , don't ? 日本 \x00\u2028\U0001f600 ",
}


def round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = encode_texts(tokenizer, [text], begin=True)[0]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert tokenizer(text)["input_ids"] == ids
    assert TextEncoder(tokenizer)([text, text], begin=True) == [ids, ids]
    assert tokenizer.unk_token_id not in ids


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 2**32))
def test_word_tokenizers_round_trip_on_every_item(seed: int, index: int) -> None:
    for task in (
        WordProblems(seed=seed),
        WordProblems(1, 9, max_operand=200, max_total=1000, seed=seed),
        PointerChase(seed=seed),
        PointerChase(26, 30, chained=True, seed=seed),
    ):
        item = task.item("train", index)
        for text in (item.prompt, item.answer):
            round_trip(task.build_tokenizer(), text)


@settings(max_examples=30, deadline=None)
@given(index=st.integers(0, 2**32))
def test_byte_tokenizer_round_trips_on_reasoning_gym(index: int) -> None:
    item = GSM.item("train", index)
    for text in (item.prompt, item.answer):
        round_trip(ALL["bytes"], text)


@settings(max_examples=100, deadline=None)
@given(text=st.text(min_size=1).filter(lambda text: not any(f"<{s}>" in text for s in ("pad", "eos", "unk"))))
def test_byte_tokenizer_round_trips_on_any_text(text: str) -> None:
    round_trip(ALL["bytes"], text)


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet="abc xyz\n0123456789.é日", min_size=1))
def test_character_tokenizer_round_trips_on_its_characters(text: str) -> None:
    round_trip(CHARACTERS, text)
    assert len(encode_texts(CHARACTERS, [text], begin=True)[0]) == len(text)


@pytest.mark.parametrize("name", ALL)
def test_saved_tokenizers_load_as_auto_tokenizers(name: str, tmp_path: Path) -> None:
    tokenizer, text = ALL[name], SAMPLES[name]
    round_trip(tokenizer, text)
    tokenizer.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), pretrained_tokenizer(str(tmp_path))):
        round_trip(loaded, text)
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


@pytest.mark.parametrize("left_over", [{"padding": True}, {"truncation": True, "max_length": 2}])
def test_padding_and_truncation_of_a_call_are_not_saved_into_texts(left_over: dict, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    expected = encode_texts(tokenizer, ["a", "abcd"], begin=True)
    assert [len(ids) for ids in expected] == [1, 4]
    tokenizer(["a", "bcd"], **left_over)
    tokenizer.save_pretrained(tmp_path)
    assert encode_texts(pretrained_tokenizer(str(tmp_path)), ["a", "abcd"], begin=True) == expected
    assert encode_texts(tokenizer, ["a", "abcd"], begin=True) == expected


def test_numbers_are_digits_and_vocabularies_are_small() -> None:
    tokens = ALL["words"].convert_ids_to_tokens(ALL["words"](SAMPLES["words"])["input_ids"])
    assert tokens[:11] == ["Now", "Zoe", "has", "4", "8", "-", "6", "=", "4", "2", ";"]
    assert len(ALL["words"]) <= 64
    assert len(ALL["pointers"]) <= 40
    assert len(ALL["bytes"]) == 259


def test_a_tokenizer_without_stop_token_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no eos_token.*choose one that has"):
        pretrained_tokenizer(str(tmp_path))
