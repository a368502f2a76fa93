"""Seconds of a training step of every objective, against next_token's, in turn in one process.

    python benchmarks/objectives.py                              # the quickstart's model and batches
    python benchmarks/objectives.py --set compile=false model=tiny --objectives aware,staircase

Forward and backward, without the optimizer, on the same batches and the same depths: step n of every objective draws
the same r. Prints, and writes as JSON and as a Markdown table into the folder ``--out``, the median over steps of
each objective's seconds over next_token's of the same step, with quartiles, and the positions that went through the
core with gradients (they count three times) and without. The first rounds, in which graphs are compiled, do not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from recdepth import checks, lifecycle  # noqa: E402
from recdepth.evaluation import machine_stamp  # noqa: E402
from recdepth.models import RecurrentDepthForCausalLM, can_compile  # noqa: E402
from recdepth.objectives import Objective  # noqa: E402

PLAIN = "next_token"


def config(overrides: list[str], objective: str) -> DictConfig:
    """A training configuration with this objective."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=[*overrides, f"objective={objective}", "paths.run_dir=none"])


def step(objective: Objective, model: RecurrentDepthForCausalLM, batch: dict[str, Tensor], number: int) -> float:
    """Seconds of one step; the depth and the noise are those of every objective's step with this number."""
    torch.manual_seed(number)
    generator = torch.Generator().manual_seed(number)
    began = time.perf_counter()
    objective(model, batch, 1.0, generator).mean.backward()
    model.zero_grad()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def token_passes(objective: Objective, model: RecurrentDepthForCausalLM, batches: list[dict[str, Tensor]]) -> float:
    """Positions through the core per position of the batch and step; those with gradients count three times."""
    count, recur = 0.0, model.recur

    def counting(e: Tensor, s: Tensor, *rest: Any) -> Tensor:
        nonlocal count
        count += s.shape[0] * s.shape[1] * (3 if torch.is_grad_enabled() else 1)
        return recur(e, s, *rest)

    vars(model)["recur"] = counting
    try:
        for number, batch in enumerate(batches):
            step(objective, model, batch, number)
    finally:
        vars(model)["recur"] = recur
    return count / sum(batch["input_ids"].numel() for batch in batches)


def measure(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Time all objectives, one step of each after the other."""
    cfg = config(args.set, PLAIN)
    torch.manual_seed(0)
    data = checks.check_train(cfg)
    data.setup("fit")
    model = RecurrentDepthForCausalLM(checks.build(cfg, "model", vocab_size=len(data.tokenizer)))
    if cfg.compile and can_compile(model.device)[0]:
        model.compile_seams()
    stream = iter(data.train_dataloader())
    batches = [next(stream) for _ in range(args.steps)]
    objectives = {name: checks.build(config(args.set, name), "objective") for name in names}
    for objective in objectives.values():
        for number, batch in enumerate(batches[: args.warmup]):
            step(objective, model, batch, number)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number, batch in enumerate(batches):
        for name, objective in objectives.items():
            seconds[name].append(step(objective, model, batch, number))
    rows = {}
    for name in names:
        ratios = [a / b for a, b in zip(seconds[name], seconds[PLAIN], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        whole = sum(seconds[name]) / sum(seconds[PLAIN])
        rows[name] = {
            "milliseconds": 1000 * statistics.mean(seconds[name]),
            "ratio": whole,
            "ratio_median": statistics.median(ratios),
            "ratio_quartiles": [low, high],
            "token_passes": token_passes(objectives[name], model, batches[:8]),
        }
    return {
        "overrides": args.set,
        "steps": args.steps,
        "compiled": bool(cfg.compile),
        "machine": machine_stamp(model),
        "objectives": rows,
    }


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = ["| objective | ms a step | × next_token | median of steps (quartiles) | token passes, gradients thrice |"]
    lines.append("|---|--:|--:|--:|--:|")
    for name, row in found["objectives"].items():
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {name} | {row['milliseconds']:.1f} | {row['ratio']:.2f} | {row['ratio_median']:.2f} "
            f"({low:.2f}-{high:.2f}) | {row['token_passes']:.1f} |"
        )
    machine = found["machine"]
    facts = (
        f"{found['steps']} steps, {'compiled' if found['compiled'] else 'eager'}, `{' '.join(found['overrides'])}`, "
    )
    facts += (
        f"{machine['dtype']}, {machine['cpu']}, torch threads: {machine['torch_threads']}, torch {machine['torch']}."
    )
    return "\n".join([*lines, "", facts, ""])


def main() -> int:
    """Measure and write."""
    lines: Callable[[str], list[str]] = lambda text: [name for name in text.split(",") if name]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(path.stem for path in (ROOT / "conf" / "objective").glob("*.yaml") if path.stem != PLAIN)
    parser.add_argument("--objectives", type=lines, default=known, help="by name, with commas; all but next_token")
    parser.add_argument("--set", nargs="*", default=["experiment=quickstart"], help="overrides of train.py")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=8, help="steps of each objective that do not count")
    parser.add_argument("--out", type=Path, help="folder for objectives.json and objectives.md")
    args = parser.parse_args()
    lifecycle.quiet()
    lifecycle.keep_large_buffers()
    found = measure(args, [PLAIN, *args.objectives])
    print(table(found))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "objectives.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (args.out / "objectives.md").write_text(table(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
