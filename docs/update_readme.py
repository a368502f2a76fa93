"""Put a run's comparison into README.md, so that no number there is typed by hand.

    python docs/update_readme.py outputs/train/runs/DAY/TIME

Fills the block between the markers from the run's ``comparison.json``, and copies its ``wavefront.png`` and
``comparison.png`` to ``docs/images``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recdepth.reporting.comparison import table_cells

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- comparison: begin (docs/update_readme.py) -->", "<!-- comparison: end -->"


def block(rows: Sequence[dict[str, Any]]) -> str:
    """The table and the facts below it, as Markdown."""
    first, machine = rows[0], rows[0]["machine"]
    reference, baseline = first["sampler"], first["equal_accuracy_baseline"]
    headers: tuple[str, ...] = (
        "sampler",
        "accuracy, % (95 %)",
        "agreement, %",
        "tokens/s",
        f"× {reference}",
        f"× {baseline}",
    )
    headers += ("core passes per token", "token passes per token")
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" + "--:|" * (len(headers) - 1)]
    lines += ["| " + " | ".join(table_cells(row)) + " |" for row in rows]
    best = max(rows, key=lambda row: row["speedup"] if row["difference_high"] >= 0 else 0.0)
    prompts = " to ".join(str(n) for n in sorted({min(r["n"] for r in rows), max(r["n"] for r in rows)}))
    lines += [
        "",
        f"`{best['sampler']}` is {best['speedup']:.1f} times as fast as `{reference}` (95 % interval "
        f"{best['speedup_low']:.1f} to {best['speedup_high']:.1f}); the paired difference in accuracy is "
        f"{100 * best['difference']:+.1f} points ({100 * best['difference_low']:+.1f} to "
        f"{100 * best['difference_high']:+.1f}). Accuracy on {prompts} held-out prompts, speed at batch 1 on "
        f"{first['speed_n']} prompts, samplers in turn. {machine['parameters'] / 1e6:.2f} M parameters, "
        f"{machine['dtype']}, {machine['cpu'] if machine['device'] == 'cpu' else machine['device']}, "
        f"{machine['cores']} cores, torch threads: {machine['torch_threads']}, torch {machine['torch']}.",
    ]
    return "\n".join(lines)


def fill(text: str, content: str) -> str:
    """Replace what is between the markers.

    Raises:
        ValueError: if the markers are not there.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md lacks the markers {BEGIN} … {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n{content}\n{END}", text)


def main() -> int:
    """Fill README.md from the run named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder with comparison.json")
    run = parser.parse_args().run
    source = run / "comparison.json"
    if not source.is_file():
        parser.error(f"{source} does not exist; run: python train.py experiment=quickstart")
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text(encoding="utf-8"), block(json.loads(source.read_text(encoding="utf-8")))))
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    for name in ("wavefront.png", "comparison.png"):
        shutil.copyfile(run / name, images / name)
        print(images / name)
    print(readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
