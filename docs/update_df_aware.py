"""Make docs/results/df_aware.md from the runs of the study, so that no number there is typed by hand.

    python docs/update_df_aware.py

Each folder docs/results/data/df_aware/RUN holds the config.yaml, choices.yaml, metrics.jsonl and comparison.json that
benchmarks/df_aware.py kept of a run. Draws docs/results/data/df_aware/frontier.png, too.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from recdepth.evaluation import Interval, mean_interval  # noqa: E402
from recdepth.reporting import plot_frontier  # noqa: E402
from recdepth.reporting.study import PLAIN, Setting, StudyRun, cell, fastest_equal, grouped, read_run  # noqa: E402

RESULTS = ROOT / "docs" / "results"
DATA = RESULTS / "data" / "df_aware"
HEAD = """# Training made for the sampler, measured

Made by `python docs/update_df_aware.py` from `docs/results/data/df_aware`, which `python benchmarks/df_aware.py` fills:
the same model, data and seeds with the plain objective (`next_token`) and with those that show the model what the
sampler will (`conf/objective`), compared by the same samplers (`conf/experiment/df_aware/samplers.yaml`). All numbers
are means over seeds with 95 % intervals (Student's t) of that mean, where there is more than one seed. Speed-ups are
over decodings of the *same* model in the same process: over AR at r, and over the fastest one-token-at-a-time sampler
whose accuracy is not distinguishable from that of AR at r. *Core* and *token passes* are per token.

![Speed-up against accuracy](data/df_aware/frontier.png)
"""
VIEW = ["draft_accuracy_depth_1", "draft_accuracy_depth_2", "draft_accuracy_depth_4", "flips_per_token"]
VIEW += ["recurrences_to_convergence", "kv_agreement"]


def grid(headers: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """A Markdown table; the first columns hold words."""
    rule = "|" + "---|" * words + "--:|" * (len(headers) - words)
    return ["| " + " | ".join(headers) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows), ""]


def spread(interval: Interval, digits: int = 2, factor: float = 1.0, sign: str = "") -> str:
    """``mean ± half the interval``."""
    text = f"{factor * interval.value:{sign}.{digits}f}"
    half = factor * (interval.high - interval.low) / 2
    return text if math.isnan(half) else f"{text} ± {half:.{digits}f}"


def headline(by_objective: Mapping[str, Sequence[StudyRun]]) -> list[str]:
    """The fastest sampler of equal accuracy for every objective, and its gain over plain training."""
    plain = by_objective.get(PLAIN)
    if plain is None:
        return ["No plain runs: nothing to compare with.", ""]
    reference = plain[0].reference
    needed = cell(plain, reference).accuracy.value
    base, rows = fastest_equal(plain, needed), []
    for objective, runs in by_objective.items():
        own = cell(runs, reference)
        best = fastest_equal(runs, needed)
        head = [objective, str(own.seeds), spread(own.accuracy, 1, 100)]
        if best is None:
            rows.append([*head, "none", *["–"] * 5])
            continue
        name, found = best
        gain = f"{found.speedup.value / base[1].speedup.value:.2f}" if base else "–"
        rows.append(
            [
                *head,
                name,
                spread(found.accuracy, 1, 100),
                spread(found.speedup),
                spread(found.speedup_equal),
                spread(found.core_passes),
                gain,
            ]
        )
    lines = [
        f"The fastest wavefront sampler that is as accurate as {reference} of plain training "
        f"({100 * needed:.1f} %, less half a point), by objective; the last column is its speed-up over that of plain.",
        "",
    ]
    headers = [
        "objective",
        "seeds",
        f"{reference}, %",
        "sampler",
        "accuracy, %",
        f"× {reference}",
        "× fastest equal AR",
    ]
    return [*lines, *grid([*headers, "core passes", "× plain"], rows)]


def every_sampler(by_objective: Mapping[str, Sequence[StudyRun]]) -> list[str]:
    """All samplers of all objectives."""
    rows = []
    for objective, runs in by_objective.items():
        for sampler in runs[0].rows:
            if any(sampler not in run.rows for run in runs):
                continue
            found = cell(runs, sampler)
            numbers = [spread(found.accuracy, 1, 100), spread(found.difference, 1, 100, "+"), spread(found.speedup)]
            numbers += [spread(found.speedup_equal), spread(found.core_passes), spread(found.token_passes, 1)]
            rows.append([objective, sampler, *numbers, spread(found.flips)])
    reference = next(iter(by_objective.values()))[0].reference
    headers = ["objective", "sampler", "accuracy, %", f"to {reference}, points", f"× {reference}", "× fastest equal AR"]
    body = grid([*headers, "core passes", "token passes", "flips"], rows, words=2)
    return ["<details><summary>Every sampler</summary>", "", *body, "</details>", ""]


def view(by_objective: Mapping[str, Sequence[StudyRun]]) -> list[str]:
    """What the sampler would meet on validation texts, and what training took."""
    rows = []
    for objective, runs in by_objective.items():
        numbers = []
        for name in VIEW:
            known = [run.metrics[f"val/{name}"] for run in runs if f"val/{name}" in run.metrics]
            numbers.append(spread(mean_interval(known), 3) if known else "–")
        steps, seconds = (mean_interval([getattr(run, what) for run in runs]) for what in ("steps", "seconds"))
        rows.append([objective, *numbers, f"{steps.value:.0f}", f"{seconds.value:.0f}"])
    headers = ["objective", "draft right at 1", "at 2", "at 4", "flips a lane", "recurrences to settle"]
    body = grid([*headers, "shared = per-depth KV", "steps", "seconds"], rows)
    return ["On validation texts, at the end, and what training took:", "", *body]


def section(setting: Setting, by_objective: Mapping[str, Sequence[StudyRun]]) -> str:
    """One task, start and budget."""
    some = next(iter(by_objective.values()))[0]
    first = next(iter(some.rows.values()))
    machine = first["machine"]
    prompts = f"{first['n']} prompts a seed for accuracy, {first['speed_n']} at batch 1 for speed"
    facts = f"{machine['parameters'] / 1e6:.2f} M parameters, {machine['dtype']}, {machine['cpu']}, {machine['cores']} "
    facts += f"cores, torch threads: {machine['torch_threads']}, torch {machine['torch']}; {prompts}."
    name = str(setting).replace("_", " ")
    title = f"## {name[0].upper()}{name[1:]}"
    return "\n".join([title, "", *headline(by_objective), *view(by_objective), *every_sampler(by_objective), facts, ""])


def page(runs: Sequence[StudyRun]) -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(setting, group) for setting, group in grouped(runs).items())])


def main() -> int:
    """Read, draw, write."""
    folders = sorted(path.parent for path in DATA.glob("*/comparison.json"))
    if not folders:
        print(f"{DATA} holds no runs; python benchmarks/df_aware.py makes them", file=sys.stderr)
        return 1
    runs = [read_run(folder) for folder in folders]
    plot_frontier(runs, DATA / "frontier.png")
    (RESULTS / "df_aware.md").write_text(page(runs), encoding="utf-8")
    print(json.dumps({"docs/results/df_aware.md": len(runs)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
