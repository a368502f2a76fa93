"""Comparing the samplers on the trained model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger

from recdepth.data import DataModule, EvaluationItem
from recdepth.evaluation import (
    HeldOut,
    Traced,
    autoregressive_baseline,
    compare,
    comparison_samplers,
    machine_stamp,
    trace_call,
)
from recdepth.evaluation.compare import Row
from recdepth.evaluation.tune_space import is_lossless
from recdepth.models import RecurrentDepthForCausalLM
from recdepth.reporting import (
    WavefrontBatch,
    plot_wavefront,
    print_comparison,
    write_comparison,
    write_wavefront_page,
)
from recdepth.sampling import Autoregressive, Sampler

from .loggers import log_html, log_image, log_table
from .ranges import at_least_one, only_samplers
from .seams import eager_seams

log = logging.getLogger(__name__)


class Comparison:
    """Runs the standard samplers on test prompts; writes ``comparison.json``, ``comparison.png`` and a wavefront.

    Args:
        num_steps: recurrences of the reference, the autoregressive sampler.
        accuracy_prompts: prompts for accuracy, per sampler.
        speed_prompts: prompts for speed, at batch 1.
        batch_size: of the accuracy part.
        samplers: by name, measured beside AR at r and ``ar_depths``; None for the standard ones. The wavefront drawn
            is that of the last one.
        ar_depths: recurrences of further AR references; None for every power of two below ``num_steps``.
        lossless_prompts: prompts for the accuracy of ``exact`` and ``speculative``, whose text is that of AR (the
            agreement is logged); None for as many as the others get.
        compile: time compiled graphs, whatever the samplers say; accuracy is measured as they say.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        num_steps: int = 32,
        accuracy_prompts: int = 300,
        speed_prompts: int = 24,
        batch_size: int = 64,
        samplers: Mapping[str, Sampler] | None = None,
        ar_depths: Sequence[int] | None = None,
        lossless_prompts: int | None = None,
        compile: bool = False,
    ):
        at_least_one(
            num_steps=num_steps,
            accuracy_prompts=accuracy_prompts,
            speed_prompts=speed_prompts,
            batch_size=batch_size,
            lossless_prompts=accuracy_prompts if lossless_prompts is None else lossless_prompts,
        )
        if wrong := [depth for depth in ar_depths or () if not 1 <= depth < num_steps]:
            raise ValueError(f"ar_depths={wrong} must lie between 1 and num_steps={num_steps}, which is there anyway")
        self.num_steps = num_steps
        self.accuracy_prompts = accuracy_prompts
        self.speed_prompts = speed_prompts
        self.batch_size = batch_size
        self.compile = compile
        self.lossless_prompts = accuracy_prompts if lossless_prompts is None else lossless_prompts
        self.samplers = comparison_samplers(num_steps, ar_depths)
        only_samplers(samplers or {})
        if samplers is not None:
            plain = {name: each for name, each in self.samplers.items() if isinstance(each, Autoregressive)}
            if taken := sorted(plain.keys() & samplers.keys()):
                raise ValueError(f"samplers.{taken[0]}=… has the name of a reference, AR at a depth; rename it")
            self.samplers = {**plain, **samplers}

    def _prompts(self, sampler: Sampler) -> int:
        fewer = min(self.lossless_prompts, self.accuracy_prompts)
        return fewer if is_lossless(sampler) else self.accuracy_prompts

    def __call__(
        self,
        model: RecurrentDepthForCausalLM,
        data: DataModule,
        folder: Path,
        loggers: Iterable[Logger],
        seed: int,
    ) -> list[Row]:
        """Compare; everything ends up in ``folder`` and with the loggers. Returns a row per sampler."""
        loggers = list(loggers)
        samplers = self.samplers
        reference = next(iter(samplers))
        items = data.evaluation_items(max(self.accuracy_prompts, self.speed_prompts), split="test")
        held_out = HeldOut(items, data.score, data.max_new_tokens, data.stop_tokens)
        with eager_seams(model):
            rows = compare(
                model,
                samplers,
                held_out,
                reference=reference,
                accuracy_prompts={name: self._prompts(each) for name, each in samplers.items()},
                speed_prompts=self.speed_prompts,
                batch_size=self.batch_size,
                seed=seed,
                compile=self.compile,
            )
        print_comparison(rows)
        try:
            write_comparison(rows, folder)  # the numbers first, then their picture
        finally:
            log_table(loggers, "comparison", [{k: v for k, v in row.items() if k != "machine"} for row in rows])
        log_image(loggers, "comparison_plot", folder / "comparison.png")
        files = _wavefront(samplers[next(reversed(samplers))], model, data, items[: self.speed_prompts], folder, seed)
        if not files:
            log.info("No wavefront: the first token ended the text, for every prompt tried")
        for path in files:
            (log_html if path.suffix == ".html" else log_image)(loggers, path.stem, path)
        return rows


def _wavefront(
    sampler: Sampler,
    model: RecurrentDepthForCausalLM,
    data: DataModule,
    items: Iterable[EvaluationItem],
    folder: Path,
    seed: int,
) -> list[Path]:
    """Draw the wavefront of the first item whose text does not end with its first token, and a page of it beside AR."""

    def call(sampler: Sampler, item: EvaluationItem) -> Traced:
        new, stops = data.max_new_tokens, data.stop_tokens
        with eager_seams(model):
            return trace_call(sampler, model, [item.prompt_ids], max_new_tokens=new, stop_tokens=stops, seed=seed)

    for item in items:
        traced = call(sampler, item)
        if traced.trace.steps_of(0):
            break
    else:
        return []
    baseline = autoregressive_baseline(sampler)
    assert baseline is not None
    picture = plot_wavefront(traced.trace, folder / "wavefront.png", data.decode, num_steps=baseline.num_steps)
    batch = WavefrontBatch(traced, [item.prompt], call(baseline, item))
    facts = {"model": folder / "model", **machine_stamp(model), "seed": seed}
    page = write_wavefront_page(folder / "wavefront.html", [batch], data.decode, data.stop_tokens, facts)
    return [picture, page]
