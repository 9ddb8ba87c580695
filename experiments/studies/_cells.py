"""Results of a study that are kept one by one, so that it goes on where it was stopped."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

from experiments.workdir import write_atomically


def kept(path: pathlib.Path, asked: Any, make: Callable[[], Any]) -> Any:
    """The result in a file if it is of the same request, else a new one, written there.

    Args:
      path: of a JSON file.
      asked: JSON values that say all the result depends on.
      make: the result, JSON values.
    """
    asked = json.loads(json.dumps(asked))
    try:
        there = json.loads(path.read_text())
        if there["asked"] == asked:
            return there["result"]
    except (OSError, ValueError, LookupError, TypeError):
        pass  # not there, or not whole
    result = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"asked": asked, "result": result}) + "\n")
    return result
