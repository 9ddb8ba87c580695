"""The evaluations of a run: the headline, and others beside it; none erases another."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.workdir import EVALUATION, WorkdirError, to_json, write_atomically

FOLDER = "evaluations"
# What an evaluation is about; the rest of a result is what was found.
ASKED = ("sampling", "num_images", "first_seed", "metrics", "weights", "progress")
# What came later, with the value that says nothing; results before it are of that.
ALSO_ASKED = {
    "labels": "balanced",
    "num_blocks": 1,
    "guidance": None,
    "images": None,
    "subset_seed": None,
    "reference_files": None,
}
# Where evaluations that are not finished keep what they have, inside FOLDER.
UNFINISHED = ".unfinished"


@contextlib.contextmanager
def unfinished(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where an evaluation keeps what it has, inside the folder of all; gone once it is empty."""
    path = folder / UNFINISHED
    yield path
    for empty in (path, folder):
        with contextlib.suppress(OSError):  # others keep theirs there
            empty.rmdir()


def references_directory() -> pathlib.Path:
    """Of this user: where references made of data sets are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "edm_jax" / "references"


def asked(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a result is about, as JSON values."""
    values = {key: result.get(key) for key in ASKED}
    for key, usual in ALSO_ASKED.items():
        if result.get(key) not in (None, usual):
            values[key] = result[key]
    return json.loads(json.dumps(to_json(values)))


def read(path: pathlib.Path) -> dict[str, Any] | None:
    """The result in a directory, or None if there is nothing readable."""
    try:
        result = json.loads((path / EVALUATION).read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def default_name(request: Mapping[str, Any]) -> str:
    """A name that says the sampler and its steps, and differs where anything else differs."""
    sampling = request.get("sampling") or {}
    if request.get("images"):
        stem = (
            re.sub(r"[^\w.+=-]+", "-", pathlib.Path(str(request["images"])).stem).strip("-.")
            or "images"
        )
        text = json.dumps(asked(request), sort_keys=True)
        return f"{stem or 'images'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    steps = sampling.get("num_steps") or len(sampling.get("sigmas", (0,))) - 1
    digest = hashlib.sha256(json.dumps(asked(request), sort_keys=True).encode()).hexdigest()
    sampler = re.sub(r"[^\w.+=-]+", "-", str(sampling.get("sampler", "heun"))).strip("-.")
    return f"{sampler or 'sampler'}-{steps}-{digest[:8]}"


def check_name(name: str) -> str:
    """A name for a directory; ValueError otherwise."""
    if not re.fullmatch(r"\w[\w.+=-]*", name):
        raise ValueError(f"--name={name}: letters, digits and . _ + = - only")
    return name


def check_free(path: pathlib.Path, request: Mapping[str, Any]) -> None:
    """Raise WorkdirError if a directory holds the evaluation of another request."""
    there = read(path)
    if there is not None and asked(there) != asked(request):
        old, new = asked(there), asked(request)
        differing = [key for key in (*ASKED, *ALSO_ASKED) if old.get(key) != new.get(key)]
        raise WorkdirError(
            f"{path} holds an evaluation of other settings ({', '.join(differing)} differ); "
            "choose another --name"
        )


def write(path: pathlib.Path, result: Mapping[str, Any]) -> pathlib.Path:
    """Write evaluation.json into a directory; what another request left there moves aside.

    Returns:
      The file.
    """
    path.mkdir(parents=True, exist_ok=True)
    there = read(path)
    if there is not None and asked(there) != asked(result):
        aside = path / FOLDER / default_name(there)
        aside.mkdir(parents=True, exist_ok=True)
        write_atomically(aside / EVALUATION, json.dumps(there, indent=2) + "\n")
    write_atomically(path / EVALUATION, json.dumps(to_json(result), indent=2) + "\n")
    return path / EVALUATION


def found(workdir: pathlib.Path, folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """All results of a run by name: the headline first, then those of a folder."""
    results = {"(headline)": read(workdir)} if workdir.is_dir() else {}
    if folder.is_dir():
        results |= {path.name: read(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    return {name: result for name, result in results.items() if result is not None}
