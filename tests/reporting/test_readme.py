"""README's numbers come from a run, by a command."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("update_readme", ROOT / "docs" / "update_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(name: str, speedup: float, accuracy: float, high: float) -> dict:
    intervals = {
        f"{key}_{end}": value
        for key, value in (("accuracy", accuracy), ("speedup", speedup))
        for end in ("low", "high")
    }
    return intervals | {
        "sampler": name,
        "n": 300,
        "accuracy": accuracy,
        "difference": accuracy - 1,
        "difference_low": accuracy - 1.01,
        "difference_high": high,
        "agreement": 1.0,
        "speed_n": 24,
        "tokens_per_second": 10 * speedup,
        "speedup": speedup,
        "speedup_equal_accuracy": speedup / 2,
        "equal_accuracy_baseline": "ar-2",
        "core_passes_per_token": 3.0,
        "token_passes_per_token": 4.0,
        "machine": {
            "device": "cpu",
            "cpu": "Some CPU",
            "cores": 2,
            "torch_threads": 2,
            "dtype": "float32",
            "parameters": 842_880,
            "torch": "2.13.0",
        },
    }


def test_the_block_names_the_fastest_sampler_of_equal_accuracy(script) -> None:
    rows = [row("ar-32", 1.0, 1.0, 0.01), row("df", 9.0, 0.99, 0.002), row("sloppy", 20.0, 0.5, -0.4)]
    text = script.block(rows)
    assert "| df | 99.0 (99.0-99.0) | 100.0 | 90 | 9.00 | 4.50 | 3.00 | 4.0 |" in text
    assert "`df` is 9.0 times as fast as `ar-32`" in text
    assert "0.84 M parameters" in text


def test_only_the_block_is_replaced(script) -> None:
    text = f"before\n{script.BEGIN}\nold\n{script.END}\nafter 1\n"
    assert script.fill(text, "new \\1") == f"before\n{script.BEGIN}\nnew \\1\n{script.END}\nafter 1\n"
    with pytest.raises(ValueError, match="lacks the markers"):
        script.fill("nothing", "new")


def test_the_readme_has_the_block_and_its_links_lead_somewhere(script) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script.fill(readme, "")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", readme)
    assert {"LICENSE", "docs/sampler.md", "docs/images/wavefront.png"} <= set(links)
    assert [link for link in links if not (ROOT / link).exists()] == []
