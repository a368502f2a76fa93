"""The card of a model, and pushing it to the hub: real code up to the network, which is a stand-in."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard, RepoCard
from huggingface_hub.errors import EntryNotFoundError, LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects

import recdepth
from recdepth import hub
from recdepth.run import train
from recdepth.settings import ConfigError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from hydra import compose, initialize_config_dir

    folder = tmp_path_factory.mktemp("runs") / "first"
    words = ["model=tiny", "model.hidden_size=32", "model.mean_recurrence=2", "debug=fdr", "compare=true"]
    with initialize_config_dir(str(Path(__file__).resolve().parents[2] / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=[*words, "report=false", f"paths.run_dir={folder}"])
    train(cfg)
    return folder


@pytest.fixture
def uploads(monkeypatch):
    """What would have gone to the hub."""
    found = []

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, **kwargs):
        names = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
        chosen = filter_repo_objects(names, allow_patterns=allow_patterns)  # as the hub's own does
        files = {name: Path(folder_path, name).read_bytes() for name in chosen}
        found.append({"repo": repo_id, "files": files, **kwargs})
        return SimpleNamespace(pr_url=None)

    def create_commit(self, repo_id, operations, **kwargs):
        files = {op.path_in_repo: Path(op.path_or_fileobj).read_bytes() for op in operations}
        found.append({"repo": repo_id, "files": files, **kwargs})
        return "https://hub/commit"

    def create_repo(self, repo_id, private=None, exist_ok=False, **kwargs):
        found.append({"repo": repo_id, "private": private, "exist_ok": exist_ok})
        return SimpleNamespace(repo_id=repo_id, __str__=lambda self: repo_id)

    def load(*args, **kwargs):
        raise EntryNotFoundError("no card yet")

    for name, stand_in in {"upload_folder": upload_folder, "create_commit": create_commit}.items():
        monkeypatch.setattr(huggingface_hub.HfApi, name, stand_in)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(RepoCard, "load", load)
    return found


def test_a_run_leaves_a_card_beside_its_model(trained):
    card = ModelCard.load(trained / "model" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    results = {result.metric_name: result for result in card.data.eval_results}
    assert {"accuracy, ar-4", "accuracy, df-paper"} <= set(results)
    assert results["accuracy, ar-4"].dataset_args == {"prompts": 2}
    text = card.content
    assert "recdepth.data.WordProblems" in text
    assert re.search(r"\| loss \| [\d.]+ \|", text)
    assert re.search(r"\| ar-4 \| [\d.]+ \(", text)
    assert "2 optimizer steps" in text
    assert "hidden_size: 32" in text
    assert str(trained) not in text
    assert "None" not in text
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert [type(yaml.safe_load(block)) for block in blocks] == [dict] * 3


def test_push_uploads_model_tokenizer_and_card_in_one_commit(trained, uploads):
    hub.push(trained, "someone/first", private=True, message="First")
    made, pushed = uploads
    assert made == {"repo": "someone/first", "private": True, "exist_ok": True}
    assert pushed["repo"] == "someone/first"
    assert pushed["commit_message"] == "First"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(pushed["files"])
    card = pushed["files"]["README.md"].decode()
    assert "# someone/first" in card
    assert 'from_pretrained("someone/first")' in card


def test_a_bare_model_folder_keeps_its_card_or_gets_one(trained, uploads, tmp_path):
    recdepth.load_model(trained / "model").save_pretrained(tmp_path)
    hub.push(tmp_path, "someone/bare")
    assert "## Shape" in uploads[-1]["files"]["README.md"].decode()
    (tmp_path / "README.md").write_text("mine")
    hub.push(tmp_path, "someone/bare")
    assert uploads[-1]["files"]["README.md"] == b"mine"


def test_the_models_own_push_takes_the_card_along(trained, uploads):
    model = recdepth.load_model(trained / "model")
    model.push_to_hub("someone/model")
    assert uploads[-1]["files"]["README.md"] == (trained / "model" / "README.md").read_bytes()
    assert {"config.json", "generation_config.json", "model.safetensors"} <= set(uploads[-1]["files"])
    other = trained / "other.md"
    other.write_text("# Other\n")
    model.push_to_hub("someone/model", card=other)
    assert uploads[-1]["files"]["README.md"] == b"# Other\n"
    recdepth.RecurrentDepthForCausalLM(model.config).push_to_hub("someone/model")
    assert b"recdepth" not in uploads[-1]["files"]["README.md"]  # transformers' own


def test_nothing_is_pushed_that_is_not_listed(trained, uploads, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(trained / "model", model)
    (model / "checkpoints").mkdir()
    for name in ("checkpoints/last.ckpt", "checkpoints/.env", ".env", "half.tmp"):
        (model / name).write_text("not for others")
    assert hub.main([str(model), "repo=someone/first", "dry_run=true"]) == 0
    listed = {Path(line.split()[-1]).name for line in capsys.readouterr().out.splitlines() if " bytes " in line}
    hub.push(model, "someone/first")
    assert set(uploads[-1]["files"]) == listed == {p.name for p in (trained / "model").iterdir()} | {"README.md"}


def test_a_hub_out_of_reach_is_explained(trained, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "HfApi", lambda: huggingface_hub.HfApi("http://127.0.0.1:9"))
    assert hub.main([str(trained), "repo=someone/first"]) == 2
    assert "repo=someone/first: " in capsys.readouterr().err


def test_the_command(trained, uploads, capsys):
    assert hub.main([str(trained), "repo=someone/first", "dry_run=true"]) == 0
    assert not uploads
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown
    assert "Nothing was pushed" in shown
    assert hub.main([str(trained), "repo=someone/first", "create_pr=true"]) == 0
    assert uploads[-1]["create_pr"] is True


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["repo=a/b"], "no folder: give one folder"),
        (["RUN", "RUN2"], r"give one folder(?s:.*)repo=owner/name is missing"),
        (["RUN", "repo=a/b", "privat=true"], "privat=true is not a setting of this program; did you mean private"),
        (["RUN", "repo=a/b", "private=maybe"], "private=maybe should be a valid boolean"),
        (["RUN", "repo=a/b/c"], "repo=a/b/c: Repo id must be"),
        (["NOWHERE", "repo=a/b"], "NOWHERE holds no model"),
    ],
)
def test_mistakes_are_explained(trained, words, text, capsys):
    assert hub.main([str(trained) if word.startswith("RUN") else word for word in words]) == 2
    assert re.search(text, capsys.readouterr().err)


def test_without_a_login(trained, uploads, monkeypatch):
    def refuse(*args, **kwargs):
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(ConfigError, match="there is no login; run hf auth login"):
        hub.push(trained, "someone/first")
