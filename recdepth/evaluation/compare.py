"""All samplers on one task: accuracy, agreement, speed and work, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from recdepth.models import RecurrentDepthForCausalLM
from recdepth.sampling import Adaptive, Autoregressive, DiffusionForcing, Exact, Sampler

from .evaluate import Evaluation, agreement, evaluate
from .held_out import HeldOut
from .intervals import Interval, paired_difference
from .speed import Timings, machine_stamp, time_in_turn

Row = dict[str, Any]

EQUAL_DIFFERENCE = -0.005  # of mean scores, to the reference: what still counts as equal accuracy ...
EQUAL_PROMPTS = 2000  # ... over at least so many prompts


def comparison_samplers(num_steps: int = 32, ar_depths: Sequence[int] | None = None) -> dict[str, Sampler]:
    """The standard list: AR at r and at smaller depths, adaptive AR, exact twice, diffusion forcing three times.

    Args:
        num_steps: r of the reference, which is the first, ``ar-<r>``.
        ar_depths: the smaller depths; None for every power of two.
    """
    if ar_depths is None:
        powers = (1 << exponent for exponent in reversed(range(num_steps.bit_length())))
        ar_depths = [power for power in powers if power < num_steps]
    samplers: dict[str, Sampler] = {f"ar-{depth}": Autoregressive(num_steps=depth) for depth in (num_steps, *ar_depths)}
    samplers["adaptive"] = Adaptive(num_steps=num_steps)
    samplers["exact"] = exact = Exact(num_steps=num_steps, group=64, readout_growth=2.0)
    samplers["exact-rest"] = replace(exact, settle="auto")
    samplers["df-paper"] = DiffusionForcing(num_steps=num_steps, inner_steps=min(4, num_steps))
    samplers["df-loose"] = DiffusionForcing(
        num_steps=num_steps, inner_steps=1, exit_threshold=0.2, prefill_steps=min(8, num_steps)
    )
    samplers["df-headway"] = DiffusionForcing(
        num_steps=num_steps,
        inner_steps=1,
        exit_threshold=0.2,
        headway=2,
        max_wavefront=8,
        prefill_steps=min(4, num_steps),
    )
    return samplers


def compare(
    model: RecurrentDepthForCausalLM,
    samplers: Mapping[str, Sampler],
    held_out: HeldOut,
    *,
    reference: str,
    accuracy_prompts: int | Mapping[str, int] = 300,
    speed_prompts: int = 24,
    batch_size: int = 64,
    seed: int = 0,
    console: Console | None = None,
    compile: bool = False,
) -> list[Row]:
    """Compare samplers greedily: accuracy over many prompts in batches, speed over fewer, batch 1, in turn.

    Args:
        model: any recurrent-depth model.
        samplers: by name, see :func:`comparison_samplers`.
        held_out: the prompts, of which the first ones are used, where their texts end and how these are scored.
        reference: name of the sampler that the others are compared with (AR at r).
        accuracy_prompts: prompts for accuracy and agreement: one number, or one per sampler (the reference's must be
            the largest, since differences to it are paired).
        speed_prompts: prompts for speed and passes.
        batch_size: of the accuracy part.
        seed: of noise.
        console: where progress goes; None for standard output.
        compile: time compiled graphs, whatever the samplers say; accuracy is measured as they say.

    Returns:
        a row per sampler, in order; see :func:`comparison_row` for its keys.

    Raises:
        ValueError: for an unknown reference, numbers of prompts that do not fit, nothing to decode, or samplers that do
            not suit the model.
    """
    if held_out.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={held_out.max_new_tokens} leaves nothing to compare; take at least 1")
    if problems := [f"{name}: {p}" for name, each in samplers.items() for p in each.unsupported(model.config)]:
        raise ValueError("this model does not suit all samplers:\n" + "\n".join(f"  - {p}" for p in problems))
    counts = _prompt_counts(samplers, reference, accuracy_prompts, speed_prompts, len(held_out))
    timed = {name: replace(each, compile=True) if compile else each for name, each in samplers.items()}
    evaluations = {}
    with progress_bars(console or Console()) as progress:
        for name, sampler in samplers.items():
            bar = bar_of(progress, f"accuracy of {name}", counts[name])
            some = held_out.part(0, counts[name])
            evaluations[name] = evaluate(sampler, model, some, batch_size=batch_size, seed=seed, on_batch=bar)
        bar = bar_of(progress, f"speed of {len(samplers)} samplers in turn", speed_prompts)
        timings = time_in_turn(timed, model, held_out.part(0, speed_prompts), seed=seed, on_prompt=bar)
    baseline = fastest_equal_ar(samplers, evaluations, timings, reference)
    machine = machine_stamp(model)
    return [
        comparison_row(name, timed[name], evaluations, timings, reference, baseline) | {"machine": machine}
        for name in samplers
    ]


def comparison_row(
    name: str,
    sampler: Sampler,
    evaluations: Mapping[str, Evaluation],
    timings: Mapping[str, Timings],
    reference: str,
    baseline: str,
) -> Row:
    """One sampler's row; all intervals are 95 %.

    Returns:
        a dict of plain values. ``accuracy*`` and ``n``: mean score. ``difference*``: paired, to the reference.
        ``agreement``: see :func:`recdepth.evaluation.agreement`. ``tokens_per_second*``: median and quartiles.
        ``speedup*``: over the reference. ``speedup_equal_accuracy*``: over ``equal_accuracy_baseline``, the fastest
        AR sampler whose accuracy is not distinguishable from the reference's. ``core_passes_per_token`` (sequential)
        and ``token_passes_per_token`` (work), both while decoding at batch 1; ``prefill_passes_per_token`` apart.
    """
    return {
        "sampler": name,
        "settings": {"name": sampler.name} | asdict(sampler),
        **accuracy_columns(evaluations[name], evaluations[reference]),
        **speed_columns(timings[name], timings[reference]),
        **_spread("speedup_equal_accuracy", timings[name].speedup_over(timings[baseline])),
        "equal_accuracy_baseline": baseline,
    }


def accuracy_columns(ours: Evaluation, reference: Evaluation) -> Row:
    """The part of :func:`comparison_row` that needs no timings."""
    return {
        "n": ours.n,
        "accuracy": ours.accuracy,
        "accuracy_low": ours.low,
        "accuracy_high": ours.high,
        **_spread("difference", paired_difference(ours.scores, reference.scores[: ours.n])),
        "agreement": agreement(ours.tokens, reference.tokens[: ours.n]),
        "evaluation_seconds": ours.seconds,
    }


def speed_columns(ours: Timings, reference: Timings) -> Row:
    """The part of :func:`comparison_row` that needs no accuracies."""
    low, median, high = ours.quartiles()
    stats = ours.stats
    return {
        "speed_n": len(ours.seconds),
        "tokens_per_second": median,
        "tokens_per_second_quartile_low": low,
        "tokens_per_second_quartile_high": high,
        **_spread("speedup", ours.speedup_over(reference)),
        "core_passes_per_token": stats.core_passes / stats.new_tokens,
        "token_passes_per_token": stats.token_passes / stats.new_tokens,
        "prefill_passes_per_token": stats.prefill_passes / stats.new_tokens,
        "readouts_per_token": stats.readouts / stats.new_tokens,
        "flips_per_token": stats.flips / stats.new_tokens,
    }


def verdict(difference: Interval, n: int) -> str:
    """What a paired difference in accuracy over ``n`` prompts allows to say.

    Returns:
        ``equal``: at least -0.5 point, over at least 2000 prompts. ``not distinguishable``: fewer prompts, and the
        95 % interval holds 0. ``different`` otherwise, for better or worse.
    """
    if n >= EQUAL_PROMPTS:
        return "equal" if difference.value >= EQUAL_DIFFERENCE else "different"
    return "not distinguishable" if difference.low <= 0 <= difference.high else "different"


def fastest_equal_ar(
    samplers: Mapping[str, Sampler],
    evaluations: Mapping[str, Evaluation],
    timings: Mapping[str, Timings],
    reference: str,
) -> str:
    """The fastest sampler of one token at a time (any depth, or adaptive) whose accuracy is no worse.

    No worse: ``equal`` or ``not distinguishable`` by :func:`verdict`, or better. The reference always qualifies.
    """
    ref = evaluations[reference]

    def no_worse(name: str) -> bool:
        ours = evaluations[name]
        difference = paired_difference(ours.scores, ref.scores[: ours.n])
        return verdict(difference, ours.n) != "different" or difference.low > 0

    candidates = [
        name
        for name, sampler in samplers.items()
        if name == reference or (isinstance(sampler, (Autoregressive, Adaptive)) and no_worse(name))
    ]
    return max(candidates, key=lambda name: timings[name].quartiles()[1])


def _spread(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _prompt_counts(
    samplers: Mapping[str, Sampler],
    reference: str,
    accuracy_prompts: int | Mapping[str, int],
    speed_prompts: int,
    available: int,
) -> dict[str, int]:
    if reference not in samplers:
        raise ValueError(f"reference={reference!r} is not among the samplers; take one of {', '.join(samplers)}")
    if isinstance(accuracy_prompts, int):
        counts = dict.fromkeys(samplers, accuracy_prompts)
    else:
        missing = sorted(set(samplers) - set(accuracy_prompts))
        if missing:
            raise ValueError(f"accuracy_prompts has no number for {', '.join(missing)}; give one for every sampler")
        counts = {name: accuracy_prompts[name] for name in samplers}
    problems = [
        f"{key}={count} must lie between 1 and the {available} items given; lower it or give more items"
        for key, count in [
            *((f"accuracy_prompts[{n}]", c) for n, c in counts.items()),
            ("speed_prompts", speed_prompts),
        ]
        if not 1 <= count <= available
    ]
    problems += [
        f"accuracy_prompts[{name}]={count} exceeds the {counts[reference]} of the reference; raise that of {reference}"
        for name, count in counts.items()
        if count > counts[reference]
    ]
    if problems:
        raise ValueError("; ".join(dict.fromkeys(problems)))
    return counts


def bar_of(progress: Progress, description: str, total: int) -> Callable[[int], None]:
    """A further bar; called with how much is done."""
    task = progress.add_task(description, total=total)
    return lambda done: progress.update(task, completed=done)


def progress_bars(console: Console) -> Progress:
    """Bars with a description, counts and the time elapsed."""
    return Progress(
        TextColumn("{task.description:<36}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
