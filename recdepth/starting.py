"""Starting a training from the weights of another model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .data import DataModule, pretrained_tokenizer
from .models import RecurrentDepthConfig, RecurrentDepthForCausalLM, load_tokenizer, retrofit_model
from .settings import ConfigError
from .sources import DTYPES, load
from .training import Lora

# what the weights' shapes and meaning depend on; depth, context and ids may differ
_SHAPE = ["hidden_size", "num_attention_heads", "intermediate_size", "prelude_layers", "core_layers", "coda_layers"]
_SHAPE += ["rope_base", "norm_eps", "qk_bias", "tie_word_embeddings", "embedding_scale", "num_key_value_heads"]
_SHAPE += ["rope_style", "rope_llama3", "norm_placement", "state_norm", "injection", "exit_gate"]
_DTYPES = {"bf16-true": "bfloat16", "16-true": "float16", "64-true": "float64"}  # of weights, by trainer.precision
_CHANGED = ("max_position_embeddings", "mean_recurrence", "backprop_depth")
_REMEDY = "take the data that it was trained on, or data.tokenizer= its model folder"


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


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The model of ``init_from`` with its own shape, and with what is not None here instead of its settings.

    Args:
        max_position_embeddings: the context, tokens.
        mean_recurrence: r̄, in training and as default depth in use.
        backprop_depth: gradients flow through this many last recurrences.
        vocab_size, bos_token_id, eos_token_id, pad_token_id: of the data's tokenizer.

    Raises:
        ValueError: for values out of range.
    """

    max_position_embeddings: int | None = None
    mean_recurrence: int | None = None
    backprop_depth: int | None = None
    vocab_size: int = 1
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in _CHANGED}
        if wrong := [f"{k}={v} must be at least 1, or null" for k, v in values.items() if v is not None and v < 1]:
            raise ValueError("; ".join(wrong))

    def load(
        self, init_from: str, tokenizer: PreTrainedTokenizerBase, sequence_length: int, dtype: str
    ) -> RecurrentDepthForCausalLM:
        """Load the model, on the CPU.

        Args:
            init_from: see :func:`start_path`.
            tokenizer: of the data.
            sequence_length: of the data, tokens.
            dtype: of the weights, by name.

        Raises:
            ConfigError: naming everything in which data and model differ.
        """
        path = start_path(init_from)
        model = load(path, "init_from", "cpu", dtype)
        problems = []
        if self.vocab_size > model.config.vocab_size:
            problems.append(
                f"init_from={init_from} has a vocabulary of {model.config.vocab_size} tokens, the data's tokenizer"
                f" {self.vocab_size}; {_REMEDY}"
            )
        elif other_tokens(path, tokenizer):
            problems.append(f"init_from={init_from} has other tokens than the data's tokenizer; {_REMEDY}")
        context = self.max_position_embeddings or model.config.max_position_embeddings
        if sequence_length > context:
            problems.append(
                f"data.sequence_length={sequence_length} exceeds the context of init_from={init_from}, {context};"
                " lower the one or raise the other by model.max_position_embeddings"
            )
        if problems:
            raise ConfigError(problems)
        for name in (*_CHANGED, "bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name) is not None:
                setattr(model.config, name, getattr(self, name))
        model.generation_config.eos_token_id = model.config.eos_token_id
        model.generation_config.pad_token_id = model.config.pad_token_id
        return model


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
    if config.vocab_size != other.vocab_size:
        yield (
            f"init_from={init_from} has a vocabulary of {other.vocab_size} tokens, the data's tokenizer"
            f" {config.vocab_size}; {_REMEDY}"
        )
        return
    if other_tokens(path, tokenizer):
        yield f"init_from={init_from} has other tokens than the data's tokenizer; {_REMEDY}"


def other_tokens(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer beside a model is another one; a bare model has none."""
    try:
        theirs = load_tokenizer(path)
    except (ValueError, OSError):
        return False
    return theirs.get_vocab() != tokenizer.get_vocab()


def model_maker(
    shape: RecurrentDepthConfig | Pretrained,
    init_from: str | None,
    data: DataModule,
    lora: Lora | None,
    precision: str,
    resumed: bool = False,
) -> Callable[[], RecurrentDepthForCausalLM]:
    """What makes the model that is to be trained; the weights that it starts from are loaded and checked already.

    Args:
        shape: of the model.
        init_from: see :func:`start_path`; None for random weights.
        data: what it is trained on.
        lora: adapters to be trained instead of the weights; None for the weights.
        precision: of Lightning's trainer.
        resumed: whether a checkpoint's weights take the place of all others.

    Raises:
        ConfigError: naming everything in which data, shape and starting weights differ.
    """
    dtype = (lora.base_dtype if lora else None) or _DTYPES.get(precision, "float32")
    pretrained, weights = None, None
    if isinstance(shape, Pretrained):
        assert init_from is not None, "checked"
        pretrained = shape.load(init_from, data.tokenizer, data.sequence_length, dtype)
    elif init_from:
        weights = start_weights(init_from, shape, data.tokenizer)
    elif shape.retrofit and not resumed:
        weights = retrofit_weights(shape, data)

    def make() -> RecurrentDepthForCausalLM:
        if isinstance(shape, Pretrained):
            assert pretrained is not None
            model = pretrained.train()
        else:
            model = RecurrentDepthForCausalLM(shape)
            if weights is not None:
                model.load_state_dict(weights)
        if lora is not None:
            model.name_or_path = str(start_path(str(init_from)))
            lora.add_to(model.to(DTYPES[dtype]))
        return model

    return make
