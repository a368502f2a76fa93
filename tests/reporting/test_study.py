"""The study of objectives: reading runs, the page, the picture, and the driver that makes the runs."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from matplotlib.markers import MarkerStyle

from benchmarks import df_aware as driver
from recdepth import checks, run
from recdepth.evaluation import mean_interval
from recdepth.reporting import frontier
from recdepth.reporting.frontier import Frontier
from recdepth.reporting.study import Setting, cell, equal_steps, fastest_equal, gain, grouped, read_run
from recdepth.settings import ConfigError

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"parameters": 1e6, "dtype": "float32", "cpu": "some", "cores": 2, "torch_threads": 2, "torch": "2"}


def script(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(name, kind, accuracy, speedup, **more):
    numbers = {
        "accuracy": accuracy,
        "difference": accuracy - 0.9,
        "speedup": speedup,
        "speedup_equal_accuracy": speedup / 2,
    }
    passes = {"core_passes_per_token": 1.0, "token_passes_per_token": 2.0, "flips_per_token": 0.1}
    return {
        "sampler": name,
        "settings": {"name": kind},
        "n": 700,
        "speed_n": 24,
        "machine": MACHINE,
        **numbers,
        **passes,
    }


def write(folder: Path, objective: str, seed: int, fast: float, tags=("df_aware",), max_steps=8, last=7, **comparison):
    folder.mkdir(parents=True)
    config = {"tags": list(tags), "seed": seed, "trainer": {"max_steps": max_steps}, "init_from": "shipped"}
    config["comparison"] = comparison
    config["callbacks"] = {"sampler_view": {"width": 16, "headway": 8}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "choices.yaml").write_text(yaml.safe_dump({"data": "word_problems", "objective": objective}))
    rows = [row("ar-32", "autoregressive", 0.9, 1.0), row("df-r1", "diffusion_forcing", 0.9, 4.0 + fast + seed)]
    rows += [row("df-h4", "diffusion_forcing", 0.5, 9.0), row("exact", "exact", 0.9, 2.0)]
    (folder / "comparison.json").write_text(json.dumps(rows))
    slow = 1.5 if objective == "aware" else 1.0
    lines = [
        {"step": 1, "seconds": 5.0 - 1.0 * slow, "train/loss": 1.0},
        {"step": 3, "seconds": 5.0, "train/loss": 1.0},
    ]
    lines.append({"step": last, "seconds": 2.0, "train/loss": 0.5})
    lines.append({"step": last + 1, "seconds": 3.0, "val/kv_agreement": 0.75})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def runs(tmp_path) -> Path:
    for seed in range(3):
        write(tmp_path / f"plain{seed}", "next_token", seed, 0.0)
        write(tmp_path / f"aware{seed}", "aware", seed, 4.0)
    write(tmp_path / "longer", "next_token", 1, 1.0, max_steps=-1, last=11)  # a step of aware takes half as long again
    write(tmp_path / "tuned", "aware", 0, 1.0, tags=["df_aware", "finetune"])
    (tmp_path / "unfinished").mkdir()
    return tmp_path


def test_a_run_is_read_and_its_sessions_add_up(runs) -> None:
    found = read_run(runs / "plain1")
    assert found.setting == Setting("word_problems", "scratch")
    assert (found.training, found.seed, found.steps, found.seconds) == ("next_token", 1, 8, 7.0)
    assert read_run(runs / "aware0").step_seconds == 0.75
    assert found.metrics["val/kv_agreement"] == 0.75 and found.reference == "ar-32"
    assert read_run(runs / "tuned").setting == Setting("word_problems", "finetune")
    assert read_run(runs / "longer").training == "next_token, equal time"
    with pytest.raises(ValueError, match=r"unfinished lacks config.yaml"):
        read_run(runs / "unfinished")


def test_compiled_samplers_have_a_section_of_their_own(tmp_path) -> None:
    write(tmp_path / "eager", "next_token", 0, 0.0)
    write(tmp_path / "compiled", "next_token", 0, 0.0, compile=True)
    groups = grouped([read_run(tmp_path / name) for name in ("eager", "compiled")])
    assert [str(s) for s in groups] == ["Word problems, from scratch", "Word problems, from scratch, compiled samplers"]


def test_seeds_are_averaged_and_the_fastest_equal_sampler_is_found(runs) -> None:
    groups = grouped(read_run(path.parent) for path in runs.glob("*/comparison.json"))
    scratch = groups[Setting("word_problems", "scratch")]
    assert list(scratch) == ["next_token", "next_token, equal time", "aware"] and [
        r.seed for r in scratch["aware"]
    ] == [0, 1, 2]
    found = cell(scratch["next_token"], "df-r1")
    assert found.speedup.value == 5.0 and found.speedup.low == pytest.approx(5 - 4.302653 / math.sqrt(3), abs=1e-5)
    name, best = fastest_equal(scratch["aware"], 0.9)
    assert name == "df-r1" and best.speedup.value == 9.0  # df-h4 is faster and wrong
    assert fastest_equal(scratch["aware"], 0.95) is None
    over = gain((scratch["aware"], "df-r1"), (scratch["next_token"], "df-r1"))
    assert over.value == pytest.approx((8 / 4 + 9 / 5 + 10 / 6) / 3)  # seed by seed
    assert gain((scratch["aware"][:1], "df-r1"), (scratch["next_token, equal time"], "df-r1")) is None
    alone = mean_interval([2.0])
    assert alone.value == 2.0 and math.isnan(alone.low)


def test_the_page_says_what_is_as_accurate_as_plain_training_but_not_as_its_own_model(runs) -> None:
    make = script("docs/update_df_aware.py").page

    def page() -> str:
        return make([read_run(path.parent) for path in sorted(runs.glob("*/comparison.json"))])

    assert "Measured by plain training's accuracy alone" not in page()  # df-h4 is as fast as df-r1, and wrong
    for path in runs.glob("aware*/comparison.json"):
        reference, *others = json.loads(path.read_text())
        rows = [row | {"speedup": 10.0, "difference": -0.05} if row["sampler"] == "df-h4" else row for row in others]
        path.write_text(json.dumps([reference | {"accuracy": 0.97}, *rows]))
    found = next(line for line in page().splitlines() if line.startswith("Measured by plain training's accuracy alone"))
    assert "90.0 ± 0.0 %, **aware** decodes 10.00 ± 0.00 times as fast as its ar-32 (sampler df-h4; " in found
    assert "92.0 ± 0.0 %, -5.0 ± 0.0 points to its own ar-32), plain training 5.00 ± 2.48 times (df-r1)" in found
    # seed by seed: 10/4, 10/5, 10/6
    assert found.endswith(": a gain of 2.06 ± 1.04 over next_token, 1.67 over next_token, equal time.")
    longer = runs / "longer" / "comparison.json"
    rows = [row | {"accuracy": 0.95} for row in json.loads(longer.read_text())]
    longer.write_text(json.dumps(rows))
    assert (
        ": a gain of 2.06 ± 1.04 over next_token. In as much time plain training is 95.0 % accurate, though." in page()
    )


def test_the_page_has_every_number_and_the_gain(runs) -> None:
    page = script("docs/update_df_aware.py").page(
        [read_run(path.parent) for path in sorted(runs.glob("*/comparison.json"))]
    )
    assert "## Word problems, from scratch\n" in page and "## Word problems, fine-tuned\n" in page
    line = next(line for line in page.splitlines() if line.startswith("| aware | 3 |"))
    assert line.endswith("| 1.82 ± 0.42 | 1.50 |")  # 8/4, 9/5 and 10/6; of seed 1 alone 9/6
    assert "9.00 ± 2.48" in line and "nan" not in page
    assert "over next_token, 1.50 over next_token, equal time (on 1 of 3 seeds)." in page
    assert "**aware** decodes 9.00 ± 2.48 times" in page and "by the means, the first is reached" in page
    assert "over the same on plain training: exact 1.00 ± 0.00 times as fast" in page
    assert "No plain runs" in page


def test_plain_training_of_less_time_is_no_measure(runs) -> None:
    metrics = runs / "longer" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"step": 11', '"step": 9'))
    page = script("docs/update_df_aware.py").page(
        [read_run(path.parent) for path in sorted(runs.glob("*/comparison.json"))]
    )
    assert next(line for line in page.splitlines() if line.startswith("| aware | 3 |")).endswith("| 1.82 ± 0.42 | – |")
    assert "1.82 ± 0.42 over next_token (it took longer than next_token, equal time, which says nothing" in page


def test_many_samplers_have_markers_of_their_own_that_show(tmp_path) -> None:
    folder = write(tmp_path / "run", "next_token", 0, 0.0)
    rows = [row("ar-32", "autoregressive", 0.9, 1.0)]
    rows += [row(f"df-{i}", "diffusion_forcing", 0.9 + i / 1000, 2.0 + i) for i in range(len(frontier._MARKERS))]
    (folder / "comparison.json").write_text(json.dumps(rows))
    assert frontier.plot_frontier([read_run(folder)], tmp_path / "many.png").stat().st_size > 10_000
    assert len(set(frontier._MARKERS)) == len(frontier._MARKERS)
    assert all(MarkerStyle(marker).is_filled() for marker in frontier._MARKERS)


def test_the_frontier_is_drawn_instead_of_training(runs, tmp_path) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        folder = tmp_path / "drawn"
        overrides = ["experiment=df_aware/frontier", f"frontier.runs=['{runs}/*']", f"paths.run_dir={folder}"]
        assert run.train(compose("train", overrides=overrides)) is None
        assert (folder / "frontier.png").stat().st_size > 10_000
        assert not (folder / "model").exists()
        overrides[1] = f"frontier.runs=['{tmp_path}/nowhere/*']"
        with pytest.raises(ConfigError, match=r"frontier.runs=.*hold no run with a comparison.json"):
            checks.check_train(compose("train", overrides=overrides))
    with pytest.raises(ValueError, match="names no run folder"):
        Frontier([])


def test_the_driver_lists_resumes_and_keeps(tmp_path, monkeypatch, capsys) -> None:
    arguments = ["--outputs", str(tmp_path), "--seeds", "0", "--tasks", "word_problems"]
    monkeypatch.setattr("sys.argv", ["df_aware.py", "--list", *arguments])
    assert driver.main() == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 4 + len(driver.OBJECTIVES) and all(line.endswith("to do") for line in listed)
    assert listed[0].startswith(f"[1/{len(listed)}] word_problems-scratch-next_token-0:")
    arguments += ["--starts", "finetune", "--budgets", "time", "--base", "word_problems", "0", "somewhere"]
    monkeypatch.setattr("sys.argv", ["df_aware.py", "--list", *arguments])
    assert driver.main() == 0
    assert capsys.readouterr().out == "[1/1] word_problems-finetune-next_token-time-0: to do\n"

    made = driver.Run("word_problems-finetune-aware-0", ("seed=0",))
    folder = made.folder(tmp_path)
    assert not any(word.startswith("resume=") for word in made.command(tmp_path))
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    assert made.command(tmp_path)[-1] == f"resume={folder}"
    (folder / ".hydra").mkdir()
    choices = {"data": "word_problems", "objective": "aware", "experiment": "df_aware/word_problems_finetune", "x": 1}
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"runtime": {"choices": choices}}}))
    config = {"tags": [], "seed": 0, "trainer": {"max_steps": 3}}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".hydra" / "provenance.json").write_text('{"torch": "2", "command": ["secret/path"]}')
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 2, "seconds": 61.5, "train/loss": 0.1}))
    (folder / "comparison.json").write_text(json.dumps([row("ar-32", "autoregressive", 1.0, 1.0)]))
    assert made.finished(tmp_path)
    write(tmp_path / "plain", "next_token", 0, 0.0)  # half a second a step
    timed = driver.Run("longer", ("experiment=df_aware/word_problems",), (made.name,), "plain").command(tmp_path)
    assert "trainer.max_steps=123" in timed and "tags=[df_aware,word_problems,scratch,equal_time]" in timed
    with pytest.raises(ValueError, match=r"nowhere lacks metrics.jsonl"):
        driver.Run("longer", (), ("nowhere",), "plain").command(tmp_path)
    monkeypatch.setattr(driver, "DATA", tmp_path / "kept")
    driver.keep(folder)
    assert read_run(tmp_path / "kept" / made.name).training == "aware" == read_run(folder).training
    assert read_run(folder).setting.task == "word_problems"
    wide = choices | {"data": "pointer_chase", "experiment": "df_aware/pointer_chase_wide_finetune"}
    (tmp_path / "kept" / made.name / "choices.yaml").write_text(yaml.safe_dump(wide))
    assert read_run(tmp_path / "kept" / made.name).setting.task == "pointer_chase_wide"
    assert "secret" not in (tmp_path / "kept" / made.name / "provenance.json").read_text()


def test_equal_time_is_counted_in_steps_of_plain_training(tmp_path) -> None:
    def record(name: str, begin: int, end: int, start: float, pace: float, busy: int = -1) -> list[dict]:
        lines, clock = [], start
        for step in range(begin, end):
            clock += pace + 40.0 * (step == busy)  # once something else had the machine
            lines.append({"step": step, "seconds": clock, "train/loss": 1.0})
        folder = write(tmp_path / name, "aware", 0, 0.0)
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return lines

    trunk = record("plain", 0, 200, 30.0, 0.5, busy=120)
    record("slower", 0, 200, 50.0, 1.0, busy=70)
    assert equal_steps(tmp_path / "slower", tmp_path / "plain") == 100 + 200 * 2  # it started for 50 seconds
    branch = record("branch", 160, 200, 10.0, 1.0, busy=180)
    (tmp_path / "branch" / "metrics.jsonl").write_text("\n".join(map(json.dumps, trunk[:160] + branch)))
    assert equal_steps(tmp_path / "branch", tmp_path / "plain") == 160 + 20 + 40 * 2
    config = yaml.safe_load((tmp_path / "branch" / "config.yaml").read_text())
    (tmp_path / "branch" / "config.yaml").write_text(yaml.safe_dump(config | {"tags": ["equal_time"]}))
    assert read_run(tmp_path / "branch").training == "aware, equal time"


def test_steps_that_become_dearer_count_by_their_share(tmp_path) -> None:
    folder, clock, lines = write(tmp_path / "late", "aware", 0, 0.0), 0.0, []
    for step in range(100):
        clock += 1.0 if step < 60 else 2.0
        lines.append({"step": step, "seconds": clock + 50.0 * (step > 30), "train/loss": 1.0})  # a validation
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_run(folder).step_seconds == pytest.approx(1.4, abs=0.05)
