"""Pages in a real browser, where there is one: no error, nothing wider than the window, tables that sort."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recdepth.reporting import read_overview, write_overview, write_report, write_sweep_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

_SPEC = importlib.util.spec_from_file_location("report_folders", Path(__file__).with_name("test_reports.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
folders = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(folders)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reports")
    hostile = folders.make_run(root / "hostile", state="failed", error=folders.EVIL)
    (hostile / "samples.jsonl").write_text(json.dumps({"prompt": folders.EVIL, "text": 300 * "long"}))
    sweep = folders.make_sweep(root / "sweep")
    several = write_overview(read_overview([sweep / "0", sweep / "1", hostile]), root / "several.html")
    return {"run": write_report(hostile), "sweep": write_sweep_report(sweep), "several": several}


@pytest.mark.parametrize("name", ["run", "sweep", "several"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_is_in_order(browser: Any, pages: dict[str, Path], name: str, width: int) -> None:
    page, messages, requests = browser.new_page(viewport={"width": width, "height": 900}), [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(pages[name].as_uri())
    for details in page.query_selector_all("summary"):
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert messages == []
    assert requests == [pages[name].as_uri()]
    page.close()


def test_tables_sort_by_a_click(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["sweep"].as_uri())
    first = "() => document.querySelector('table.sortable tbody tr').cells[0].textContent"
    assert page.evaluate(first) == "job 1"
    page.click("th:has-text('optimizer.lr') button")
    assert page.evaluate(first) == "job 0"
    page.click("th:has-text('optimizer.lr') button")
    assert page.evaluate(first) == "job 3"
    page.close()
