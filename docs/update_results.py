"""Put benchmark results into docs/results, so that no number there is typed by hand.

    python docs/update_results.py

samplers.md: each folder docs/results/data/NAME holds the samplers.json and samplers.png that benchmarks/samplers.py
wrote, and about.md: which model it is and the command that trained it. smollm2.md: the folders smollm2_* alike, with
the metrics of the training (metrics.jsonl). tune_sampler.md: each folder docs/results/data/tune_sampler/NAME holds the
tune.json, tune.png and tuned.yaml of `sample.py experiment=tune_sampler`, and about.md.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.showing import identical_texts, tables  # noqa: E402
from recdepth.reporting import tuning  # noqa: E402

RESULTS = ROOT / "docs" / "results"
HEAD = """# Samplers, measured

Made by `python docs/update_results.py` from `docs/results/data`. Each section is one run of `benchmarks/samplers.py`
([how it measures](../../benchmarks/README.md)): all samplers on one model, in turn in one process.

Compiled `ar` takes four recurrences in one graph now, because calling a graph takes as long as the recurrence of one
token of a small model. On the model that needs its depth `ar-32` gained 1.35 times by that, `ar-8` 1.28 times (medians
over 40 prompts, both ways in turn on one core of a Zen 3 CPU). That section, the larger model's and those of the
quickstart's model have been measured since; in the others speed-ups over compiled `ar` are larger than they would be
now. Compiled diffusion forcing of at most 8 lanes takes two steps in one graph, which the sections of the quickstart's
and the larger model alone know. Attention fetches keys ahead, which helps `ar` with keys per depth most: "two cores"
and the larger model's section alone know that. "Two cores" alone knows that a call takes over the cache of the call
before it, and none that without prefill guessed lanes open along with the prompt (a step less for `df-prompt`); the
sections of models "that come to rest" are by the code with all of that.
"""
SMOLLM2_HEAD = """# SmolLM2-135M-Instruct, retrofitted and fine-tuned on gsm_symbolic

Made by `python docs/update_results.py` from `docs/results/data/smollm2_*`. The model is made recurrent
([how](../checkpoints.md#retrofit)), then trained on worked answers ([how](../finetune.md)).

Validation loss, nats per answer token: on all rows of the validation loop at the mean depth, and at each r on the rows
of its first four batches.
"""
TUNING_HEAD = """# Samplers, tuned

Made by `python docs/update_results.py` from `docs/results/data/tune_sampler`. Each section is one run of
`sample.py experiment=tune_sampler` ([how it searches and checks](../tuning.md)).
"""


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table, the first column to the left."""
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" + "--:|" * (len(headers) - 1)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


def opening(folder: Path, command: Sequence[str], picture: str, alternative: str) -> list[str]:
    """What was measured, the command, the picture."""
    about = (folder / "about.md").read_text(encoding="utf-8").strip()
    path = (folder / picture).relative_to(RESULTS).as_posix()
    return [about, "", "```", shlex.join(command), "```", "", f"![{alternative}]({path})", ""]


def facts(machine: dict[str, Any]) -> str:
    """The machine, in words."""
    return (
        f"{machine['parameters'] / 1e6:.2f} M parameters, {machine['dtype']}, {machine['cpu']}, {machine['device']}, "
        f"{machine['cores']} cores, torch threads: {machine['torch_threads']}, torch {machine['torch']}."
    )


def section(folder: Path) -> str:
    """One benchmark as Markdown."""
    head = json.loads((folder / "samplers.json").read_text(encoding="utf-8"))
    lines = opening(folder, head["command"], "samplers.png", "Speed-up against accuracy")
    for grid in tables(head, head["samplers"]):
        lines += [*markdown(grid.headers, grid.rows), "", grid.note, ""]
    lines += [f"- {line}" for line in identical_texts(head["samplers"])]
    return "\n".join([*lines, "", facts(head["machine"]), ""])


def losses(files: dict[str, Path]) -> str:
    """Validation losses in the metrics.jsonl of trainings, by name, as Markdown."""
    headers, rows = ["model", "all rows, mean depth"], []
    for name, file in files.items():
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for found in (line for line in lines if "val/loss" in line):
            depths = {
                key.rpartition("_")[2]: value for key, value in found.items() if key.startswith("val/loss_depth_")
            }
            headers[2:] = [f"r = {depth}" for depth in depths]
            values = [found["val/loss"], *depths.values()]
            row = [name.format(step=found["step"] + 1), *(f"{value:.3f}" for value in values)]
            rows += [row] if row not in rows else []  # a run that ends with a validation repeats it
    return "\n".join([*markdown(headers, rows), ""])


def tuning_section(folder: Path) -> str:
    """One tuning as Markdown."""
    found = json.loads((folder / "tune.json").read_text(encoding="utf-8"))
    lines = opening(folder, found["command"], "tune.png", "Loss against speed-up of all settings that were tried")
    lines += [f"- {line}" for line in tuning.conclusion(found)]
    for grid in tuning.tables(found):
        lines += ["", f"{grid.title}:", "", *markdown(grid.headers, grid.rows)]
    lines += ["", *(f"{note}\n" for note in tuning.notes(found))]
    if (folder / "tuned.yaml").exists():
        lines += ["The file that was written:", "", "```yaml"]
        lines += [(folder / "tuned.yaml").read_text(encoding="utf-8").strip(), "```", ""]
    minutes = f"{found['seconds'] / 60:.1f} minutes ({found['cpu_seconds'] / 60:.1f} of processor time)"
    again = found["measurements_taken_over"]
    taken = f", {again} measurements taken over from an interrupted one" if again else ""
    return "\n".join([*lines, f"{minutes}{taken}. {facts(found['machine'])}", ""])


def write(name: str, head: str, folders: Sequence[Path], part: Callable[[Path], str]) -> None:
    """Write a page."""
    page = "\n".join([head, *map(part, folders)])
    (RESULTS / name).write_text(page, encoding="utf-8")
    print(f"docs/results/{name}: {len(folders)} sections")


def main() -> int:
    """Write the pages."""
    benchmarks = sorted(path.parent for path in (RESULTS / "data").glob("*/samplers.json"))
    smollm2 = [RESULTS / "data" / f"smollm2_{what}" for what in ("before", "after", "float32")]
    before, after, _ = smollm2
    write("samplers.md", HEAD, [folder for folder in benchmarks if folder not in smollm2], section)
    found = losses({"before": before / "metrics.jsonl", "step {step}": after / "metrics.jsonl"})
    write("smollm2.md", f"{SMOLLM2_HEAD}\n{found}", [f for f in smollm2 if f in benchmarks], section)
    tunings = sorted(path.parent for path in (RESULTS / "data" / "tune_sampler").glob("*/tune.json"))
    write("tune_sampler.md", TUNING_HEAD, tunings, tuning_section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
