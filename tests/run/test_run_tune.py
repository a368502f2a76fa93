"""`sample.py experiment=tune_sampler`: from a run folder to a sampler by name, interrupted and resumed, and errors."""

import html
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from recdepth import checks, checks_tune, run_sample, run_tune
from recdepth.evaluation import tune_bench
from recdepth.evaluation.tune import FinalCheck, Search, Tuning
from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM, can_compile
from recdepth.reporting.tuning import conclusion
from recdepth.sampling import Autoregressive, DiffusionForcing, base
from recdepth.settings import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "experiment=tune_sampler",
    "sampler.num_steps=4",
    "max_new_tokens=6",
    "tune.search.settings=4",
    "tune.search.rungs=[4,8]",
    "tune.search.timed_prompts=2",
    "tune.check.accuracy_prompts=6",
    "tune.check.speed_prompts=2",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training leaves it, with random weights."""
    folder = tmp_path_factory.mktemp("trained = run")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=["data.task.max_steps=4"])
    (folder / ".hydra").mkdir()
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    data = instantiate(cfg.data)
    torch.manual_seed(0)
    config = RecurrentDepthConfig(vocab_size=len(data.tokenizer), hidden_size=16, num_attention_heads=2)
    RecurrentDepthForCausalLM(config).save_pretrained(folder / "model")
    data.tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture(autouse=True)
def own_samplers(tmp_path, monkeypatch) -> None:
    """In this process, named samplers go under tmp_path."""
    for module in (checks_tune, run_tune):
        monkeypatch.setattr(module, "local_samplers", lambda: tmp_path / "local")


@pytest.fixture
def tuning(composed, trained) -> Callable[..., float | None]:
    """Tune in this process."""

    def run(*overrides: str, folder: str = "run", source: str = "run_dir='{}'") -> float | None:
        cfg = composed(*SMALL, source.format(trained), *overrides, name="sample", folder=folder)
        speedup = run_tune.tune(cfg)
        assert run_sample.sample_metric(cfg) == speedup
        return speedup

    return run


def facts(tmp_path: Path, folder: str = "run") -> dict:
    return json.loads((tmp_path / folder / "tune.json").read_text())


def test_the_command_that_is_printed_takes_the_winner(trained, tmp_path) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "conf", project / "conf", ignore=shutil.ignore_patterns("local"))
    shutil.copy(ROOT / "sample.py", project)

    def command(*words: str) -> "subprocess.CompletedProcess[str]":
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PATH": "/usr/bin:/bin"}
        environment["RECDEPTH_CACHE"] = str(tmp_path / "cache")
        words = (sys.executable, *words)
        return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=project, timeout=300)

    tune = ["sample.py", *SMALL, f"run_dir='{trained}'", "tune.name=mine"]
    found = command(*tune)
    assert found.returncode == 0, found.stderr
    path = project / "conf" / "sampler" / "local" / "mine.yaml"
    (folder,) = (p.parent for p in project.glob("outputs/sample/runs/*/*/tune.json"))
    assert path.read_text() == (folder / "mine.yaml").read_text()
    assert (folder / "tune.png").stat().st_size > 0
    for words in ("Search:", "Finalists on fresh prompts", "× df-paper", "not distinguishable", "within the budget"):
        assert words in found.stdout, words

    (printed,) = (line for line in found.stdout.splitlines() if line.strip().startswith("python sample.py"))
    program, *words = shlex.split(printed)
    assert program == "python"
    sampled = command(*words, "max_new_tokens=4", "num_prompts=1")
    assert sampled.returncode == 0, sampled.stderr
    (line,) = (json.loads(line) for line in (trained / "samples.jsonl").open())
    settings = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k != "_target_"}
    assert {key: line[key] for key in settings} == settings
    assert line["sampler"] == "diffusion_forcing"

    again = command(*tune)
    assert again.returncode == 2
    assert f"tune.name=mine: {path} exists already; give another name, or set tune.overwrite=true" in again.stderr


def test_what_was_found_goes_to_the_logger_and_into_the_report(tuning, tmp_path) -> None:
    assert tuning("logger=wandb") is not None
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert line["tune/speedup_paper"] == facts(tmp_path)["final"][-1]["speedup_paper"]
    assert set(checks_tune.TUNE_METRICS) <= line.keys()
    tables = {path.name.split("_")[0] for path in (tmp_path / "run").glob("wandb/*/files/media/table/tune/*.json")}
    assert tables == {"tried", "checked", "final"}
    assert list((tmp_path / "run").glob("wandb/*/files/media/images/tune/picture_*.png"))

    page, found = (tmp_path / "run" / "report.html").read_text(), facts(tmp_path)
    sentences = [html.escape(line, quote=False) for line in conclusion(found)]
    wanted = [*sentences, "Finalists on fresh prompts", "tuned.yaml", "_target_: recdepth.sampling", "badge good"]
    for words in [*wanted, found["reference"], found["paper"], found["winner"]]:
        assert words in page, words
    assert page.count("data:image/png;base64,") == 1


def test_an_interrupted_tuning_is_resumed_without_measuring_twice(tuning, tmp_path, monkeypatch, capsys) -> None:
    calls: list[str] = []
    evaluate = tune_bench.evaluate

    def interrupted(sampler, *args, **settings):
        if len(calls) == 6:
            raise KeyboardInterrupt
        calls.append(sampler.name)
        return evaluate(sampler, *args, **settings)

    monkeypatch.setattr(tune_bench, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuning(folder="first")
    assert len((tmp_path / "first" / "tune.jsonl").read_text().splitlines()) == 1 + 6
    assert facts(tmp_path, "first")["winner"] is None
    page = (tmp_path / "first" / "report.html").read_text()
    assert "interrupted" in page and "No setting is confirmed" in page
    assert not (tmp_path / "local").exists()

    monkeypatch.setattr(tune_bench, "evaluate", lambda *a, **k: calls.append("") or evaluate(*a, **k))
    assert tuning(f"tune.resume={tmp_path / 'first'}", folder="second") is not None
    resumed = facts(tmp_path, "second")
    assert resumed["measurements_taken_over"] == 6
    assert resumed["winner"] is not None
    samplings = [r for r in map(json.loads, (tmp_path / "second" / "tune.jsonl").open()) if "key" in r]
    keys = [json.dumps(record["key"]) for record in samplings]
    assert len(keys) == len(set(keys))
    assert len(calls) == sum(record["key"][0] == "score" for record in samplings)

    with pytest.raises(ConfigError, match=r"tune.resume=.*was measured with another seed \(0, now 1\)"):
        tuning(f"tune.resume={tmp_path / 'first'}", "seed=1", "tune.name=other", folder="third")
    assert not (tmp_path / "third" / "tune.jsonl").exists()


def test_when_none_fits_nothing_is_written(tuning, tmp_path, monkeypatch) -> None:
    evaluate = tune_bench.evaluate

    def losing(sampler, *args, **settings):
        found = evaluate(sampler, *args, **settings)
        found.scores = [float(isinstance(sampler, Autoregressive))] * found.n
        return found

    monkeypatch.setattr(tune_bench, "evaluate", losing)
    assert tuning("report=false") is None
    found = facts(tmp_path)
    assert (found["winner"], found["final"]) == (None, [])
    assert {row["fate"] for row in found["tried"]} == {"beyond the budget"}
    assert not (tmp_path / "local").exists() and not list((tmp_path / "run").glob("*.yaml"))
    assert not (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "tune.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("sampler", "left_out"),
    [("exact", "draft_depth=8"), ("speculative", "draft_depth=8"), ("adaptive", "prefill_steps=8")],
)
def test_other_samplers(tuning, tmp_path, caplog, sampler, left_out) -> None:
    with caplog.at_level("INFO"):
        assert tuning(f"sampler={sampler}") is not None
    assert f"Left out: tune.space.{sampler}.{left_out}: " in caplog.text
    found = facts(tmp_path)
    assert {row["settings"]["name"] for row in found["tried"]} == {sampler}
    (checked,) = found["checked"]
    assert checked["lossless"] == (sampler != "adaptive")
    if checked["lossless"]:
        assert checked["same_texts"] == checked["n"] == 6
        assert {row["n"] for row in found["tried"]} == {0}
    text = (tmp_path / "local" / "tuned.yaml").read_text()
    assert f"recdepth.sampling.{sampler.title()}" in text


def test_a_bare_model_with_a_task_of_its_own(tuning, trained, tmp_path, caplog) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(trained / "model", bare)
    with caplog.at_level("INFO"):
        assert tuning("data=word_problems", "data.task.max_steps=4", source=f"model_path={bare}") is not None
    printed = next(m for m in caplog.messages if "python sample.py" in m).strip().splitlines()[-1]
    assert f"model_path={bare}" in printed and "'prompt=" in printed and printed.endswith("sampler=local/tuned")


def test_compiled_means_the_check_all_final_speeds_and_the_file(tuning, tmp_path, monkeypatch) -> None:
    """The compiler itself is left out: samplers then run eagerly under their compiled names."""
    monkeypatch.setattr(checks_tune, "can_compile", lambda device: (True, ""))
    monkeypatch.setattr(base, "can_compile", lambda device: (False, "not in this test"))
    assert tuning("tune.compile=true") is not None
    assert yaml.safe_load((tmp_path / "local" / "tuned.yaml").read_text())["compile"] is True
    keys = [r["key"] for r in map(json.loads, (tmp_path / "run" / "tune.jsonl").open()) if "key" in r]
    compiled = {(what, part): set() for what, part in ((k[0], k[1]) for k in keys)}
    for what, part, *_, settings in ((*k[:5], k[5]) for k in keys):
        samplers = settings if what == "time" else [settings]
        compiled[what, part] |= {(s["name"] == "autoregressive", s["compile"]) for s in samplers}
    assert compiled["score", "search"] == compiled["time", "search"] == {(True, False), (False, False)}
    assert compiled["score", "fresh"] == {(True, False), (False, True)}  # against the texts of the eager reference
    assert compiled["time", "fresh"] == {(True, True), (False, True)}


def test_a_written_file_is_the_sampler(tmp_path) -> None:
    sampler = DiffusionForcing(num_steps=8, exit_threshold=0.2, max_wavefront=4, compile=True)
    text = run_tune.sampler_yaml(sampler, ["found: somehow", "x"])
    assert text.startswith("# found: somehow\n# x\n_target_: recdepth.sampling.DiffusionForcing\n")
    assert instantiate(OmegaConf.create(text)) == sampler


@pytest.mark.parametrize("path", ["outputs/a", "with space", "a=b,c", "it's", "a\\'b", "[x]", "${y}"])
def test_paths_in_the_printed_command(path) -> None:
    words = shlex.split(shlex.join([run_tune.override("run_dir", path)]))
    parsed = OverridesParser.create().parse_override(words[0]).value()
    assert str(parsed) == path.replace("${", "\\${") or str(parsed) == path


# -------------------------------------------------------------------------------------------------------------- errors


def problems(cfg) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        checks.check_sample(cfg)
    return caught.value.problems


def test_all_that_is_wrong_is_told_at_once(composed) -> None:
    found = problems(
        composed(
            "experiment=tune_sampler",
            *("tune.max_loss=-1", "tune.search.keep=1", "tune.check.speed_prompts=0", "tune.resume=nowhere"),
            *("tune.space.diffusion_forcing.noise=0.1", "+tune.space.diffusion_forcing.draft_depth=[1]"),
            *("prompt=x", "num_prompts=5", "temperature=1", "trace=true", "batch_size=0", "run_dir=gone"),
            name="sample",
        )
    )
    keys = {problem.split("=")[0] for problem in found}
    assert keys == {
        *("tune.max_loss", "tune.search.keep", "tune.check.speed_prompts", "tune.resume"),
        *("tune.space.diffusion_forcing.noise", "tune.space.diffusion_forcing.draft_depth"),
        *("prompt", "num_prompts", "temperature", "trace", "batch_size", "run_dir"),
    }
    assert len(found) == len(keys)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["tune.space.diffusion_forcing.inner_steps=[a]"],
            "tune.space.diffusion_forcing.inner_steps=a should be a valid",
        ),
        (
            ["tune.space.diffusion_forcing.inner_steps=[99]"],
            "tune.space.diffusion_forcing.inner_steps=[99]: impossible",
        ),
        (["sampler=autoregressive"], "sampler=autoregressive has no values to try"),
        (["sampler.compile=true"], "sampler.compile=true has no effect with experiment=tune_sampler"),
        (["model_path=${paths.outputs}/train/model"], "data=null: model_path="),
        (["data=word_problems", "data.task.min_steps=0"], "data.task.min_steps=0 must be at least 1"),
        (["stream=true", "batch_size=1"], "stream=true has no effect with experiment=tune_sampler"),
        (["optimized_metric=accuracy"], "optimized_metric=accuracy is not logged by experiment=tune_sampler"),
        (["tune.name=a/b"], "tune.name=a/b must be a file's name"),
        (["tune.compile=3"], "tune.compile=3 should be a valid boolean"),
    ],
)
def test_each_mistake_has_its_key(composed, overrides, expected) -> None:
    (found,) = problems(composed("experiment=tune_sampler", *overrides, name="sample"))
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+tune.max_loss=1"], "tune has no search, check, space"),
        (["+data=word_problems"], "data=… is for experiment=tune_sampler"),
    ],
)
def test_parts_of_it_without_the_whole(composed, overrides, expected) -> None:
    (found,) = problems(composed(*overrides, name="sample"))
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["sampler=exact"], "exact"),
        (["sampler=adaptive", "sampler.kv=per_depth", "tune.space.adaptive={inner_steps:[1,2]}"], "adaptive"),
        (["sampler=diffusion_forcing", "sampler.allow_unsupported=true"], "diffusion_forcing"),
    ],
)
def test_models_whose_keys_cannot_be_shared(tuning, trained, tmp_path, words, found) -> None:
    model = RecurrentDepthForCausalLM.from_pretrained(trained / "model")
    model.config.kv_sharing_safe = False
    shutil.copytree(trained, tmp_path / "alone")
    model.save_pretrained(tmp_path / "alone" / "model")
    source = f"run_dir='{tmp_path / 'alone'}'"
    assert tuning(*words, source=source) is not None
    assert (
        facts(tmp_path)["winner"]
        and f"_target_: recdepth.sampling.{found.title().replace('_', '')}"
        in (tmp_path / "local" / "tuned.yaml").read_text()
    )
    with pytest.raises(ConfigError, match=r"kv_sharing_safe is missing"):
        tuning("sampler=adaptive", "tune.name=other", source=source, folder="other")
    assert not (tmp_path / "other").exists()


def test_a_few_known_prompts_are_replaced_not_doubled(composed, monkeypatch) -> None:
    class Few:
        def evaluation_items(self, count, split):
            known = {"validation": [0, 1], "test": [1, *range(10, 19)]}[split]
            if count > len(known):
                raise ValueError(f"{count} {split} prompts were asked for")
            return [SimpleNamespace(prompt_ids=[i]) for i in known[:count]]

    tuning = Tuning(search=Search(rungs=[2]), check=FinalCheck(accuracy_prompts=3, speed_prompts=9))
    search, fresh = run_tune._prompts(tuning, Few())
    assert [item.prompt_ids for item in fresh] == [[i] for i in range(10, 19)] and len(search) == 2
    with pytest.raises(ConfigError, match=r"tune\.check\.speed_prompts=10: 11 test prompts were asked for"):
        run_tune._prompts(replace(tuning, check=FinalCheck(accuracy_prompts=3, speed_prompts=10)), Few())


def test_too_few_prompts_are_told_before_any_work(tuning, tmp_path, monkeypatch) -> None:
    (tmp_path / "notes.txt").write_text("\n\n".join(f"Number {i} of some text." for i in range(300)))
    with pytest.raises(ConfigError) as caught:
        tuning(*("data=text", f"data.source.path={tmp_path / 'notes.txt'}", "tune.check.accuracy_prompts=999"))
    assert any(p.startswith("tune.check.accuracy_prompts=999: 999 test prompts") for p in caught.value.problems)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "override", "expected"),
    [
        ("train.py", "experiment=tune_sampler", "experiment=tune_sampler is for sample.py, not for train.py"),
        ("sample.py", "experiment=quickstart", "experiment=quickstart is for train.py, not for sample.py"),
        ("sample.py", "tune.max_loss=1", "tune.max_loss=1 needs experiment=tune_sampler; add that"),
    ],
)
def test_the_recipe_of_the_other_program(script, override, expected) -> None:
    from recdepth.entry import composition_problems

    assert list(composition_problems(ROOT / "conf", script.removesuffix(".py"), [override])) == [expected]


def commands_of_the_page() -> list[list[str]]:
    page = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8").splitlines()
    lines = [shlex.split(line, comments=True) for line in page if line.startswith("python sample.py experiment=tune_s")]
    return [words[2:] for words in lines]


@pytest.mark.parametrize("words", commands_of_the_page(), ids=" ".join)
def test_the_commands_of_the_page_pass_the_checks(composed, trained, words) -> None:
    if "tune.compile=true" in words and not can_compile("cpu")[0]:
        pytest.skip("nothing can be compiled here")
    there = [word.replace("=outputs/quickstart", f"='{trained}'").replace("'/model", "/model'") for word in words]
    cfg = composed(*there, name="sample")
    checks.check_sample(cfg)
    assert cfg.tune.name == next((w.split("=")[1] for w in words if w.startswith("tune.name=")), "tuned")
