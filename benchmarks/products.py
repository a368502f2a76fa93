"""What oneDNN gains over PyTorch's usual choice for large float32 products on the CPU (recdepth.models.products).

Both in one process, in turn; medians and quartiles. Beside bare products, compiled core passes and training steps.

    python benchmarks/products.py --threads 1
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

from recdepth import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.lifecycle import keep_large_buffers
from recdepth.models import products
from recdepth.models.products import Linear


def product(rows: int, inner: int, columns: int) -> Callable[[], object]:
    """A forward product."""
    layer, x = Linear(inner, columns), torch.randn(1, rows, inner)

    def call() -> None:
        with torch.inference_mode():
            layer(x)

    return call


def core_pass(dim: int, lanes: int) -> Callable[[], object]:
    """One recurrence of a model with two core layers, without a cache, eager."""
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=64, hidden_size=dim)).eval()
    e, positions = torch.randn(1, lanes, dim), torch.arange(lanes)[None]
    span = model.span(positions, start=0, padded=False)

    def call() -> None:
        with torch.inference_mode():
            model.recur(e, e, None, span, 0)

    return call


def training_step(dim: int, batch: int, tokens: int) -> Callable[[], object]:
    """Forward and backward at depth 8, gradients through 4 recurrences, eager."""
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=64, hidden_size=dim))
    ids = torch.randint(0, 64, (batch, tokens))
    return lambda: model(ids, num_steps=8, labels=ids, backprop_depth=4).loss.backward()


def in_turn(call: Callable[[], object], repeats: int) -> dict[bool, list[float]]:
    """Seconds of a call without and with oneDNN, one after the other."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(repeats + 3):
        for onednn in seconds:
            products.ONEDNN = onednn
            began = time.perf_counter()
            call()
            if repeat >= 3:
                seconds[onednn].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_large_buffers()
    if not torch.backends.mkldnn.is_available():
        raise SystemExit("this PyTorch was built without oneDNN: nothing to compare")
    print(
        f"{platform.platform()}, torch {torch.__version__}, {args.threads} threads; used by default: {products.ONEDNN}"
    )
    cases: dict[str, tuple[Callable[[], object], int]] = {}
    for rows, inner, columns in ((16, 128, 688), (64, 128, 688), (16, 256, 1376), (64, 256, 1376), (2496, 128, 688)):
        cases[f"product {rows} x {inner} x {columns}"] = product(rows, inner, columns), 200
    for dim, lanes in ((128, 16), (128, 64), (256, 16), (256, 64)):
        cases[f"core pass, dim {dim}, {lanes} lanes"] = core_pass(dim, lanes), 200
    for dim, batch, tokens in ((128, 16, 112), (256, 16, 112)):
        cases[f"training step, dim {dim}, {batch}x{tokens} tokens"] = training_step(dim, batch, tokens), 10
    print(f"{'':<40}{'without, ms':>22}{'with, ms':>22}{'gain':>8}")
    for name, (call, repeats) in cases.items():
        without, using = (statistics.quantiles(s, n=4) for s in in_turn(call, repeats).values())
        shown = "".join(f"{1e3 * q[1]:>10.3f} ({1e3 * q[0]:.3f}-{1e3 * q[2]:.3f})".rjust(22) for q in (without, using))
        print(f"{name:<40}{shown}{without[1] / using[1]:>7.2f}x", flush=True)


if __name__ == "__main__":
    main()
