"""Files that are whole, whoever reads them and whatever happens meanwhile."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> Path:
    """Write a text file (UTF-8): a reader, or a disk that is full, keeps the old file or gets the new one.

    Raises:
        OSError: if it cannot be written; nothing of it is left.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        return draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
