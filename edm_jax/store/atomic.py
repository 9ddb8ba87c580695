"""Text files that are whole or not there, and JSON that every reader takes."""

from __future__ import annotations

import math
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Write a file so that it is either the old one or the whole new one."""
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


def to_json(value: Any) -> Any:
    """JSON values only: infinities and NaN, which JSON lacks, become texts."""
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value
