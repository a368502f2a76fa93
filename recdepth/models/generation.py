"""``generate``: transformers' own loop with our cache, or one of our samplers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode

from .hf_cache import RecurrentCache
from .products import Linear

if TYPE_CHECKING:
    from .cache import KVPolicy
    from .config import RecurrentDepthConfig

_sampled: Callable[..., Any] | None = None


def register_samplers(generate: Callable[..., Any]) -> None:
    """Let ``generate(sampler=…)`` be done by this function; ``import recdepth`` calls it with that of the samplers.

    Args:
        generate: called as ``generate(model, inputs, generation_config, sampler=…, **kwargs)``.
    """
    global _sampled
    _sampled = generate


class RecurrentGenerationMixin(GenerationMixin):
    """What a recurrent-depth model adds to :class:`transformers.GenerationMixin`."""

    _card: bytes | None = None  # what is being pushed as README.md

    if TYPE_CHECKING:
        config: RecurrentDepthConfig
        device: torch.device

    def generate(  # type: ignore[override]  # what transformers takes by position is taken by name
        self,
        inputs: Int[Tensor, "batch time"] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        sampler: Any = None,
        rows: Sequence[int] | Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue prompts; a batch is padded on the left and comes with its ``attention_mask``.

        Without ``sampler`` this is transformers' own loop with a per-depth key/value cache: the text of
        :class:`recdepth.sampling.Autoregressive`, one token after the other, and everything that transformers can do
        besides (beams, logits processors, stopping criteria …). With ``sampler`` one of ours decodes; what it cannot
        honour (beams, penalties, processors …) is refused by one error.

        Randomness. The noise of the initial states is a function of (seed, row, position). ``seed`` defaults to 0 in
        greedy decoding; with ``do_sample=True`` it is drawn from torch's generator, so that ``transformers.set_seed``
        governs and calls differ. Sampled tokens follow the same seed with ``sampler``, and torch's generator without.

        Args:
            inputs: prompts; ``input_ids=`` is the same.
            generation_config: may also carry ``num_steps``, ``seed`` and ``kv``.
            sampler: a name as in ``conf/sampler`` (``"diffusion_forcing"``, ``"exact"`` …) or a
                :class:`recdepth.sampling.Sampler`; its settings are further keywords (``headway=2``).
            rows: random-stream id of each prompt; None for 0 … batch-1. With ``num_return_sequences=n`` and a sampler,
                row i has the streams i·n … i·n+n-1.
            **kwargs: as in transformers (``max_new_tokens``, ``do_sample``, ``streamer`` …), and ``num_steps``
                (recurrences of prompt and tokens; None takes the configuration's mean), ``seed``, and ``kv``
                (``per_depth`` or ``shared``). With a sampler also ``batch_size`` and ``trace``.

        Returns:
            token ids, prompts included, padded on the right by ``pad_token_id``; with ``return_dict_in_generate=True``
            an output with ``sequences`` (and, with a sampler, its ``stats``).

        Raises:
            ValueError: naming the setting that cannot be honoured.
        """
        if sampler is not None:
            if _sampled is None:
                raise ValueError(f"sampler={sampler!r} needs the samplers; import recdepth first")
            return _sampled(self, inputs, generation_config, sampler=sampler, rows=rows, **kwargs)
        if rows is not None:
            kwargs["rows"] = torch.as_tensor(rows)
        plain: Any = super()
        return plain.generate(inputs, generation_config, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; all parts that are not on ``cpu`` or ``disk`` lie on one device.

        Raises:
            ValueError: for a ``device_map`` over several devices.
        """
        plain: Any = super()
        loaded = plain.from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        check_one_device(getattr(model, "hf_device_map", {}))
        for module in model.modules():
            if isinstance(module, Linear) and module.weight is not model.embedding.weight:
                module.lay_out()
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> Any:
        """As in transformers; ``num_steps``, ``seed`` and ``kv`` of the generation config are kept."""
        self.generation_config._from_model_config = False  # else loading drops what transformers does not know
        model: Any = super()
        return model.save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, *, card: str | os.PathLike[str] | None = None, **kwargs: Any) -> str:
        """As in transformers, with the model's card.

        The card describes the weights as they were when they were stored: after changing them, give another one.

        Args:
            repo_id: hub id; made if it does not exist.
            card: a README.md; None takes the one in the folder that the model was loaded from, if there is one, and
                else transformers' own.
            **kwargs: as in transformers.
        """
        model: Any = self
        beside = Path(model.name_or_path, "README.md") if model.name_or_path else None
        if card is None and beside is not None and beside.is_file():
            card = beside
        self._card = None if card is None else Path(card).read_bytes()
        try:
            plain: Any = super()
            return str(plain.push_to_hub(repo_id, **kwargs))
        finally:
            self._card = None

    def _upload_modified_files(self, working_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Called by transformers when all files are in ``working_dir``."""
        if self._card is not None:
            Path(working_dir, "README.md").write_bytes(self._card)
        plain: Any = super()
        return plain._upload_modified_files(working_dir, *args, **kwargs)

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> Any:
        """Called by transformers when all settings are known: fill in ours, and make the cache."""
        _refuse(generation_config, ("output_attentions", "output_hidden_states"), "this model does not return them")
        _refuse(generation_config, ("cache_implementation",), "this model has a cache of its own")
        mask = model_kwargs.get("attention_mask")
        total = max_cache_length + 1 - (0 if mask is None else int((mask == 0).sum(-1).min()))
        if total > self.config.max_position_embeddings:
            raise ValueError(
                f"prompt and new tokens, {total} in all, exceed the context of max_position_embeddings="
                f"{self.config.max_position_embeddings}; lower max_new_tokens or shorten the prompt"
            )
        own = {name: model_kwargs.get(name) for name in ("num_steps", "seed", "kv")}
        own = {name: getattr(generation_config, name, None) if value is None else value for name, value in own.items()}
        num_steps = self.config.mean_recurrence if own["num_steps"] is None else own["num_steps"]
        seed = seed_of(own["seed"], bool(generation_config.do_sample))
        model_kwargs.update(num_steps=num_steps, seed=seed, kv=own["kv"])
        given = model_kwargs.get("past_key_values")
        shared = "shared" in (own["kv"], getattr(given, "kv", None))
        if shared and generation_mode == GenerationMode.ASSISTED_GENERATION:
            raise ValueError(
                "kv=shared: several places in one pass do not see each other's last recurrence, so assisted generation"
                " and prompt lookup would give other text; take kv=per_depth, or a sampler: recdepth.sampling"
            )
        if given is None and generation_config.use_cache is not False:
            kv: Any = own["kv"] or "per_depth"
            model_kwargs["past_key_values"] = RecurrentCache(num_steps, kv, capacity=max_cache_length)
        elif given is not None:
            given._is_user_defined = True  # as transformers marks it

    def _forward_cached(
        self: Any,
        input_ids: Int[Tensor, "batch time"],
        past_key_values: RecurrentCache | None,
        num_steps: int | None,
        initial_state: Float[Tensor, "batch time dim"] | None,
        attention_mask: Int[Tensor, "batch places"] | None,
        seed: int | None,
        rows: Int[Tensor, " batch"] | None,
        kv: KVPolicy | None,
        logits_to_keep: int,
    ) -> tuple[Tensor, Tensor, RecurrentCache]:
        """``forward`` of the places behind those in the cache, without gradients.

        Returns:
            logits, un-normalised states, and the cache.
        """
        if past_key_values is not None and not isinstance(past_key_values, RecurrentCache):
            kind = type(past_key_values).__name__
            raise ValueError(f"past_key_values is a {kind}; this model takes a RecurrentCache")
        steps = num_steps
        if steps is None:
            steps = self.config.mean_recurrence if past_key_values is None else past_key_values.num_steps
        batch, time = input_ids.shape
        past = RecurrentCache(steps, kv or "per_depth") if past_key_values is None else past_key_values
        if (steps, kv or past.kv) != (past.num_steps, past.kv):
            raise ValueError(
                f"num_steps={steps}, kv={kv or past.kv}: past_key_values was made for num_steps={past.num_steps},"
                f" kv={past.kv}; start with a new cache"
            )
        self._check_size(steps, past.get_seq_length() + time if attention_mask is None else _most(attention_mask))
        with torch.no_grad():
            cache, span = past.open(self, batch, time, attention_mask)
            e = self.embed(input_ids, cache, span)
            s = self._first_state(e, span, initial_state, rows, seed)
            for depth in range(steps):
                s = self.recur(e, s, cache, span, depth)
            logits = self.decode(s, cache, span, logits_to_keep)
            past.close(time, attention_mask is not None)  # only now: a pass that failed may be tried again
            return logits, s, past


def check_one_device(device_map: Mapping[str, Any]) -> None:
    """Raise ValueError for a map over several GPUs."""
    devices = sorted({str(device) for device in device_map.values()} - {"cpu", "disk"})
    if len(devices) > 1:
        raise ValueError(
            f"device_map lays parts on {', '.join(devices)}: a model that loops belongs on one device, which its states"
            f" would leave at every recurrence; take device_map={{'': {devices[0]}}}"
        )


def _most(attention_mask: Tensor) -> int:
    return int(attention_mask.sum(-1).max())


def streams_of(rows: Tensor | None, batch: int, device: torch.device) -> Int[Tensor, " batch"]:
    """The random streams of a batch's rows: as given, or else 0 … batch-1.

    Raises:
        ValueError: for another number of them.
    """
    if rows is None:
        return torch.arange(batch, device=device)
    if rows.shape != (batch,):
        raise ValueError(f"rows has the shape {tuple(rows.shape)}, input_ids {batch} rows; give one id for each")
    return rows.to(device)


def seed_of(seed: int | None, do_sample: bool) -> int:
    """The seed that is meant: drawn from torch's generator when sampling without one, and else 0."""
    if seed is not None:
        return int(seed)
    return int(torch.randint(2**31, ())) if do_sample else 0


def _refuse(generation_config: GenerationConfig, names: Sequence[str], why: str) -> None:
    for name in names:
        if value := getattr(generation_config, name, None):
            raise ValueError(f"{name}={value!r}: {why}; leave it out")
