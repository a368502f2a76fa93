"""Files that are whole, whoever reads them and whatever happens meanwhile."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> Path:
    """Write a text file (UTF-8): a reader, or a disk that is full, keeps the old file or gets the new one.

    A link stays one; what is no file, such as ``/dev/stdout``, is written to.

    Raises:
        OSError: if it cannot be written; nothing of it is left.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return path
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path
