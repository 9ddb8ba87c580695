"""The results of cells on the disk, each whole or not there."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from edm_jax.store.atomic import to_json, write_atomically

FOLDER = "cells"


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write JSON values, whole or not at all, with the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(to_json(value), indent=2) + "\n")


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
            write_json(self.folder / f"{digest}.json", row)
