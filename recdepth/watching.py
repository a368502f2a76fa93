"""What sample.py shows beside the texts: a live stream while it samples, the wavefront's pictures afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from .checks_sample import SAMPLE_METRICS
from .console import show, show_prompt, show_sample, show_verdict, verdict
from .evaluation import Traced, autoregressive_baseline, machine_stamp, trace_call
from .reporting import Stream, WavefrontBatch, plot_wavefront, write_wavefront_page
from .reporting.wavefront_page import MOST_ROWS
from .sampling import Sampler, SampleResult, SampleStats
from .sources import Prompt, Source
from .training.loggers import log_html, log_image, log_table


class Watch:
    """Calls the sampler for sample.py; traces and streams as asked.

    Args:
        sampler, source: what is sampled from.
        trace: keep what the wavefront's pictures need, of the first batches.
        stream: show one prompt's text while it grows.
        call: arguments of every call.
    """

    def __init__(self, sampler: Sampler, source: Source, trace: bool, stream: bool, call: dict[str, Any]):
        self.sampler, self.source, self.call = sampler, source, call
        self.stream = Stream(source.decode) if stream else None
        self.trace = trace
        self._traced: list[tuple[Traced, list[Prompt], range]] = []

    def sample(self, prompts: list[Prompt], rows: range) -> tuple[SampleResult, list[float | None]]:
        """Sample a batch and show it.

        Returns:
            the result, and each text's score where the prompt has one.

        Raises:
            ValueError: naming the prompt or setting that the sampler objects to.
        """
        if self.stream is None:
            result = self._call(prompts, rows)
        else:
            show_prompt(prompts[0])
            with self.stream.showing():
                result = self._call(prompts, rows)
                self.stream.finish(result.tokens[0], result.stats)
        scores = []
        for prompt, tokens in zip(prompts, result.tokens, strict=True):
            score = prompt.score(tokens) if prompt.score is not None else None
            scores.append(score)
            if self.stream is None:
                show_sample(prompt, self.source.decode(tokens), score)
            else:
                show_verdict(prompt, score)
        return result, scores

    def _call(self, prompts: list[Prompt], rows: range) -> SampleResult:
        ids = [prompt.ids for prompt in prompts]
        if not self.trace or rows.start >= MOST_ROWS:
            size = len(prompts)
            return self.sampler(self.source.model, ids, rows=rows, batch_size=size, trace=self.stream, **self.call)
        traced = trace_call(self.sampler, self.source.model, ids, rows=rows, watching=self.stream, **self.call)
        self._traced.append((traced, prompts, rows))
        return SampleResult(traced.tokens, traced.stats)

    def draw(self, folder: Path) -> list[Path]:
        """Write ``wavefront.png`` (of the first prompt that has one) and ``wavefront.html``.

        For the page, the same prompts are decoded autoregressively. If that is stopped, the page is written with what
        there is.

        Returns:
            the files.
        """
        rows = [(traced.trace, i) for traced, prompts, _ in self._traced for i in range(len(prompts))]
        first = next(((trace, i) for trace, i in rows if trace.steps_of(i)), None)
        if first is None:
            if self.trace:
                show("No wavefront: the first token ended the text")
            return []
        files = [plot_wavefront(first[0], folder / "wavefront.png", self.source.decode, row=first[1])]
        baseline = autoregressive_baseline(self.sampler)
        if baseline is not None:
            show(f"The same prompts one token at a time, r = {baseline.num_steps}, for comparison …")
        beside: list[Traced] = []
        try:
            if baseline is not None:
                for _, prompts, ids in self._traced:
                    tokens = [p.ids for p in prompts]
                    beside.append(trace_call(baseline, self.source.model, tokens, rows=ids, **self.call))
        finally:
            files.append(self._write_page(folder / "wavefront.html", beside))
        show(f"Wavefront: {files[0]}")
        show(f"To step through it: {files[1]}")
        return files

    def _write_page(self, path: Path, beside: list[Traced]) -> Path:
        source = self.source
        batches = []
        for i, (traced, prompts, _) in enumerate(self._traced):
            says = [
                None if p.score is None else verdict(p, p.score(t)) for p, t in zip(prompts, traced.tokens, strict=True)
            ]
            texts = [p.text for p in prompts]
            batches.append(WavefrontBatch(traced, texts, beside[i] if i < len(beside) else None, says))
        untraced = len(source.prompts) - sum(len(b.prompts) for b in batches)
        facts = {"model": source.path, **machine_stamp(source.model), **_chosen(self.call)}
        return write_wavefront_page(path, batches, source.decode, source.stop_tokens, facts, more=untraced)


def _chosen(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name != "stop_tokens"}


def log_samples(
    loggers: Iterable[Logger], stats: SampleStats, samples: list[dict[str, Any]], files: Iterable[Path]
) -> None:
    """Hand a call's statistics, texts and pictures to the loggers."""
    loggers = list(loggers)
    passes = {f"{n}_per_token": getattr(stats, n) / max(stats.new_tokens, 1) for n in ("core_passes", "token_passes")}
    scores = [s["score"] for s in samples if s["score"] is not None]
    metrics = {**vars(stats), **passes, **({"accuracy": sum(scores) / len(scores)} if scores else {})}
    named = {f"sample/{name}": value for name, value in metrics.items()}
    compared = {name: metrics[name] for name in SAMPLE_METRICS if name in metrics}  # by sweeps
    for logger in loggers:
        logger.log_metrics({**compared, **named}, step=0)
    log_table(
        loggers, "samples", [{k: s[k] for k in ("sampler", "prompt", "text", "answer", "score")} for s in samples]
    )
    for path in files:
        (log_html if path.suffix == ".html" else log_image)(loggers, path.stem, path)
    for logger in loggers:
        logger.save()
