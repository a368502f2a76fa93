"""Pages of runs, of several runs, and of sweeps: what is in the folders is on the page, whatever is in the folders."""

import json
import math
import os
import platform
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from recdepth.reporting import Status, read_overview, recorded, write_overview, write_report, write_sweep_report
from recdepth.reporting.__main__ import main, parse
from recdepth.reporting.files import write_whole
from recdepth.reporting.overview import differences, short_names
from recdepth.reporting.page import config_lines
from recdepth.reporting.runs import higher_is_better, read_run
from recdepth.reporting.sweep import read_sweep
from recdepth.reporting.sweep_figures import ranked
from recdepth.settings import ConfigError

EVIL = "</script><img src=x onerror=alert(1)><svg onload=alert(2)>"


class Outline(HTMLParser):
    """Tags, text and addresses of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self._skip = False
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._skip = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._skip = False

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.words.append(data)


def make_run(folder: Path, losses: tuple[float, ...] = (3.0, 2.0, 1.0), lr: float = 0.01, **status: Any) -> Path:
    """A run folder as train.py leaves it."""
    (folder / ".hydra").mkdir(parents=True)
    config = f"task_name: train\nseed: 0\noptimized_metric: val/loss\noptimizer:\n  lr: {lr}\n  momentum: 0.95\n"
    config += "trainer:\n  max_steps: 3\nevaluation:\n  items: 100\n"
    (folder / ".hydra" / "config.yaml").write_text(config)
    (folder / ".hydra" / "overrides.yaml").write_text(f"- optimizer.lr={lr}\n")
    facts = {"command": ["python", "train.py", f"optimizer.lr={lr}", "tags=[a b]"], "git_commit": "c0ffee"}
    (folder / ".hydra" / "provenance.json").write_text(json.dumps({**facts, "torch": "2.13.0", "git_dirty": True}))
    rows: list[dict[str, Any]] = [
        {"step": i, "seconds": 10.0 * (i + 1), "train/loss": x, "train/lr": lr, "train/tokens_per_second": 1000.0}
        for i, x in enumerate(losses)
    ]
    rows.append({"step": len(losses), "seconds": 75.0, "val/loss": losses[-1] + 0.5, "test/accuracy/df": 0.9})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status:
        (folder / "status.json").write_text(json.dumps(status))
    return folder


def make_sweep(folder: Path) -> Path:
    """Four jobs: two finished, one failed, one that has not started."""
    jobs = [{"job": i, "folder": str(i), "overrides": [f"optimizer.lr={0.01 * (i + 1)}"]} for i in range(4)]
    plan = {"program": "train", "command": ["optimizer.lr=0.01,0.02,0.03,0.04"], "jobs": jobs}
    plan |= {"metrics": ["val/loss"], "directions": ["minimize"]}
    for i, loss in enumerate((2.0, 1.0, 9.0)):
        make_run(folder / str(i), (loss,), 0.01 * (i + 1))
        done: dict[str, Any] = {"state": "finished", "metric": {"val/loss": loss + 0.5}, "seconds": 30.0}
        if i == 2:
            done = {"state": "failed", "error": f"ValueError: {EVIL}", "traceback": "Traceback …", "seconds": 5.0}
        Status(i, overrides=jobs[i]["overrides"], attempt=1, **done).write(folder / str(i))
    (folder / "sweep.json").write_text(json.dumps(plan))
    return folder


def test_the_page_of_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "day" / "time", state="finished", seconds=75.0)
    sample = {"sampler": "df", "prompt": "1 + 1", "text": "3", "answer": "2", "score": 0.0}
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n" + json.dumps({**sample, "text": "2", "score": 1}))
    (run / "wavefront.html").write_text("<p>")
    page = Outline(write_report(run))
    assert "train day/time finished" in page.text
    for words in ("steps 3", "val/ loss 1.5", "90.0 %", "time 1 min 15 s", "optimizer.lr 0.01", "torch 2.13.0"):
        assert words in page.text, words
    assert "df 90.0 (82.6-94.5)" in page.text  # Wilson, 90 of 100
    assert page.text.index("right df Prompt 1 + 1 Text 2") < page.text.index("wrong df Prompt 1 + 1 Text 3 Answer 2")
    assert "git checkout c0ffee python train.py optimizer.lr=0.01 'tags=[a b]'" in page.text
    assert "changes that were not committed" in page.text
    assert ("href", "wavefront.html") in page.attributes
    assert page.tags.count("svg") == 3  # loss, learning rate, throughput: no accuracies were logged in training


def test_the_page_is_one_file_that_no_text_can_break_out_of(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", state="failed", error=f"ValueError: {EVIL}", traceback=EVIL)
    (run / "samples.jsonl").write_text(json.dumps(dict.fromkeys(("sampler", "prompt", "text", "answer"), EVIL)))
    (run / ".hydra" / "overrides.yaml").write_text(json.dumps([f"tags={EVIL}"]))
    (run / ".hydra" / "config.yaml").write_text(json.dumps({"task_name": EVIL, "tags": [EVIL]}))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 0, "train/loss": 1.0, f"val/accuracy/{EVIL}": 0.5}))
    page = Outline(write_report(run))
    assert page.text.count("onerror=alert(1)") >= 8
    assert "img" not in page.tags
    assert page.tags.count("script") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    addresses = [value or "" for name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    policy = next(v for n, v in page.attributes if n == "content" and "default-src" in (v or ""))
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_a_killed_run_gets_a_report_and_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", state="running", pid=2**22 + 1, host=platform.node())
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tr')  # half a line, as a kill leaves it
    (run / "comparison.json").write_text('[{"sampler": "a')
    (run / "tune.json").write_text('{"tried": [], "checked": [], "final": [], "winner": null}')
    page = Outline(write_report(run))
    assert "run killed" in page.text
    assert "Cannot be read: comparison.json: Unterminated string" in page.text
    assert "Cannot be read: tune.json: budget, compile, paper, reference missing" in page.text
    assert read_run(run).last("val/loss") == 1.5
    alive = make_run(tmp_path / "alive", state="running", pid=os.getpid(), host=platform.node())
    assert read_run(alive).status.state == "running"
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "status.json").write_text('{"state": "failed", "error": "early"}')
    assert "early" in Outline(write_report(tmp_path / "bare")).text
    with pytest.raises(ValueError, match="it is no run folder"):
        write_report(tmp_path)


def test_the_status_says_how_a_run_ended(tmp_path: Path) -> None:
    with recorded(tmp_path) as status:
        assert read_run(tmp_path).status.state == "running"
        status["metric"] = {"val/loss": 0.5}
    assert (read_run(tmp_path).status.state, read_run(tmp_path).status.metric) == ("finished", {"val/loss": 0.5})
    with pytest.raises(RuntimeError), recorded(tmp_path):
        raise RuntimeError("no\nmore")
    status = read_run(tmp_path).status
    assert (status.state, status.error) == ("failed", "RuntimeError: no")
    assert "RuntimeError: no\nmore" in str(status.traceback)
    with pytest.raises(KeyboardInterrupt), recorded(tmp_path):
        raise KeyboardInterrupt
    assert read_run(tmp_path).status.state == "interrupted"
    Status(3, "running").write(tmp_path)  # the sweep's own record is left alone
    with recorded(tmp_path):
        pass
    assert json.loads((tmp_path / "status.json").read_text())["job"] == 3


def test_a_full_disk_does_not_hide_how_a_run_ended(tmp_path: Path, monkeypatch, caplog) -> None:
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    def fail() -> None:
        monkeypatch.setattr(Path, "write_text", full)
        raise RuntimeError("the cause")

    with pytest.raises(RuntimeError, match="the cause"), recorded(tmp_path):
        fail()
    assert "How the run ended (failed) could not be noted" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_samples_of_one_prompt_at_many_steps_count_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", state="finished", seconds=20)
    rows = [("ar", 0, "a", 0), ("df", 0, "a", 0), ("ar", 9, "a", 1), ("ar", 9, "b", 1), ("df", 9, "a", 1)]
    samples = [{"sampler": s, "step": at, "prompt": p, "text": "x", "score": score} for s, at, p, score in rows]
    (run / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    text = Outline(write_report(run)).text
    assert "Right, by the newest of each prompt: ar 100 % of 2 (95 %: 34-100), df 100 % of 1 (95 %: 21-100)." in text


def test_a_full_disk_leaves_the_report_of_before(tmp_path: Path, monkeypatch) -> None:
    run = make_run(tmp_path / "run", (3.0, 2.5), 0.001, state="finished", seconds=20)
    before = write_report(run).read_text(encoding="utf-8")

    def full(self: Path, text: str, **_) -> None:
        self.write_bytes(text[:100].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    names = sorted(path.name for path in run.iterdir())
    with pytest.raises(OSError, match="No space left"):
        write_report(run)
    assert (run / "report.html").read_text(encoding="utf-8") == before
    assert sorted(path.name for path in run.iterdir()) == names


def test_pages_go_where_a_link_points_and_to_pipes(tmp_path: Path) -> None:
    (tmp_path / "published.html").write_text("old")
    (tmp_path / "page.html").symlink_to(tmp_path / "published.html")
    assert write_whole(tmp_path / "page.html", "new") == tmp_path / "page.html"
    assert (tmp_path / "page.html").is_symlink() and (tmp_path / "published.html").read_text() == "new"
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "page.html", "\ud800")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "published.html"]
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "sent")
    assert os.read(reader, 99) == b"sent"
    os.close(reader)


def test_several_runs_on_one_page(tmp_path: Path) -> None:
    slow = make_run(tmp_path / "a" / "slow", (3.0, 2.5), 0.001, state="finished", seconds=20)
    fast = make_run(tmp_path / "b" / "fast", (3.0, 0.25), 0.01, state="finished", seconds=20)
    lost = make_run(tmp_path / "b" / "lost", (3.0, 0.1), 0.01, state="killed")
    overview = read_overview([slow, fast, lost, fast])
    assert overview.labels == ["a/slow", "b/fast", "b/lost"]
    assert differences(overview.runs) == {"optimizer.lr": ["0.001", "0.01", "0.01"]}
    path = write_overview(overview, tmp_path / "reports" / "all.html")
    page = Outline(path)
    assert ("href", "../b/fast/report.html") in page.attributes
    assert (path.parent / "../a/slow/report.html").is_file()
    assert "best val/ loss 0.75 b/fast" in page.text  # the killed run has 0.6, but did not come to its end
    assert re.search(r'<td class="best" data-value="0.75">0.75</td>', path.read_text())
    assert page.tags.count("svg") == 4
    with pytest.raises(ValueError, match="no such folder") as problem:
        read_overview([slow, tmp_path / "nothing", tmp_path])
    assert f"there are runs below it: {tmp_path / 'a/slow'}" in str(problem.value)


def test_the_page_of_a_sweep(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep")
    page = Outline(write_sweep_report(sweep))
    rows = page.text[page.text.index("time error job 1") :]
    assert rows.index("job 1 finished 0.02 1.5") < rows.index("job 0 finished 0.01 2.5")  # best first
    assert f"job 2 failed 0.03 9.5 5.0 s ValueError: {EVIL}" in rows
    assert "job 3 pending 0.04" in rows
    assert "python train.py -m optimizer.lr=0.01,0.02,0.03,0.04" in page.text
    assert f"sweep.resume={sweep}" in page.text
    assert "img" not in page.tags
    assert ("href", "1/report.html") in page.attributes
    assert [(sweep / str(i) / "report.html").is_file() for i in range(3)] == [True] * 3
    assert ("aria-label", "Parallel coordinates of sweep sweep") in page.attributes
    with pytest.raises(ValueError, match="nor a sweep folder"):
        write_sweep_report(sweep / "0")


def test_the_best_job_comes_first_whatever_diverged(tmp_path: Path) -> None:
    found, inf = read_sweep(make_sweep(tmp_path / "sweep")), math.inf
    values = [2.0, math.nan, 1.0, inf, -inf, None, 3.0]
    for direction, expected in (("minimize", [1.0, 2.0, 3.0]), ("maximize", [3.0, 2.0, 1.0])):
        jobs = [replace(found.finished[0], metrics={} if v is None else {found.metrics[0]: v}) for v in values]
        order = ranked(replace(found, jobs=jobs, directions=[direction]))
        assert [job.metrics[found.metrics[0]] for job in order[:3]] == expected
        assert len(order) == len(values)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run, sweep = make_run(tmp_path / "run", state="finished"), make_sweep(tmp_path / "sweep")
    for words, path in (
        ([str(run), "title=What lr does"], run / "report.html"),
        ([str(sweep)], sweep / "report.html"),
        ([str(run), str(sweep), f"out={tmp_path / 'x' / 'both.html'}"], tmp_path / "x" / "both.html"),
    ):
        assert main(words) == 0
        assert capsys.readouterr().out == f"Report: {path}\n"
        assert path.is_file()
    assert "What lr does" in Outline(run / "report.html").text
    monkeypatch.chdir(tmp_path)
    assert main([str(run), str(sweep / "0")]) == 0
    assert (tmp_path / "report.html").is_file()
    assert main([str(tmp_path / "nothing")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    with pytest.raises(ConfigError) as problem:
        parse(["--push", "tilte=x", "push=maybe"])
    assert [text.split(" is ")[0] for text in problem.value.problems[:2]] == ["--push", "tilte=x"]
    assert problem.value.problems[2:] == ["push=maybe should be a valid boolean"]
    with pytest.raises(ConfigError, match="entity=a is for push=true"):
        parse([str(run), "entity=a"])
    with pytest.raises(ConfigError, match="no folder was given"):
        parse(["title=x"])
    assert parse([str(run), "push=true", "sync=False"]).sync is False


def test_small_parts() -> None:
    assert short_names([Path("/x/1/a"), Path("/y/1/a"), Path("/y/1/b")]) == ["x/1/a", "y/1/a", "y/1/b"]
    assert [higher_is_better(n) for n in ("val/loss", "val/loss_depth_2", "test/accuracy/df", "train/lr")] == [
        False,
        False,
        True,
        None,
    ]
    lines = config_lines({"a": {"b": None, "c": {}}, "d": [1, "x"], "e": ""}, ["a.b", "d"])
    assert [(line.indent + line.text, line.changed) for line in lines] == [
        ("a:", False),
        ("  b: null", True),
        ("  c: {}", False),
        ('d: [1, "x"]', True),
        ('e: ""', False),
    ]
