"""The directory of one run: its lock, its configuration, its metrics file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.build import ConfigError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"


class WorkdirError(RuntimeError):
    """A run directory that cannot be used, said in one line."""


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


def prepare(path: pathlib.Path, flag: str = "workdir") -> None:
    """Create the directory that ``--flag`` names and make sure that it can be written.

    Raises:
      WorkdirError: if it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise WorkdirError(f"--{flag}={path} cannot be written: {reason}") from error


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Hold the run directory; the lock goes with the process, however it ends.

    Raises:
      WorkdirError: if another process holds it.
    """
    with (path / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise WorkdirError(
                f"--workdir={path} is in use by {owner}; wait for it or choose another"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as ``{"a.b": value}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_json(value: Any) -> Any:
    """JSON values only: infinities and NaN, which JSON lacks, become texts."""
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_json(item) for key, item in value.items()}
    return float(value) if value in ("inf", "-inf", "nan") else value


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The resolved configuration of a run directory.

    Raises:
      WorkdirError: if there is none, or it cannot be read.
    """
    file = path / CONFIG
    try:
        return _from_json(json.loads(file.read_text()))
    except FileNotFoundError:
        raise WorkdirError(f"{path} holds no run: there is no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{file} cannot be read: {error}") from error


def record_config(path: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Write config.json, or check that the one there is the same.

    Raises:
      ConfigError: listing each option that differs.
    """
    text = json.dumps(to_json(config), indent=2, sort_keys=True, allow_nan=False)
    if not (path / CONFIG).exists():
        write_atomically(path / CONFIG, text + "\n")
        return
    old, new = flatten(read_config(path)), flatten(_from_json(json.loads(text)))
    missing = object()
    rows = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, missing), new.get(key, missing)
        if before != after:
            shown = ["(not set)" if v is missing else json.dumps(v) for v in (before, after)]
            rows.append(f"  {key}: {shown[0]} there, {shown[1]} now")
    if rows:
        raise ConfigError(
            f"{path} holds a run with another configuration; use another --workdir, or the "
            "old values:\n" + "\n".join(rows)
        )


class MetricsFile:
    """metrics.jsonl: one JSON object a line, in order of steps."""

    def __init__(self, path: pathlib.Path, resume_step: int):
        """Open for appending; lines after ``resume_step`` will be written again."""
        self._path = path / METRICS
        if self._path.exists():
            kept = []
            for line in self._path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= resume_step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    break  # the line that a kill cut short
            write_atomically(self._path, "".join(line + "\n" for line in kept))
        self._file = self._path.open("a")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; non-finite numbers become null, as JSON has none."""

        def clean(value: Any) -> Any:
            if isinstance(value, float) and not math.isfinite(value):
                return None
            if isinstance(value, list):
                return [clean(v) for v in value]
            return value

        row = {"step": step} | {name: clean(value) for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl."""
    file = path / METRICS
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


class TensorBoard:
    """Scalars as TensorBoard events through clu, where tensorflow is installed."""

    def __init__(self, path: pathlib.Path, report: Any = print):
        self._writer = None
        try:
            # tensorflow takes seconds to import and is an extra.
            from clu.metric_writers import SummaryWriter
        except ImportError:
            report(
                "TensorBoard events are off: tensorflow is not installed "
                "(pip install -e '.[tensorboard]'); metrics.jsonl has everything"
            )
            return
        self._writer = SummaryWriter(str(path / "tensorboard"))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the numbers among the values."""
        if self._writer is not None:
            scalars = {k: v for k, v in values.items() if isinstance(v, int | float)}
            self._writer.write_scalars(step, scalars)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
