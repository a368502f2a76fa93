"""Pages in a real browser, where there is one: no error, nothing wider than the window, tables that sort."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recdepth.reporting import read_overview, write_overview, write_report, write_sweep_report

TESTS = Path(__file__).parents[1]


def beside(name: str, path: Path) -> ModuleType:
    """A module of the tests."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


chromium = beside("browser", TESTS / "browser.py")
folders = beside("report_folders", TESTS / "reporting" / "test_reports.py")
pytestmark = pytest.mark.skipif(chromium.BROWSER is None, reason="no browser here")


@pytest.fixture
def chrome() -> Iterator[Any]:
    browser = chromium.Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reports")
    hostile = folders.make_run(root / "hostile", state="failed", error=folders.EVIL)
    (hostile / "samples.jsonl").write_text(json.dumps({"prompt": folders.EVIL, "text": 300 * "long"}))
    sweep = folders.make_sweep(root / "sweep")
    several = write_overview(read_overview([sweep / "0", sweep / "1", hostile]), root / "several.html")
    return {"run": write_report(hostile), "sweep": write_sweep_report(sweep), "several": several}


def test_pages_are_in_order(chrome: Any, pages: dict[str, Path]) -> None:
    for width in (1280, 390):
        for dark in (False, True):
            for name, page in pages.items():
                chrome.open(page, width=width, dark=dark)
                chrome.run("document.querySelectorAll('summary').forEach(summary => summary.click())")
                assert chrome.run("document.documentElement.scrollWidth") <= width, name
                assert chrome.run("document.querySelectorAll('[onerror], [onload]').length") == 0, name
    assert chrome.problems == []


def test_tables_sort_by_a_click(chrome: Any, pages: dict[str, Path]) -> None:
    chrome.open(pages["sweep"])
    first = "document.querySelector('table.sortable tbody tr').cells[0].textContent"
    rate = "[...document.querySelectorAll('th button')].find(b => b.textContent.includes('optimizer.lr')).click()"
    assert chrome.run(first) == "job 1"
    chrome.run(rate)
    assert chrome.run(first) == "job 0"
    chrome.run(rate)
    assert chrome.run(first) == "job 3"
