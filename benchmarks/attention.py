"""What attention by position gains for compiled core passes on the CPU (recdepth.models.attention).

The same pass with torch's own attention and with ours, in turn in one process; medians. The cache has room for 128
positions more than are in use.

    python benchmarks/attention.py --threads 1
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from unittest.mock import patch

import torch

from benchmarks.products import in_turn
from recdepth import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.lifecycle import keep_large_buffers
from recdepth.models import compilation, compiled_capacity
from recdepth.models.kernels import can_use_kernels


def core_pass(ours: bool, dim: int, rows: int, lanes: int, keys: int) -> Callable[[], object]:
    """One recurrence of the last lanes of each row, on the keys of all positions before them."""
    config = RecurrentDepthConfig(vocab_size=64, hidden_size=dim, num_attention_heads=4, core_layers=2)
    model = RecurrentDepthForCausalLM(config).eval()
    e, cache = torch.randn(rows, lanes, dim), model.new_cache(rows, compiled_capacity(keys + 128))
    positions = torch.arange(keys - lanes, keys).expand(rows, -1).contiguous()
    with patch.object(compilation, "can_use_kernels", lambda: ours and can_use_kernels()):
        seams = compilation.sampling_seams(model)
        places = seams.span(positions, cache, length=keys)

    def call() -> None:
        with torch.inference_mode():
            seams.recur(e, e, cache, places, 0)

    call.model = model  # type: ignore[attr-defined]  # seams do not keep it
    return call


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_large_buffers()
    print(f"{platform.platform()}, torch {torch.__version__}, {args.threads} threads")
    print(f"{'medians, ms':<44}{'torch':>10}{'ours':>20}")
    for shape in [
        (128, 1, 1, 80),
        (128, 1, 8, 80),
        (128, 1, 64, 110),
        (128, 8, 1, 80),
        (128, 8, 4, 80),
        (256, 1, 8, 80),
    ]:
        calls = {name: core_pass(name == "ours", *shape) for name in ("torch", "ours")}
        theirs, ours = (statistics.median(s) for s in in_turn(calls, 300).values())
        name = "core pass, dim {}, {} rows x {} lanes, {} keys".format(*shape)
        print(f"{name:<44}{1e3 * theirs:>10.3f}{1e3 * ours:>10.3f} ({theirs / ours:.2f}x)", flush=True)


if __name__ == "__main__":
    main()
