"""The parts of the sampler benchmark. Each adds its figures to the samplers' rows, and writes them when it is done."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.composing import Variant
from recdepth.evaluation import Evaluation, HeldOut, Interval, Timings, evaluate, time_in_turn
from recdepth.evaluation.compare import accuracy_columns, bar_of, fastest_equal_ar, speed_columns, verdict
from recdepth.evaluation.costs import draft_steps, measure_bound, peak_bytes, record_passes, time_shares
from recdepth.evaluation.speed import wait
from recdepth.models import RecurrentDepthForCausalLM
from recdepth.models.compilation import sampling_seams
from recdepth.sampling import Autoregressive, Exact, Sampler, SampleResult, Speculative, Trace

Tokens = Sequence[Sequence[int]]


@dataclass
class Results:
    """A row per sampler, and what holds for all of them; :meth:`save` writes ``samplers.json`` at any time."""

    folder: Path
    head: dict[str, Any]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)

    def save(self, finished: str | None = None) -> None:
        """Write what is there; a part that is finished is listed."""
        self.parts += [finished] if finished else []
        self.folder.mkdir(parents=True, exist_ok=True)
        content = self.head | {"finished_parts": self.parts, "samplers": list(self.rows.values())}
        partial = self.folder / "samplers.json.part"
        partial.write_text(
            json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n", encoding="utf-8"
        )
        partial.replace(self.folder / "samplers.json")


@dataclass
class Bench:
    """What every part needs.

    Attributes:
        model: in eval mode.
        held_out: the prompts, where their texts end and how these are scored.
        seed: of every call.
        samplers: by name; the first is the reference, AR at r.
        variants: each sampler in each mode, by label.
        fastest: each sampler in the mode that turned out fastest, by name.
        results, progress: where figures and bars go.
    """

    model: RecurrentDepthForCausalLM
    held_out: HeldOut
    seed: int
    samplers: dict[str, Sampler]
    variants: dict[str, Variant]
    results: Results
    progress: Progress
    fastest: dict[str, Variant] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        return next(iter(self.samplers))

    def call(
        self, sampler: Sampler, first: int, count: int = 1, batch_size: int = 1, trace: Trace | None = None
    ) -> SampleResult:
        """Continue some of the prompts."""
        some = self.held_out.part(first, first + count)
        return some.sample(sampler, self.model, seed=self.seed, batch_size=batch_size, trace=trace)

    def seams(self, variant: Variant) -> list[Any]:
        """The objects whose seams the sampler calls in this mode; a prefill is eager in both."""
        return [self.model, sampling_seams(self.model)] if variant.mode == "compiled" else [self.model]


def accuracy(bench: Bench, prompts: int, batch_size: int) -> None:
    """Accuracy with intervals, the paired difference to AR at r and its verdict; texts of the lossless samplers."""
    for name, sampler in bench.samplers.items():
        bar = bar_of(bench.progress, f"accuracy of {name}", prompts)
        some = bench.held_out.part(0, prompts)
        ours = evaluate(sampler, bench.model, some, batch_size=batch_size, seed=bench.seed, on_batch=bar)
        bench.evaluations[name] = ours
        columns = accuracy_columns(ours, bench.evaluations[bench.reference])
        difference = Interval(*(columns[f"difference{end}"] for end in ("", "_low", "_high")))
        row: dict[str, Any] = {"sampler": name, "settings": {"name": sampler.name} | asdict(sampler)}
        row |= columns | {"verdict": verdict(difference, prompts)}
        if (equal := _lossless_reference(bench, name)) is not None:
            row["lossless"] = _differing(ours.tokens, bench.evaluations[equal].tokens) | {"reference": equal}
        bench.results.rows[name] = row
        bench.results.save()
    bench.results.save("accuracy")


def speed(bench: Bench, prompts: int, warmup: int) -> None:
    """Batch-1 speed of all samplers in all modes, in turn; an interrupted run keeps the prompts that were finished."""
    bar = bar_of(bench.progress, f"speed of {len(bench.variants)} variants in turn", prompts)
    timings: dict[str, Timings] = {}
    try:
        time_in_turn(
            {label: variant.sampler for label, variant in bench.variants.items()},
            bench.model,
            bench.held_out.part(0, prompts),
            seed=bench.seed,
            warmup=warmup,
            on_prompt=bar,
            timings=timings,
        )
    finally:
        if timings and all(timing.seconds for timing in timings.values()):
            _speed_rows(bench, timings)
            bench.results.save()
    bench.results.save("speed")


def _speed_rows(bench: Bench, timings: Mapping[str, Timings]) -> None:
    for label, variant in bench.variants.items():
        best = bench.fastest.get(variant.name)
        if best is None or timings[label].quartiles()[1] > timings[best.label].quartiles()[1]:
            bench.fastest[variant.name] = variant
    best_timings = {name: timings[variant.label] for name, variant in bench.fastest.items()}
    baseline = fastest_equal_ar(bench.samplers, bench.evaluations, best_timings, bench.reference)
    for name, ours in best_timings.items():
        row = bench.results.rows[name]
        row |= {"mode": bench.fastest[name].mode, "modes": _modes(bench, name, timings)}
        row |= speed_columns(ours, best_timings[bench.reference])
        equal = ours.speedup_over(best_timings[baseline])
        row |= {"equal_accuracy_baseline": baseline, "speedup_equal_accuracy": equal.value}
        row |= {"speedup_equal_accuracy_low": equal.low, "speedup_equal_accuracy_high": equal.high}
        if "lossless" in row:
            reference = best_timings[row["lossless"]["reference"]]
            row["lossless"]["batch_1"] = _differing(ours.tokens, reference.tokens)


def _modes(bench: Bench, name: str, timings: Mapping[str, Timings]) -> dict[str, Any]:
    """Tokens per second of a sampler in every mode, and whether the mode changes its texts."""
    modes = {}
    for label, variant in bench.variants.items():
        if variant.name == name:
            low, median, high = timings[label].quartiles()
            modes[variant.mode] = {
                "tokens_per_second": median,
                "tokens_per_second_quartile_low": low,
                "tokens_per_second_quartile_high": high,
                "texts_as_in_batches": _differing(timings[label].tokens, bench.evaluations[name].tokens),
            }
    return modes


def shares(bench: Bench, prompts: int) -> None:
    """Shares of time in the seams, over the first prompts, each sampler in its fastest mode."""
    task = bench.progress.add_task("shares of time", total=len(bench.fastest))
    for name, variant in bench.fastest.items():
        bench.call(variant.sampler, 0)
        found = time_shares(
            bench.seams(variant),
            lambda variant=variant: [bench.call(variant.sampler, i) for i in range(prompts)],  # type: ignore[misc]
            bench.model.device,
        )
        bench.results.rows[name]["shares"] = asdict(found) | {"prompts": prompts}
        bench.progress.advance(task)
        bench.results.save()
    bench.results.save("shares")


def waiting(bench: Bench, prompts: int) -> None:
    """Steps that texts take, and by which their drafts are right, over the first prompts; eager, to compile nothing."""
    task = bench.progress.add_task("waiting", total=len(bench.samplers))
    for name, sampler in bench.samplers.items():
        found = []
        for i in range(prompts):
            trace = Trace()
            (text,) = bench.call(sampler, i, trace=trace).tokens
            found.append(draft_steps(trace, text))
        steps, right = (statistics.mean(column) for column in zip(*found, strict=True))
        bench.results.rows[name]["waiting"] = {"steps": steps, "right_by": right, "prompts": prompts}
        bench.progress.advance(task)
        bench.results.save()
    bench.results.save("waiting")


def bound(bench: Bench, prompts: int, repeats: int) -> None:
    """Seconds of each sampler against its own core passes run bare, in every mode; the figure takes the faster ones."""
    task = bench.progress.add_task("bare core passes", total=len(bench.variants))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for variant in bench.variants.values():
        calls = [lambda i=i, variant=variant: bench.call(variant.sampler, i) for i in range(prompts)]
        one = asdict(measure_bound(bench.seams(variant), calls, bench.model.device, repeats))
        modes = found.setdefault(variant.name, {})
        modes[variant.mode] = one
        ours, bare = (min(mode[key] for mode in modes.values()) for key in ("sampler_seconds", "bare_seconds"))
        # one mode: the median of ratios in turn; several: the fastest sampler over the fastest bare passes
        ratio = one["ratio"] if len(modes) == 1 else ours / bare
        bench.results.rows[variant.name]["bound"] = {"ratio": ratio, "prompts": prompts, "modes": modes}
        bench.progress.advance(task)
        bench.results.save()
    bench.results.save("bound")


def memory(bench: Bench, prompts: int) -> None:
    """Peak memory and key/value cache of one call with the longest of the first prompts, in the fastest mode."""
    task = bench.progress.add_task("memory", total=len(bench.fastest))
    longest = max(range(prompts), key=lambda i: len(bench.held_out.items[i].prompt_ids))
    for name, variant in bench.fastest.items():

        def call(sampler: Sampler = variant.sampler) -> SampleResult:
            return bench.call(sampler, longest)

        passes = record_passes(bench.seams(variant), call)
        bench.results.rows[name]["memory"] = {
            "peak_bytes": peak_bytes(call, bench.model.device),
            "kv_cache_bytes": max((each.cache_bytes for each in passes), default=0),
            "prompt_tokens": len(bench.held_out.items[longest].prompt_ids),
            "max_new_tokens": bench.held_out.max_new_tokens,
        }
        bench.progress.advance(task)
        bench.results.save()
    bench.results.save("memory")


def batches(bench: Bench, sizes: Sequence[int], prompts: int, repeats: int) -> None:
    """Throughput of batches over the same prompts, sizes in turn, in the fastest mode; the first round warms up."""
    task = bench.progress.add_task(f"batches of {', '.join(map(str, sizes))}", total=len(bench.fastest) * (repeats + 1))
    for name, variant in bench.fastest.items():
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        decoding: dict[int, list[float]] = {size: [] for size in sizes}
        texts: dict[int, list[list[int]]] = {}
        for _ in range(repeats + 1):
            for size in sizes:
                wait(bench.model.device)
                began = time.perf_counter()
                result = bench.call(variant.sampler, 0, prompts, size)
                wait(bench.model.device)
                seconds[size].append(time.perf_counter() - began)
                decoding[size].append(result.stats.decode_seconds)
                texts[size] = result.tokens
            bench.progress.advance(task)
        rates = {s: sum(map(len, texts[s])) / statistics.median(seconds[s][1:]) for s in sizes}
        alone = {s: sum(map(len, texts[s])) / statistics.median(decoding[s][1:]) for s in sizes}  # without prefills
        bench.results.rows[name]["batches"] = {
            str(size): {
                "tokens_per_second": rates[size],
                "over_batch_1": rates[size] / rates[1],
                "decoding_over_batch_1": alone[size] / alone[1],
                "texts_as_at_batch_1": _differing(texts[size], texts[1]),
            }
            for size in sizes
        }
        bench.results.save()
    bench.results.save("batches")


def _lossless_reference(bench: Bench, name: str) -> str | None:
    """The AR sampler whose text a lossless sampler promises, if it is measured too."""
    sampler = bench.samplers[name]
    if not isinstance(sampler, (Exact, Speculative)):
        return None
    same = {key: getattr(sampler, key) for key in ("num_steps", "init_scale")}
    same["prefill_steps"] = sampler.prefill_steps or None  # without one the prompt gets its recurrences with the lanes
    for other, candidate in bench.samplers.items():
        if isinstance(candidate, Autoregressive) and replace(candidate, **same, kv="per_depth") == candidate:
            return other if other in bench.evaluations else None
    return None


def _differing(ours: Tokens, reference: Tokens) -> dict[str, Any]:
    """How many texts are identical, and where the others part: prompt and first differing token, both from 0."""
    pairs = list(zip(ours, reference, strict=False))  # of the prompts that both continued
    places = [
        {
            "prompt": i,
            "token": next((j for j, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))),
        }
        for i, (a, b) in enumerate(pairs)
        if list(a) != list(b)
    ]
    return {
        "texts": len(pairs),
        "identical": len(pairs) - len(places),
        "identical_share": 1 - len(places) / len(pairs),
        "differing": places,
    }
