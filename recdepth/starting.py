"""Starting a training from the weights of another model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .data import DataModule, pretrained_tokenizer
from .models import RecurrentDepthConfig, load_tokenizer, retrofit_model
from .settings import ConfigError
from .sources import load

# what the weights' shapes and meaning depend on; depth, context and ids may differ
_SHAPE = ["hidden_size", "num_attention_heads", "intermediate_size", "prelude_layers", "core_layers", "coda_layers"]
_SHAPE += ["rope_base", "norm_eps", "qk_bias", "tie_word_embeddings", "embedding_scale", "num_key_value_heads"]
_SHAPE += ["rope_style", "rope_llama3", "norm_placement", "state_norm", "injection", "exit_gate"]


def start_path(init_from: str) -> str | Path:
    """The model that ``init_from`` means: that of a run folder, a model folder, or a hub id.

    Raises:
        ConfigError: for a path that is neither.
    """
    path = Path(init_from)
    for folder in (path / "model", path):
        if (folder / "config.json").is_file():
            return folder
    if path.exists() or init_from.startswith((".", "/", "~")) or init_from.count("/") != 1:
        problem = "holds no model" if path.is_dir() else "is no folder"
        raise ConfigError([f"init_from={init_from} {problem}; give a run folder, a model folder or a hub id"])
    return init_from


def start_weights(
    init_from: str, config: RecurrentDepthConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Tensor]:
    """The weights to start from, for a model of this configuration.

    Args:
        init_from: see :func:`start_path`.
        config: of the model that is to be trained.
        tokenizer: of the data.

    Raises:
        ConfigError: naming every setting that the other model has otherwise.
    """
    path = start_path(init_from)
    model = load(path, "init_from", "cpu", None)
    problems = [
        f"model.{name}={getattr(config, name)}: init_from={init_from} has {getattr(model.config, name)};"
        f" set model.{name}={getattr(model.config, name)}"
        for name in _SHAPE
        if getattr(config, name) != getattr(model.config, name)
    ]
    problems += _tokens(init_from, path, config, model.config, tokenizer)
    if problems:
        raise ConfigError(problems)
    return model.state_dict()


def retrofit_weights(config: RecurrentDepthConfig, data: DataModule) -> dict[str, Tensor]:
    """The weights of a pretrained decoder that is made recurrent, in float32.

    Args:
        config: from ``model=retrofit``.
        data: whose tokenizer and rows the model is for.

    Raises:
        ConfigError: for other tokens than the base's, longer rows than its context, or weights that cannot be read.
    """
    assert config.retrofit is not None
    base = config.retrofit["base"]
    problems = []
    try:
        theirs = pretrained_tokenizer(base)
    except (ValueError, OSError) as error:
        problems.append(f"model.base={base} has no tokenizer: {error}")
    else:
        if theirs.get_vocab() != data.tokenizer.get_vocab():
            problems.append(
                f"data.tokenizer has other tokens than model.base={base}; set"
                " +data.tokenizer._target_=recdepth.data.pretrained_tokenizer and +data.tokenizer.path=${model.base}"
            )
    if data.sequence_length > config.max_position_embeddings:
        problems.append(
            f"data.sequence_length={data.sequence_length} exceeds the context of model.base={base},"
            f" {config.max_position_embeddings}; lower it"
        )
    if problems:
        raise ConfigError(problems)
    try:
        return retrofit_model(config).float().state_dict()
    except (ValueError, OSError) as error:
        raise ConfigError([f"model.base={base}: {error}"]) from error


def _tokens(
    init_from: str,
    path: str | Path,
    config: RecurrentDepthConfig,
    other: RecurrentDepthConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[str]:
    remedy = "take the data that it was trained on, or data.tokenizer= its model folder"
    if config.vocab_size != other.vocab_size:
        yield (
            f"init_from={init_from} has a vocabulary of {other.vocab_size} tokens, the data's tokenizer"
            f" {config.vocab_size}; {remedy}"
        )
        return
    try:
        theirs = load_tokenizer(path)
    except (ValueError, OSError):
        return  # a bare model: its vocabulary has the right size
    if theirs.get_vocab() != tokenizer.get_vocab():
        yield f"init_from={init_from} has other tokens than the data's tokenizer; {remedy}"
