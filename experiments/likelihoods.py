"""The likelihoods of a data set under a model: a folder for each request; none erases another."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import time
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from edm_jax.evaluation import drawing
from edm_jax.evaluation.reporting import versions
from edm_jax.figures import files
from edm_jax.likelihood.autoregressive import DISCRETE
from edm_jax.likelihood.record import Record, likelihoods
from edm_jax.likelihood.results import Settings
from edm_jax.model import Model
from edm_jax.progress import is_watched
from experiments.flow_images import Images
from experiments.words import format_duration
from experiments.workdir import WorkdirError, to_json, write_atomically

FOLDER = "likelihoods"
REQUEST = "request.json"
RESULT = "likelihood.json"
# Name on the command line -> of `edm_jax.log_likelihood`.
METHODS = {"ode": "flow", "elbo": "bound"}
SAVE_SECONDS = 30.0


def default_name(request: Mapping[str, Any]) -> str:
    """``test-ode-elbo-1a2b3c4d``: says split and numbers, differs where anything differs."""
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    split = request["data"].get("split") or "images"
    return "-".join([split, *request["numbers"], digest[:8]])


def claim(directory: pathlib.Path, request: Mapping[str, Any]) -> None:
    """Make a folder that of a request, or refuse the folder of another.

    Raises:
      WorkdirError: it holds another request, or something else.
    """
    file = directory / REQUEST
    if file.exists():
        there = _read(file)
        if there != request:
            names = sorted(set(there) | set(request))
            differing = ", ".join(n for n in names if there.get(n) != request.get(n))
            raise WorkdirError(
                f"{directory} holds likelihoods of another request ({differing} differ); choose "
                "another --name"
            )
        return
    if any(not entry.name.startswith(".") for entry in directory.iterdir()):
        raise WorkdirError(f"{directory} holds something else; choose another --name")
    write_atomically(file, json.dumps(request, indent=2) + "\n")


def _read(file: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def measure(
    model: Model,
    images: Images,
    settings: Mapping[str, Settings],
    request: Mapping[str, Any],
    directory: pathlib.Path,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate what is not there yet, write the result and return it.

    The values of every image are kept in ``<number>.npz`` (`Record.state`) as they come.

    Args:
      model: the denoiser.
      images: which ones.
      settings: of every number, by its name of METHODS.
      request: what was asked, as JSON values; the folder is its (`claim`).
      directory: where the files go.
      **options: ``batch_size`` and ``sharding`` of `likelihoods`.
    """
    result = dict(request)
    for name, setting in settings.items():
        record = _evaluate(model, images, setting, directory / f"{name}.npz", name, **options)
        kept = Record(record.settings, record.size)
        kept.values = {int(i): record.values[int(i)] for i in images.indices}
        result[name] = to_json(kept.summary())
    result["versions"] = versions()
    write_atomically(directory / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def _evaluate(
    model: Model,
    images: Images,
    settings: Settings,
    file: pathlib.Path,
    name: str,
    *,
    batch_size: int,
    sharding: jax.sharding.NamedSharding | None,
) -> Record:
    """All values of one number, saved every now and then and whatever ends it."""
    record = read_record(file) if file.exists() else None
    missing = images.indices.tolist() if record is None else record.missing(images.indices)
    total, start = len(images.indices), len(images.indices) - len(missing)
    if start:
        print(f"{name}: {start} of {total} images are there already", flush=True)
    run = likelihoods(
        model, images.batches(missing, batch_size), settings,
        record=record, batch_size=batch_size, sharding=sharding,
    )  # fmt: skip
    saved = began = time.monotonic()
    with drawing.progress_bar(total, name, start) as bar:
        try:
            for record in run:
                done = min(len(record), total)
                bar.update(done - bar.n)
                if time.monotonic() - saved >= SAVE_SECONDS:
                    write_record(file, record)
                    saved = time.monotonic()
                    if not is_watched():
                        print(_progress(name, done, total, done - start, saved - began), flush=True)
        finally:
            if record is not None and len(record) > start:
                write_record(file, record)
    assert record is not None  # there is at least one image
    return record


def _progress(name: str, done: int, total: int, new: int, seconds: float) -> str:
    """A line for where no bar can be seen."""
    rate = new / seconds
    left = format_duration((total - done) / rate)
    return f"{name}: {done} of {total} images, {rate:.3g} a second, {left} left"


def write_record(file: pathlib.Path, record: Record) -> None:
    """Keep a record, whole or not at all."""
    with files.replacing(file) as temporary, temporary.open("wb") as out:
        np.savez(out, **record.state())


def read_record(file: pathlib.Path) -> Record:
    """What `write_record` wrote; WorkdirError for anything else."""
    try:
        with np.load(file, allow_pickle=False) as state:
            return Record.from_state(dict(state))
    except (OSError, ValueError, EOFError, LookupError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise WorkdirError(
            f"{file} cannot be read ({reason}); delete it to evaluate its images again"
        ) from None


# ---------------------------------------------------------------------------- the table


def found(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """All finished results of a folder by name."""
    results = {}
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            result = _read(path / RESULT) if path.is_dir() else {}
            if "numbers" in result:
                results[path.name] = result
    return results


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for every number: bits per dimension and nats with standard errors, and the rest."""
    head = ("", "number", "images", "bits/dim", "nats/image", "N less N/2", "N", "s0", "weights")
    rows = [head]
    for name, result in results.items():
        for number in result["numbers"]:
            one = result[number]
            bits = _with_error(one, "bits_per_dim", 4)
            steps = one["num_steps"] or f"tol {one['tolerance']:g}"
            solver = one["solver"] or "levels"
            difference = one["step_difference_bits_per_dim"]["mean"]
            rows.append((
                name, number, str(one["images"]), bits, _with_error(one, "nats", 2),
                difference if isinstance(difference, str) else f"{difference:.1e}",
                f"{steps} {solver}", _ends(one),
                one["model"]["ema"],
            ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line}".rstrip() for line in lines)


def _ends(summary: Mapping[str, Any]) -> str:
    """``0.002 gaussian``; of discrete data there is no level at which a flow ends."""
    if summary["dequantisation"] == DISCRETE:
        return DISCRETE
    return f"{summary['sigma_min']:g} {summary['dequantisation']}"


def _with_error(summary: Mapping[str, Any], key: str, digits: int) -> str:
    """``3.0123 ± 0.0045``."""
    value, error = summary.get(key), summary.get(f"{key}_standard_error")
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    more = "" if not isinstance(error, float) else f" ± {error:.{digits}f}"
    return f"{value:.{digits}f}{more}"
