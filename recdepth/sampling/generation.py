"""``model.generate(sampler=…)``: a sampler as the decoding loop of transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from recdepth.models import RecurrentDepthForCausalLM
from recdepth.models.generation import seed_of

from .base import Sampler
from .registry import SETTINGS, make_sampler, settings_of
from .replay import Replay
from .result import SampleStats
from .trace import Tracer, Tracers, TraceStep

#: What a sampler honours of a generation config; ``use_cache`` is true of every sampler.
_HONOURED = {"max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p"}
_HONOURED |= {"eos_token_id", "pad_token_id", "bos_token_id", "num_return_sequences", "return_dict_in_generate"}
_HONOURED |= {"use_cache", "num_steps", "seed", "kv"}
#: What changes nothing by itself: notes, and settings of assisted decoding, which is refused as such.
_IDLE = {"transformers_version", "num_assistant_tokens", "num_assistant_tokens_schedule", "disable_compile"}
_IDLE |= {"assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "early_stopping"}
#: Values other than None and False that ask for nothing.
_NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("num_beams", "num_beam_groups"), 1),
    **dict.fromkeys(("typical_p", "repetition_penalty", "encoder_repetition_penalty", "length_penalty"), 1.0),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "diversity_penalty"), 0.0),
    **dict.fromkeys(("min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0),
}
#: Arguments of ``generate`` that only transformers' own loop can honour.
_REFUSED: tuple[str, ...] = (
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "assistant_model",
    "tokenizer",
)
_REFUSED += ("assistant_tokenizer", "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate")
_REFUSED += ("past_key_values", "inputs_embeds", "synced_gpus", "position_ids", "token_type_ids")
#: Arguments of ``forward`` that transformers would hand on, and no sampler.
_REFUSED += ("initial_state", "labels", "backprop_depth", "checkpoint_recurrences", "logits_to_keep")


@dataclass
class SampledOutput(GenerateDecoderOnlyOutput):
    """What ``generate(sampler=…, return_dict_in_generate=True)`` returns.

    Attributes:
        sequences: [batch, places], as from transformers.
        stats: the sampler's statistics.
    """

    stats: SampleStats | None = None


def generate(
    model: RecurrentDepthForCausalLM,
    inputs: Int[Tensor, "batch time"] | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    sampler: str | Sampler,
    seed: int | None = None,
    rows: Sequence[int] | Tensor | None = None,
    batch_size: int | None = None,
    trace: Tracer | None = None,
    streamer: BaseStreamer | None = None,
    **kwargs: Any,
) -> Any:
    """Continue prompts by a sampler; arguments as in :meth:`RecurrentDepthForCausalLM.generate`.

    transformers prepares the inputs and the generation config; the sampler decodes.

    Raises:
        ValueError: naming every setting that a sampler cannot honour.
    """
    settings = {name: kwargs.pop(name) for name in SETTINGS & kwargs.keys()}
    base = model.generation_config if generation_config is None else generation_config
    num_steps = settings.pop("num_steps", None)
    if isinstance(sampler, str):
        defaults = (_own(model, generation_config, "num_steps"), model.config.mean_recurrence)
        num_steps = next(n for n in (num_steps, *defaults) if n is not None)
        kv = _own(model, generation_config, "kv")
        if kv is not None and not (kv == "per_depth" and "kv" not in settings_of(sampler)):  # exact has no other
            settings.setdefault("kv", kv)
    made = make_sampler(sampler, num_steps, **settings)
    problems = list(_arguments(kwargs, base))
    prompts = inputs if inputs is not None else kwargs.get("input_ids")
    if streamer is not None and prompts is not None and len(prompts) > 1:
        problems.append(f"streamer=… takes one prompt at a time, not {len(prompts)}")
    _raise(problems)
    if generation_config is None:
        kwargs["use_cache"] = False  # a sampler makes a cache of its own
    else:
        generation_config = deepcopy(generation_config)
        generation_config.use_cache = False
    seed = _own(model, generation_config, "seed") if seed is None else seed
    streams = None if rows is None else torch.as_tensor(rows).tolist()
    decoding = _Decoding(made, seed, streams, batch_size, trace, streamer)
    plain: Any = GenerationMixin.generate
    return plain(model, inputs, generation_config, custom_generate=decoding, streamer=streamer, **kwargs)


def _own(model: RecurrentDepthForCausalLM, given: GenerationConfig | None, name: str) -> Any:
    """An entry of ours, of the configuration that was given, or else of the model's."""
    configs = (given, model.generation_config)
    return next((v for c in configs if c is not None and (v := getattr(c, name, None)) is not None), None)


@dataclass(frozen=True)
class _Decoding:
    """A sampler in the place of transformers' decoding loop."""

    sampler: Sampler
    seed: int | None
    streams: list[int] | None
    batch_size: int | None
    trace: Tracer | None
    streamer: BaseStreamer | None

    def __call__(
        self,
        model: RecurrentDepthForCausalLM,
        input_ids: Int[Tensor, "batch time"],
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Any:
        _raise(list(_settings(generation_config)))
        attention_mask = model_kwargs.get("attention_mask")
        keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = [ids[here.bool()].tolist() for ids, here in zip(input_ids, keep, strict=True)]
        stops = generation_config.eos_token_id
        stops = [] if stops is None else torch.as_tensor(stops).flatten().tolist()
        commits = _Commits(self.streamer) if self.streamer is not None else None
        tracers = [tracer for tracer in (self.trace, commits) if tracer is not None]
        result = self.sampler(
            model,
            prompts,
            max_new_tokens=generation_config.max_length - input_ids.shape[1],
            stop_tokens=stops,
            seed=seed_of(self.seed, bool(generation_config.do_sample)),
            batch_size=self.batch_size,
            rows=self._rows(len(prompts), generation_config.num_return_sequences or 1),
            trace=Tracers(tracers) if tracers else None,
            **_choice(generation_config),
        )
        if commits is not None:
            commits.finish(result.tokens[0])
        sequences: Any = _beside(input_ids, result.tokens, generation_config.pad_token_id, stops)
        if generation_config.return_dict_in_generate:
            return SampledOutput(sequences=sequences, stats=result.stats)
        return sequences

    def _rows(self, count: int, copies: int) -> list[int]:
        if self.streams is None:
            return list(range(count))
        if len(self.streams) * copies != count:
            raise ValueError(f"rows has {len(self.streams)} ids for {count // copies} prompts")
        return [stream * copies + copy for stream in self.streams for copy in range(copies)]


class _Commits:
    """A tracer that hands tokens to a transformers streamer as they become final; one prompt."""

    def __init__(self, streamer: BaseStreamer):
        self._streamer = streamer
        self._replay: Replay | None = None
        self._done = 0

    def start(self, prompts: list[list[int]]) -> None:
        if len(prompts) != 1:
            raise ValueError(f"a streamer takes one text at a time, not {len(prompts)}")
        self._replay = Replay(prompts[0])

    def record(self, step: TraceStep) -> None:
        assert self._replay is not None, "start() comes first"
        if step.step == 0:
            self._replay.open(step)
            self._put(self._replay.committed)
        self._replay.advance(step)
        self._put(self._replay.committed)

    def finish(self, tokens: list[int]) -> None:
        """Hand over the rest, and end."""
        self._put(tokens)
        self._streamer.end()

    def _put(self, committed: list[int]) -> None:
        for token in committed[self._done :]:
            self._streamer.put(torch.tensor([token]))
        self._done = max(self._done, len(committed))


def _choice(config: GenerationConfig) -> dict[str, Any]:
    """How tokens are chosen, as samplers are told."""
    if not config.do_sample:
        return {"temperature": 0.0}
    temperature = 1.0 if config.temperature is None else config.temperature
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0 with do_sample=True; set do_sample=False instead")
    top_p = 1.0 if config.top_p is None else config.top_p
    return {"temperature": temperature, "top_k": config.top_k or 0, "top_p": top_p, "min_p": config.min_p or 0.0}


def _beside(
    input_ids: Int[Tensor, "batch time"], new: list[list[int]], pad: Any, stops: list[int]
) -> Int[Tensor, "batch places"]:
    """The prompts with their continuations, padded on the right."""
    longest = max(map(len, new), default=0)
    fill = stops[0] if pad is None and stops else int(pad or 0)  # without stop tokens nothing is padded
    padded = [tokens + [fill] * (longest - len(tokens)) for tokens in new]
    return torch.cat([input_ids, torch.tensor(padded, dtype=input_ids.dtype, device=input_ids.device)], dim=1)


def _arguments(kwargs: dict[str, Any], base: GenerationConfig) -> Iterator[str]:
    """What is wrong with the arguments as they were given."""
    for name in _REFUSED:
        value = kwargs.get(name)
        if value is not None and value is not False and not (isinstance(value, (int, list)) and not value):
            yield f"{name}=… is for transformers' own loop"
    if kwargs.pop("use_cache", None) is False:
        yield "use_cache=False: a sampler cannot do without its cache"
    sampling = kwargs.get("do_sample", base.do_sample)
    for name, idle in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        if not sampling and kwargs.get(name) not in (None, idle):
            yield f"{name}={kwargs[name]!r} has no effect without do_sample=True"


def _settings(config: GenerationConfig) -> Iterator[str]:
    """What of a generation config a sampler would have to ignore."""
    for name, value in vars(config).items():
        if name.startswith("_") or name in _HONOURED or name in _IDLE or value is None or value is False:
            continue
        if value != _NEUTRAL.get(name, value is None):
            yield f"{name}={value!r} is for transformers' own loop"


def _raise(problems: list[str]) -> None:
    if problems:
        lines = "\n".join(f"  - {p}; leave it out, or generate without sampler" for p in problems)
        raise ValueError(f"a sampler cannot honour this:\n{lines}")
