"""How soon states come to rest: their moves, recurrence by recurrence, of one model or several.

    python benchmarks/settling.py RUN …                # run folders, model folders or hub ids
    python benchmarks/settling.py plain=RUN contraction=RUN --num-steps 64 --out FOLDER

All positions of held-out texts go through the recurrence together, as in decoding with keys of every depth. Measured is
each state's move ``‖s − s_prev‖ / ‖s‖``, and after how many recurrences a position is at rest: once it and all before
it have moved by no more than so many units of rounding, as samplers with ``settle`` see it; the last recurrence where
they never do. Writes ``settling.json`` and ``settling.png``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.composing import build_data, model_folder  # noqa: E402
from benchmarks.samplers import whole  # noqa: E402
from recdepth import lifecycle, sources  # noqa: E402
from recdepth.evaluation import machine_stamp  # noqa: E402
from recdepth.models import RecurrentDepthForCausalLM  # noqa: E402
from recdepth.reporting.style import PALETTE, figure, save  # noqa: E402
from recdepth.settings import ConfigError  # noqa: E402

QUANTILES = (0.5, 0.9, 1.0)
UNITS = (16, 256)


@torch.inference_mode()
def moves(
    model: RecurrentDepthForCausalLM, batch: dict[str, Tensor], num_steps: int
) -> list[Float[np.ndarray, "depth time"]]:
    """Relative moves of every position up to a text's last labelled one, text by text."""
    ids = batch["input_ids"].to(model.device)
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    span = model.span(positions, start=0, padded=False)
    e = model.embed(ids, None, span)
    s, found = model.initial_state(e, torch.arange(len(ids), device=ids.device), positions, 0), []
    for depth in range(num_steps):
        before, s = s, model.recur(e, s, None, span, depth)
        found.append(((s - before).norm(dim=-1) / s.norm(dim=-1)).double().cpu().numpy())
    ends = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in batch["labels"] != -100]
    return [text[:, :end] for text, end in zip(np.stack(found, axis=1), ends, strict=True) if end]


def rest(text: Float[np.ndarray, "depth time"], threshold: float) -> Float[np.ndarray, " time"]:
    """After how many recurrences each position is at rest."""
    small = text <= threshold
    own = np.where(small.any(0), small.argmax(0) + 1, len(text))
    return np.maximum.accumulate(own).astype(float)


def measure(model: RecurrentDepthForCausalLM, batch: dict[str, Tensor], num_steps: int) -> dict[str, Any]:
    """Quantiles of the moves over positions, by recurrence; recurrences until rest, quartiles over texts."""
    texts, eps = moves(model, batch, num_steps), torch.finfo(model.dtype).eps
    every = np.concatenate(texts, axis=1)
    at_rest = {units: [float(rest(text, units * eps).mean()) for text in texts] for units in UNITS}
    return {
        "machine": machine_stamp(model),
        "eps": eps,
        "texts": len(texts),
        "positions": every.shape[1],
        "moves": {str(q): np.quantile(every, q, axis=1).tolist() for q in QUANTILES},
        "rest": {str(units): np.quantile(mean, (0.5, 0.25, 0.75)).tolist() for units, mean in at_rest.items()},
        "never": float((every[-1] > UNITS[-1] * eps).mean()),
    }


def draw(found: dict[str, dict[str, Any]], path: Path) -> Path:
    """Moves by recurrence: the median position and the slowest of each model, log axis."""
    fig, (ax,) = figure(7.5, 4.5)
    for colour, (name, one) in zip((*PALETTE, *PALETTE), found.items(), strict=False):
        for quantile, line, what in (("0.5", "-", "median"), ("1.0", ":", "slowest position")):
            values = np.maximum(one["moves"][quantile], one["eps"] / 4)  # a log axis has no 0
            ax.plot(range(1, len(values) + 1), values, line, color=colour, label=f"{name}, {what}")
    eps = max(one["eps"] for one in found.values())
    for units in UNITS:
        ax.axhline(units * eps, color="0.6", linewidth=0.8, linestyle="--")
        ax.annotate(
            f"{units} units of rounding",
            (0.99, units * eps * 1.1),
            xycoords=("axes fraction", "data"),
            ha="right",
            fontsize=8,
            color="0.4",
        )
    ax.set_yscale("log")
    ax.set_xlabel("recurrences")
    ax.set_ylabel("move of a state, relative to its length")
    ax.legend(fontsize=8)
    return save(fig, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit code: 0, or 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="[NAME=]MODEL", help="run folders, model folders or hub ids")
    parser.add_argument("--data", nargs="+", default=[], metavar="WORD", help="NAME of conf/data, and key=value")
    parser.add_argument("--num-steps", type=whole(1), default=32, help="recurrences")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--out", type=Path, help="default: outputs/benchmarks/<time>")
    args = parser.parse_args(argv)
    given_names = [word.rpartition("=")[0] or word for word in args.models]
    if twice := next((name for name in given_names if given_names.count(name) > 1), None):
        parser.error(f"{twice} is there twice; name them apart: NAME=MODEL")
    lifecycle.quiet()
    found: dict[str, dict[str, Any]] = {}
    try:
        for word in args.models:
            name, _, given = word.rpartition("=")
            path = model_folder(given)
            model = sources.load(path, "MODEL", args.device, None)
            data, _ = build_data(args.data, path)
            batch = next(iter(data.val_dataloader()))
            found[name or given] = one = measure(model, batch, args.num_steps)
            within = ", ".join(
                f"{units} units after {mid:.1f} ({low:.1f} to {high:.1f})"
                for units, (mid, low, high) in one["rest"].items()
            )
            print(f"{name or given}: at rest within {within} recurrences, {one['never']:.1%} not in {args.num_steps}")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    out = args.out or Path("outputs/benchmarks") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    out.mkdir(parents=True, exist_ok=True)
    command = ["python", "benchmarks/settling.py", *(sys.argv[1:] if argv is None else argv)]
    content = json.dumps({"command": command, "models": found}, indent=2) + "\n"
    (out / "settling.json").write_text(content, encoding="utf-8")
    print(f"Figures: {out / 'settling.json'}\nPicture: {draw(found, out / 'settling.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
