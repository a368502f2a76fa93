"""Push a model to the Hugging Face Hub, with its card and tokenizer.

python -m recdepth.hub outputs/train/runs/2026-01-01/12-00-00-000000 repo=owner/name private=true
python -m recdepth.hub outputs/quickstart repo=owner/name dry_run=true
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from .reporting.model_card import write_model_card
from .reporting.runs import is_run_folder
from .settings import ConfigError, mismatch, suggest

_KINDS: dict[str, Any] = {
    "repo": str,  # hub id, owner/name; made if it does not exist
    "private": bool,  # of a repository that is made
    "revision": str,  # branch; default: main
    "create_pr": bool,  # as a pull request
    "message": str,  # of the commit
    "dry_run": bool,  # only show what would be pushed
}


def push(
    folder: Path | str,
    repo: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
) -> str:
    """Upload a model folder, in one commit: weights, configuration, tokenizer and card.

    Args:
        folder: a run folder (its ``model/`` is pushed, its files are what the card is made of), or a model folder (its
            README.md is pushed as it is; without one it gets a card).
        repo: hub id; made if it does not exist.
        private: of a repository that is made; None: as the owner's settings say.
        revision: branch; None: main.
        create_pr: push as a pull request.
        message: of the commit.

    Returns:
        the address of what was pushed.

    Raises:
        ConfigError: for a folder without a model, without a login, or if the hub refuses; with the remedy.
    """
    model = prepare(folder, repo)
    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=url.repo_id,
            folder_path=model,
            commit_message=message or "Upload model",
            revision=revision,
            create_pr=create_pr,
            allow_patterns=[glob.escape(file.name) for file in pushed(model)],
        )
    except LocalTokenNotFoundError as error:
        raise ConfigError([f"repo={repo}: there is no login; run hf auth login"]) from error
    except Exception as error:
        known = isinstance(error, (HfHubHTTPError, OfflineModeIsEnabled, OSError))
        if not known and not type(error).__module__.startswith("httpx"):  # the client that the hub's library brings
            raise
        raise ConfigError([f"repo={repo}: {' '.join(str(error).split())}"]) from error
    return str(commit.pr_url or url)


def prepare(folder: Path | str, repo: str) -> Path:
    """The model folder that is to be pushed, with its card.

    Raises:
        ConfigError: for a folder without a model, or an impossible repository name.
    """
    path = Path(folder)
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError([f"repo={repo}: {error}"]) from error
    model = path / "model" if (path / "model" / "config.json").is_file() else path
    if not (model / "config.json").is_file():
        raise ConfigError([f"{folder} holds no model; give a run folder or a model folder"])
    if model != path and is_run_folder(path):
        write_model_card(model, path, repo)
    elif not (model / "README.md").is_file():
        write_model_card(model, repo=repo)
    return model


def pushed(model: Path) -> list[Path]:
    """The files of a model folder that go to the hub: none of its folders, none that are hidden."""
    return sorted(p for p in model.iterdir() if p.is_file() and not p.name.startswith(".") and p.suffix != ".tmp")


def parse(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The folder, and settings as ``key=value``.

    Raises:
        ConfigError: naming everything that is wrong with them.
    """
    folders, settings, problems = [], {}, []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or Path(word).exists():
            folders.append(word)
        elif key not in _KINDS:
            problems.append(f"{word} is not a setting of this program{suggest(key, _KINDS)}")
        else:
            value: Any = {"true": True, "false": False}.get(text.lower(), text) if _KINDS[key] is bool else text
            problems += mismatch(key, value, _KINDS[key])
            settings[key] = value
    if len(folders) != 1:
        problems.append(f"{' '.join(folders) or 'no folder'}: give one folder, of a run or of a model")
    if "repo" not in settings:
        problems.append("repo=owner/name is missing")
    if problems:
        raise ConfigError(problems)
    return folders[0], settings


def main(words: Sequence[str]) -> int:
    """Returns the exit code: 0, or 2 for what the user has to mend (explained on stderr)."""
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        folder, settings = parse(words)
        if settings.pop("dry_run", False):
            model = prepare(folder, settings["repo"])
            for path in pushed(model):
                print(f"{path.stat().st_size:>14,} bytes  {path}")
            print(f"Nothing was pushed to {settings['repo']} (dry_run=true).")
            return 0
        print(f"Pushed: {push(folder, **settings)}")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
