"""Put benchmark results into docs/results/samplers.md, so that no number there is typed by hand.

    python docs/update_results.py

Each folder docs/results/data/NAME holds the samplers.json and samplers.png that benchmarks/samplers.py wrote, and
about.md: which model it is and the command that trained it.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.showing import identical_texts, tables  # noqa: E402

RESULTS = ROOT / "docs" / "results"
HEAD = """# Samplers, measured

Made by `python docs/update_results.py` from `docs/results/data`. Each section is one run of `benchmarks/samplers.py`
([how it measures](../../benchmarks/README.md)): all samplers on one model, in turn in one process.
"""


def section(folder: Path) -> str:
    """One benchmark as Markdown."""
    head = json.loads((folder / "samplers.json").read_text(encoding="utf-8"))
    machine = head["machine"]
    lines = [(folder / "about.md").read_text(encoding="utf-8").strip(), ""]
    lines += ["```", shlex.join(head["command"]), "```", ""]
    lines += [f"![Speed-up against accuracy](data/{folder.name}/samplers.png)", ""]
    for grid in tables(head, head["samplers"]):
        lines += ["| " + " | ".join(grid.headers) + " |", "|" + "---|" + "--:|" * (len(grid.headers) - 1)]
        lines += ["| " + " | ".join(cells) + " |" for cells in grid.rows]
        lines += ["", grid.note, ""]
    lines += [f"- {line}" for line in identical_texts(head["samplers"])]
    facts = f"{machine['parameters'] / 1e6:.2f} M parameters, {machine['dtype']}, {machine['cpu']}, "
    facts += f"{machine['device']}, {machine['cores']} cores, torch threads: {machine['torch_threads']}, "
    return "\n".join([*lines, "", facts + f"torch {machine['torch']}.", ""])


def main() -> int:
    """Write the page."""
    folders = sorted(path.parent for path in (RESULTS / "data").glob("*/samplers.json"))
    page = "\n".join([HEAD, *map(section, folders)])
    (RESULTS / "samplers.md").write_text(page, encoding="utf-8")
    print(f"docs/results/samplers.md: {len(folders)} benchmarks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
