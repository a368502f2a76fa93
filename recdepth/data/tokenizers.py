"""Small tokenizers built from a vocabulary; they load again with plain `AutoTokenizer.from_pretrained`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from recdepth.models.loading import is_gguf, load_tokenizer

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
_SPECIAL = (PAD, EOS, UNK)
_GLUED = ".,;:?!"


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per word, per digit and per punctuation mark.

    `words` are the words of the task, in any order; digits and the marks .,;:?! are always there. Text is
    written with single spaces, marks directly behind the word before them, and never two numbers side by
    side; then decode(encode(text)) == text. Digits are single tokens ("42" is 4 2) and come out as one
    number again.
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
    """Any Hugging Face tokenizer by local path (a folder or a GGUF file) or hub id; of a run folder, that of its model.

    It needs an end-of-sequence token (ValueError), which also pads if there is no padding token.
    """
    inside = Path(path) / "model"
    tokenizer: PreTrainedTokenizerBase
    if is_gguf(path):
        tokenizer = load_tokenizer(path)
    else:
        tokenizer = AutoTokenizer.from_pretrained(inside if inside.is_dir() else path)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {path!r} has no eos_token, which ends an answer; choose one that has")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str], begin: bool) -> list[list[int]]:
    """Token ids of texts without special tokens, but for the tokenizer's own start token where `begin`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()  # either may be left over from a call, or saved with the tokenizer
        backend.no_truncation()
        encoded = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    else:
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if begin and bos is not None and bos in tokenizer("")["input_ids"]:
        encoded = [[bos, *ids] for ids in encoded]
    return encoded


class TextEncoder:
    """`encode_texts` with a memory of words, several times faster where words are encoded one by one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._words: dict[str, list[int]] | None = {} if _encodes_by_word(tokenizer) else None

    def __call__(self, texts: list[str], begin: bool) -> list[list[int]]:
        """Token ids of texts; see `encode_texts`."""
        if self._words is None:
            return encode_texts(self.tokenizer, texts, begin)
        known = self._words
        encoded = []
        for text in texts:
            ids: list[int] = []
            for word in text.split():
                if word not in known:
                    known[word] = encode_texts(self.tokenizer, [word], begin=False)[0]
                ids += known[word]
            encoded.append(ids)
        return encoded


def _encodes_by_word(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether text is cut at white space before anything else happens, as in `word_tokenizer`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.bos_token_id is not None or backend.normalizer is not None:
        return False
    cutting = backend.pre_tokenizer
    return (
        isinstance(backend.model, WordLevel)
        and isinstance(cutting, pre_tokenizers.Sequence)
        and isinstance(cutting[0], pre_tokenizers.WhitespaceSplit)
    )


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
        padding_side="left",  # what generation needs of a batch
        model_input_names=["input_ids", "attention_mask"],
    )
