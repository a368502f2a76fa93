"""Samplers on a model's held-out prompts: accuracy, speed, work, where the time goes, memory; in one process.

    python benchmarks/samplers.py                                    # the newest run, its data, the standard samplers
    python benchmarks/samplers.py --model RUN --num-steps 16 --sampler exact --sampler w4=exact,max_wavefront=4
    python benchmarks/samplers.py --model FOLDER --data word_problems task.max_steps=5 --sampler my.yaml

AR at r recurrences is the first sampler and the reference; AR at smaller depths and adaptive AR are always measured
too, so that the fastest AR of equal accuracy is known. See benchmarks/README.md for what is measured and how.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, of the memory part, prints otherwise

import torch
from rich.console import Console

from benchmarks import measuring
from benchmarks.composing import Variant, build_data, build_samplers, model_folder
from benchmarks.picture import plot
from benchmarks.showing import show
from recdepth import lifecycle, sources
from recdepth.data import DataModule
from recdepth.evaluation import HeldOut, machine_stamp
from recdepth.evaluation.compare import progress_bars
from recdepth.models import RecurrentDepthForCausalLM, can_compile
from recdepth.sampling import Sampler
from recdepth.settings import ConfigError

MODES = ("eager", "compiled")
PARTS = ("shares", "waiting", "bound", "memory", "batches")


def whole(least: int) -> Callable[[str], int]:
    """An argument type: an integer of at least so much."""

    def integer(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least {least}")
        return int(text)

    return integer


def listed(kind: Callable[[str], Any], known: Sequence[str] = ()) -> Callable[[str], list[Any]]:
    """An argument type: words with commas between them."""

    def words(text: str) -> list[Any]:
        found = [kind(word.strip()) for word in text.split(",") if word.strip()]
        unknown = [word for word in found if known and word not in known]
        if unknown or not found:
            raise argparse.ArgumentTypeError(f"{text!r}: give {', '.join(known) or 'numbers'}, with commas between")
        return list(dict.fromkeys(found))

    return words


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    count, number = whole(1), whole(0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="a run folder, a model folder or a hub id; default: the newest run under outputs/")
    add(
        "--data", nargs="+", default=[], metavar="WORD", help="NAME of conf/data, and key=value; default: the run's own"
    )
    add("--sampler", action="append", default=[], metavar="[NAME=]CONF[,key=value]", help="may be given many times")
    add("--num-steps", type=count, default=32, help="r, recurrences of the reference and of samplers that name none")
    add("--ar-depths", type=listed(count), help="of AR besides r; default: the smaller powers of two")
    add(
        "--modes",
        type=listed(str, MODES),
        default=list(MODES),
        help="eager,compiled: each sampler in each, where the machine can",
    )
    add("--accuracy-prompts", type=count, default=2000, help="held-out prompts, in batches")
    add("--batch-size", type=count, default=64, help="of the accuracy part")
    add("--speed-prompts", type=count, default=300, help="at batch 1, all samplers in turn")
    add("--warmup", type=number, default=1, help="prompts before the clock starts")
    add("--profile-prompts", type=count, default=4, help="for shares of time, waiting, bare passes and memory")
    add("--repeats", type=count, default=5, help="rounds of bare passes and of batches")
    add("--batch-sizes", type=listed(count), default=[1, 8], help="for throughput; 1 is always measured")
    add("--batch-prompts", type=count, default=32, help="prompts for throughput")
    add("--skip", type=listed(str, PARTS), default=[], help=f"parts to leave out: {', '.join(PARTS)}")
    add("--max-new-tokens", type=count, help="per prompt; default: what the data asks for")
    add("--seed", type=number, default=0, help="of the states' noise")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    add("--dtype", choices=list(sources.DTYPES), help="default: the model's own")
    add("--threads", type=count, help="of torch; default: torch's own choice")
    add("--out", type=Path, help="folder for samplers.json and samplers.png; default: outputs/benchmarks/<time>")
    args = parser.parse_args(argv)
    args.batch_sizes = sorted({1, *args.batch_sizes})
    return args


def held_out(args: argparse.Namespace, data: DataModule, model: RecurrentDepthForCausalLM) -> HeldOut:
    """As many prompts as the parts ask for.

    Raises:
        ConfigError: where there are fewer, or they do not fit the model.
    """
    asked = {"--accuracy-prompts": args.accuracy_prompts, "--speed-prompts": args.speed_prompts}
    asked |= {} if {*PARTS} - {"batches"} <= {*args.skip} else {"--profile-prompts": args.profile_prompts}
    asked |= {} if "batches" in args.skip else {"--batch-prompts": args.batch_prompts}
    key = max(asked, key=lambda name: asked[name])
    try:
        items = data.evaluation_items(asked[key], split="test")
    except ValueError as error:
        raise ConfigError([f"{key}={asked[key]}: {error}"]) from error
    if len(items) < asked[key]:
        raise ConfigError([f"{key}={asked[key]}: the data has {len(items)} held-out prompts; lower it"])
    vocabulary, context = model.config.vocab_size, model.config.max_position_embeddings
    highest = max(max(item.prompt_ids) for item in items)
    longest = max(len(item.prompt_ids) for item in items)
    new = args.max_new_tokens or data.max_new_tokens
    if highest >= vocabulary:
        raise ConfigError(
            [f"--data: token {highest} is outside the model's vocabulary of {vocabulary}; name its own data"]
        )
    if longest + new > context:
        raise ConfigError(
            [
                f"--max-new-tokens={new} after a prompt of {longest} tokens exceeds the model's context of {context};"
                f" lower it to {context - longest}"
                if longest < context
                else f"--data: a prompt of {longest} tokens"
                f" leaves no room in the model's context of {context}; shorten the prompts"
            ]
        )
    return HeldOut(items, data.score, new, data.stop_tokens)


def variants(
    samplers: dict[str, Sampler], modes: Sequence[str], device: torch.device
) -> tuple[dict[str, Variant], str]:
    """Every sampler in every mode that the machine can; and why one is missing, or ''."""
    able, why = can_compile(device)
    found = []
    for name, sampler in samplers.items():
        for mode in modes:
            if mode == "eager" or able:
                found.append(Variant(name, mode, replace(sampler, compile=mode == "compiled")))
    if not found:
        raise ConfigError([f"--modes={','.join(modes)}: {why}; add eager"])
    return {variant.label: variant for variant in found}, why if "compiled" in modes else ""


def prepare(args: argparse.Namespace, console: Console) -> measuring.Bench:
    """Load and check everything, before any work.

    Raises:
        ConfigError: naming what is wrong.
    """
    path = model_folder(args.model)
    samplers = build_samplers(args.sampler, args.num_steps, args.ar_depths)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError([f"--device={args.device}: no GPU is visible; take --device=cpu or --device=auto"])
    if args.device.split(":")[0] not in ("auto", "cpu", "cuda"):
        raise ConfigError([f"--device={args.device} is unknown; take auto, cpu, cuda or cuda:<number>"])
    model = sources.load(path, "--model", args.device, args.dtype)
    data, settings = build_data(args.data, path)
    prompts = held_out(args, data, model)
    longest = max(prompts.items, key=lambda item: len(item.prompt_ids))
    for name, sampler in samplers.items():
        try:
            sampler(model, [longest.prompt_ids], max_new_tokens=0)  # checks alone
        except ValueError as error:
            raise ConfigError([f"--sampler {name}: {' '.join(str(error).split())}"]) from error
    samplers = {name: replace(sampler, compile=False) for name, sampler in samplers.items()}  # --modes says where
    timed, why = variants(samplers, args.modes, model.device)
    if why:
        console.print(f"--modes: {why}", style="dim")
    kept = model.device.type == "cpu" and lifecycle.keep_large_buffers()
    head = {
        "machine": machine_stamp(model) | {"large_buffers_kept": kept},
        "model": str(path),
        "data": settings,
        "command": ["python", "benchmarks/samplers.py", *args.argv],
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "argv"},
        "reference": next(iter(samplers)),
    }
    folder = args.out or Path("outputs/benchmarks") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return measuring.Bench(
        model=model,
        held_out=prompts,
        seed=args.seed,
        samplers=samplers,
        variants=timed,
        results=measuring.Results(folder, head),
        progress=progress_bars(console),
    )


def measure(args: argparse.Namespace, bench: measuring.Bench) -> None:
    """All parts, the most important ones first."""
    with bench.progress:
        measuring.accuracy(bench, args.accuracy_prompts, args.batch_size)
        measuring.speed(bench, args.speed_prompts, args.warmup)
        if "shares" not in args.skip:
            measuring.shares(bench, args.profile_prompts)
        if "waiting" not in args.skip:
            measuring.waiting(bench, args.profile_prompts)
        if "bound" not in args.skip:
            measuring.bound(bench, args.profile_prompts, args.repeats)
        if "memory" not in args.skip:
            measuring.memory(bench, args.profile_prompts)
        if "batches" not in args.skip:
            measuring.batches(bench, args.batch_sizes, args.batch_prompts, args.repeats)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit code: 0, 2 for a mistake of the user's, 130 after Ctrl-C."""
    args = arguments(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    lifecycle.quiet()
    console = Console()
    try:
        bench = prepare(args, console)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    code = 0
    try:
        measure(args, bench)
    except KeyboardInterrupt:
        console.print("Stopped; what was finished is kept.")
        code = 130
    rows = list(bench.results.rows.values())
    if rows:
        show(bench.results.head, rows, console)
        console.print(f"\nFigures: {bench.results.folder / 'samplers.json'}")
    if rows and all("speedup" in row for row in rows):
        console.print(f"Picture: {plot(rows, bench.results.head, bench.results.folder / 'samplers.png')}")
    return code


if __name__ == "__main__":
    sys.exit(main())
