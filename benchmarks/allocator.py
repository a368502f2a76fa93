"""What keeping large buffers (recdepth.lifecycle.keep_large_buffers) gains on the CPU.

Each measurement runs in a process of its own, with and without in turn; medians over all of them are printed.

    python benchmarks/allocator.py
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from recdepth import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.lifecycle import keep_large_buffers


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after two calls that are not counted."""
    seconds = []
    for i in range(repeats + 2):
        began = time.perf_counter()
        call()
        if i >= 2:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


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


def measure() -> dict[str, float]:
    """All measurements of one process: seconds by name."""
    results = {}
    for rows, inner, columns in ((1792, 128, 384), (1792, 256, 128), (8192, 384, 1024), (16384, 384, 1024)):
        name = f"product {rows}x{inner}x{columns}, {rows * columns * 4 / 2**20:.0f} MiB"
        results[name] = median_seconds(product(rows, inner, columns), 30)
    results["training step, 16x112 tokens"] = median_seconds(training_step(16, 112, 4), 10)
    results["training step, 32x256 tokens"] = median_seconds(training_step(32, 256, 4), 4)
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
    parser.add_argument("--child", choices=["keep", "default"])
    args = parser.parse_args()
    if args.child:
        return child(args.child == "keep")
    found: dict[str, dict[str, list[float]]] = {"default": {}, "keep": {}}
    for _ in range(args.rounds):
        for mode, into in found.items():
            command = [sys.executable, __file__, "--child", mode]
            for name, seconds in json.loads(subprocess.check_output(command)).items():
                into.setdefault(name, []).append(seconds)
    print(f"{platform.platform()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {args.rounds} rounds")
    for name in found["default"]:
        before, after = (statistics.median(found[mode][name]) for mode in ("default", "keep"))
        print(f"{name:<42} default {before * 1e3:8.2f} ms   keep {after * 1e3:8.2f} ms   {before / after:5.2f}x")


if __name__ == "__main__":
    main()
