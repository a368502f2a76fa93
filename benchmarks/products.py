"""What the weights' layout gains for products on the CPU (recdepth.models.products).

All in one process, in turn: weights as torch.nn.Linear stores them, as ours do, packed for oneDNN, and our own code, as
compiled graphs have it; medians. Beside bare products, eager core passes and training steps.

    python benchmarks/products.py --threads 1
    python benchmarks/products.py --threads 1 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from recdepth import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.lifecycle import keep_large_buffers
from recdepth.models.kernels import can_use_kernels
from recdepth.models.products import Linear, multiply

#: name -> whether weights lie in memory as in torch.nn.Linear
VARIANTS = {"as nn.Linear": True, "transposed": False}


def product(plain: bool, rows: int, inner: int, columns: int) -> Callable[[], object]:
    """A forward product."""
    dtype = torch.get_default_dtype()
    layer, x = laid_out(Linear(inner, columns).to(dtype), plain), torch.randn(1, rows, inner, dtype=dtype)

    def call() -> None:
        with torch.inference_mode():
            layer(x)

    return call


def packed_product(rows: int, inner: int, columns: int) -> Callable[[], object]:
    """The same with a packed weight, called from Python, which takes some microseconds."""
    weight, x = torch.randn(columns, inner), torch.randn(1, rows, inner)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 64)

    def call() -> None:
        with torch.inference_mode():
            torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")

    return call


def own_product(rows: int, inner: int, columns: int) -> Callable[[], object]:
    """Our own code, ten times in one compiled graph."""
    weight, xs = torch.randn(inner, columns).t(), [torch.randn(1, rows, inner) for _ in range(10)]
    assert can_use_kernels(), "torch's compiler does not take our code"
    many = torch.compile(lambda xs, w: [multiply(x, w) for x in xs], dynamic=False, options={"cpp_wrapper": True})

    def call() -> None:
        with torch.inference_mode():
            many(xs, weight)

    return call


def core_pass(plain: bool, dim: int, lanes: int) -> Callable[[], object]:
    """One recurrence of a model with two core layers, without a cache, eager."""
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=64, hidden_size=dim)).eval()
    laid_out(model, plain)
    e, positions = torch.randn(1, lanes, dim), torch.arange(lanes)[None]
    span = model.span(positions, start=0, padded=False)

    def call() -> None:
        with torch.inference_mode():
            model.recur(e, e, None, span, 0)

    return call


def training_step(plain: bool, dim: int, batch: int, tokens: int) -> Callable[[], object]:
    """Forward and backward at depth 8, gradients through 4 recurrences, eager."""
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=64, hidden_size=dim))
    laid_out(model, plain)
    ids = torch.randint(0, 64, (batch, tokens))
    return lambda: model(ids, num_steps=8, labels=ids, backprop_depth=4).loss.backward()


def laid_out(module: nn.Module, plain: bool) -> nn.Module:
    """The module, its weights as torch.nn.Linear stores them if ``plain``."""
    for each in module.modules():
        if plain and isinstance(each, Linear):
            each.weight.data = each.weight.data.contiguous()
    return module


def in_turn(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every variant's calls, one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 3):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if repeat >= 3:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of products and passes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_default_dtype(getattr(torch, args.dtype))
    keep_large_buffers()
    print(f"{platform.platform()}, torch {torch.__version__}, {args.threads} threads, {args.dtype}")
    cases: dict[str, tuple[Callable[..., Callable[[], object]], tuple[int, ...], int]] = {}
    shapes: list[tuple[int, ...]] = [(1, 128, 688), (8, 128, 688), (16, 128, 688), (64, 128, 688), (1, 256, 1376)]
    for shape in [*shapes, (8, 256, 1376), (64, 256, 1376), (64, 512, 2752), (64, 1024, 5504)]:
        cases["product {} x {} x {}".format(*shape)] = product, shape, 200
    shapes = [(128, 1), (128, 8), (128, 64), (256, 8), (256, 64)]
    for shape in shapes:
        cases["core pass, dim {}, {} lanes".format(*shape)] = core_pass, shape, 200
    shapes = [(128, 16, 112), (256, 16, 112)] if args.dtype == "float32" else []
    for shape in shapes:
        cases["training step, dim {}, {}x{} tokens".format(*shape)] = training_step, shape, 8
    print(f"{'medians, ms':<40}" + "".join(f"{name:>22}" for name in [*VARIANTS, "packed", "ours"]))
    for case, (make, shape, repeats) in cases.items():
        calls = {name: make(plain, *shape) for name, plain in VARIANTS.items()}
        if make is product:
            calls["packed"] = packed_product(*shape)
            if args.dtype == "float32":
                calls["ours"] = own_product(*shape)
        medians = {
            name: statistics.median(s) / (10 if name == "ours" else 1) for name, s in in_turn(calls, repeats).items()
        }
        first = medians["as nn.Linear"]
        cells = (f"{1e3 * m:.3f} ({first / m:.2f}x)".rjust(22) for m in medians.values())
        print(f"{case:<40}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
