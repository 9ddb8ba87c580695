"""The results of cells on the disk, each whole or not there."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

FOLDER = "cells"


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


class CellFiles:
    """One JSON file for each cell, named by the digest of all that its result depends on.

    Args:
      directory: of the study; None keeps nothing.
    """

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self.folder = None if directory is None else pathlib.Path(directory).expanduser() / FOLDER

    def read(self, digest: str) -> dict[str, Any] | None:
        """A result; None if there is none that can be read."""
        if self.folder is None:
            return None
        try:
            found = json.loads((self.folder / f"{digest}.json").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and "values" in found else None

    def write(self, digest: str, row: Mapping[str, Any]) -> None:
        """Keep a result."""
        if self.folder is not None:
            write_text(self.folder / f"{digest}.json", json.dumps(row, indent=2) + "\n")
