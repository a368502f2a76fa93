"""What keeping large buffers (recdepth.lifecycle.keep_large_buffers) gains on the CPU.

Each measurement runs in a process of its own, with and without in turn; medians over all of them are printed.

    python benchmarks/allocator.py
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from recdepth import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.lifecycle import keep_large_buffers


def cost(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds and mean page faults of a call, after two calls that are not counted."""
    for _ in range(2):
        call()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / repeats


def product(rows: int, inner: int, columns: int) -> Callable[[], object]:
    """A float32 matrix product whose result is a fresh buffer."""
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    return lambda: a @ b


def training_step(batch: int, time_steps: int, recurrences: int) -> Callable[[], object]:
    """Forward and backward of the small model."""
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=64))
    ids = torch.randint(0, 64, (batch, time_steps))

    def step() -> None:
        loss = model(ids, num_steps=recurrences, labels=ids, backprop_depth=4).loss
        loss.backward()

    return step


def measure() -> dict[str, tuple[float, float]]:
    """All measurements of one process by name."""
    results = {}
    for rows, inner, columns in ((1792, 128, 384), (1792, 256, 128), (8192, 384, 1024), (16384, 384, 1024)):
        name = f"product {rows}x{inner}x{columns}, {rows * columns * 4 / 2**20:.0f} MiB"
        results[name] = cost(product(rows, inner, columns), 30)
    results["training step, 16x112 tokens"] = cost(training_step(16, 112, 4), 10)
    results["training step, 32x256 tokens"] = cost(training_step(32, 256, 4), 4)
    return results


def child(keep: bool) -> None:
    """Measure in this process and print JSON."""
    if keep and not keep_large_buffers():
        raise SystemExit("malloc is not glibc's, or refuses: nothing to compare")
    print(json.dumps(measure()))


def main() -> None:
    """Run the processes in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--child", choices=["keep", "default"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        return child(args.child == "keep")
    found: dict[str, dict[str, list[tuple[float, float]]]] = {"default": {}, "keep": {}}
    for _ in range(args.rounds):
        for mode, into in found.items():
            command = [sys.executable, __file__, "--child", mode, "--threads", str(args.threads)]
            for name, measured in json.loads(subprocess.check_output(command)).items():
                into.setdefault(name, []).append(measured)
    print(f"{platform.platform()}, torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds")
    print(f"{'':<34}{'default':>20}{'kept':>25}{'':>10}")
    print(f"{'':<34}{'ms':>10}{'page faults':>13}{'ms':>12}{'page faults':>13}{'gain':>8}")
    for name in found["default"]:
        before, after = (
            [statistics.median(column) for column in zip(*found[mode][name], strict=True)] for mode in found
        )
        print(
            f"{name:<34}{before[0] * 1e3:>10.2f}{before[1]:>13.0f}{after[0] * 1e3:>12.2f}{after[1]:>13.0f}"
            f"{before[0] / after[0]:>7.2f}x"
        )


if __name__ == "__main__":
    main()
