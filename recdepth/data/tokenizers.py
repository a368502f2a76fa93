"""Small tokenizers that are built from a vocabulary and load again with plain `AutoTokenizer.from_pretrained`."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
_SPECIAL = (PAD, EOS, UNK)
_GLUED = ".,;:?!"


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per word, per digit and per punctuation mark.

    `words` are the words of the task, in any order; digits and the marks .,;:?! are always there. Text is written
    with single spaces, marks directly behind the word before them, and never two numbers side by side; then
    decode(encode(text)) == text. Digits are single tokens ("42" is 4 2) and come out as one number again.
    """
    wanted = sorted({part for word in words for part in _split_word(word)})
    vocabulary = [*_SPECIAL, *"0123456789", *_GLUED]
    vocabulary += [word for word in wanted if word not in vocabulary]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(rf"[0-9]|[{_GLUED}]"), "isolated")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="\x00", cleanup=False),  # a space before every token but the first
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<=[0-9]) (?=[0-9])"), ""),
            decoders.Replace(Regex(rf" (?=[{_GLUED}])"), ""),
        ]
    )
    return _wrap(core)


def character_tokenizer(characters: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per character of `characters`; other characters become the unknown token."""
    wanted = sorted({character for text in characters for character in text})
    vocabulary = {token: i for i, token in enumerate([*_SPECIAL, *wanted])}
    core = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return _wrap(core)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte: 256 and the special ones. Nothing is ever unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*_SPECIAL, *alphabet])}
    core = Tokenizer(BPE(vocabulary, merges=[], unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return _wrap(core)


def pretrained_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Any Hugging Face tokenizer by local path or hub id; it needs an end-of-sequence token, pad falls back to it."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {path!r} has no eos_token, which ends an answer; choose one that has")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _split_word(word: str) -> list[str]:
    """A word as the pre-tokenizer of `word_tokenizer` would cut it."""
    cut = word
    for mark in "0123456789" + _GLUED:
        cut = cut.replace(mark, f" {mark} ")
    return cut.split()


def _wrap(core: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
