"""Programs that are compiled in a process of their own, in the environment that they need.

The process runs a module (``python -m``) that reads one JSON object, its request, and gives any
number of answers between whatever libraries print.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

ANSWER = "answer: "


def ask(
    module: str, request: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[list[Any], subprocess.CompletedProcess[str]]:
    """The answers of a module, and the process, which may have failed after some of them.

    Args:
      module: whose ``__main__`` reads the request.
      request: what JSON has words for.
      environment: all variables but the path of modules, which is that of this process.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(request),
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    return [json.loads(line.removeprefix(ANSWER)) for line in lines], done


def answer(value: Any) -> None:
    """Answer, in the process that was asked."""
    print(ANSWER + json.dumps(value), flush=True)


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Why a compiling process ended."""
    if done.returncode == -9:
        return (
            "it was killed, as it is where the memory of the computer runs out: compiling a large "
            "network takes up to 16 GiB"
        )
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"exit code {done.returncode}: {last}"
