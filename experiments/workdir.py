"""The directory of one run: its lock, its configuration, its metrics file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from edm_jax.data.sources.base import ImageSource
from edm_jax.store.atomic import to_json, write_atomically
from edm_jax.store.checkpoints import checkpoint_steps, read_description, verify_checksums
from edm_jax.store.errors import WeightsError
from experiments.config.experiment import data_difference
from experiments.config.groups import ConfigError, flatten
from experiments.config.keys import check_keys
from experiments.config.upgrade import parse_config

CONFIG = "config.json"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
EVALUATIONS = "evaluations.jsonl"
SAMPLES = "samples"

# Options that say how a run is carried out, not what it computes: a resumed run may change
# them.  Of the second kind the result stays the same up to rounding, or the user vouches
# for it, so the change is said.
FREE_OPTIONS = (
    "train.max_bad_steps",
    "train.log_kimg",
    "train.sample_kimg",
    "train.checkpoint_kimg",
    "train.keep_last",
    "train.keep_every_kimg",
    "data.num_threads",
    "data.num_workers",
    "evaluation.every_kimg",
    "evaluation.every_num_images",
    "evaluation.inception",
    "evaluation.dinov2",
)
NOTED_OPTIONS = {
    "train.total_kimg": "only its end moves",
    "train.micro_batch": "equal up to rounding",
    "train.sharding": "equal up to rounding",
    "model.remat": "equal up to rounding",
    "data.path": "if these are the same images in the same order",
}


class WorkdirError(RuntimeError):
    """A run directory that cannot be used, said in one line."""


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

    A request that is refused before it wrote anything leaves no directory behind.

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
        try:
            yield
        except BaseException:
            if path.is_dir() and [entry.name for entry in path.iterdir()] == [".lock"]:
                (path / ".lock").unlink()
                path.rmdir()
            raise


def _chosen(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Without the groups of what is not chosen: they change nothing."""
    name = tree.get("name", tree.get("source"))
    return {
        key: _chosen(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if name is None or key == name or not isinstance(value, Mapping)
    }


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The resolved configuration of a run directory, in today's words.

    Raises:
      WorkdirError: if there is none, or it cannot be read.
    """
    file = path / CONFIG
    try:
        config = parse_config(file.read_text())
        check_keys(config)
        return config
    except FileNotFoundError:
        raise WorkdirError(
            f"{path} holds no run: there is no {CONFIG} (of an imported model, give the --config)"
        ) from None
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{file} cannot be read: {error}") from error


def check_same_data(path: pathlib.Path, source: ImageSource) -> None:
    """Whether the run in a directory, if there is one, is about as many images of this kind.

    Raises:
      ConfigError: they have another shape or other classes, or they are more or fewer, which
        would come in another order.
    """
    if not (path / CONFIG).exists():
        return
    description = _newest_description(path / "checkpoints")
    if not description:
        return
    difference = data_difference(description, source)
    of_run = (description.get("data") or {}).get("num_images", len(source))
    if not difference and of_run != len(source):
        difference = f"{of_run} images, the data set of this configuration has {len(source)}"
    if difference:
        raise ConfigError(
            f"{path} holds a run on {difference}; use another --workdir, or the old data"
        )


def _newest_description(directory: pathlib.Path) -> dict[str, Any]:
    """Of the newest checkpoint whose description is as it was written; empty without any."""
    for step_dir in reversed(checkpoint_steps(directory)):
        with contextlib.suppress(WeightsError):  # who restores it says so
            verify_checksums(step_dir, ("description",))
            return read_description(step_dir)
    return {}


def _config_text(config: Mapping[str, Any]) -> str:
    return json.dumps(to_json(config), indent=2, sort_keys=True, allow_nan=False) + "\n"


def record_config(path: pathlib.Path, config: Mapping[str, Any]) -> list[str]:
    """Write config.json, after `check_same_config`.

    Returns:
      A line for each of NOTED_OPTIONS that changed.

    Raises:
      ConfigError: listing each option that differs from the run that is there.
    """
    notes = check_same_config(path, config)
    write_atomically(path / CONFIG, _config_text(config))
    return notes


def has_checkpoint(path: pathlib.Path) -> bool:
    """Whether a run directory holds any, whole or damaged; unfinished ones of a kill are none."""
    directory = path / "checkpoints"
    return directory.is_dir() and any(
        "orbax-checkpoint-tmp" not in entry.name for entry in directory.iterdir()
    )


def check_same_config(path: pathlib.Path, config: Mapping[str, Any]) -> list[str]:
    """Whether the run in a directory, if there is one, has this configuration.

    FREE_OPTIONS and NOTED_OPTIONS may differ, and the options of what is not chosen, and
    everything if that run ended before it left a checkpoint or a picture.

    Returns:
      A line for each of NOTED_OPTIONS that differs.

    Raises:
      ConfigError: listing each other option that differs.
    """
    if not (path / CONFIG).exists():
        if checkpoint_steps(path / "checkpoints"):
            raise WorkdirError(
                f"{path} holds a model but no run (an imported one has no training state to go on "
                "from); choose another --workdir"
            )
        return []
    old, new = (
        flatten(_chosen(values))
        for values in (read_config(path), parse_config(_config_text(config)))
    )
    missing = object()
    rows, notes = [], []
    for key in sorted((old.keys() | new.keys()).difference(FREE_OPTIONS)):
        before, after = old.get(key, missing), new.get(key, missing)
        if before != after:
            shown = ["(not set)" if v is missing else json.dumps(v) for v in (before, after)]
            if key in NOTED_OPTIONS:
                what = f"{key} goes from {shown[0]} to {shown[1]}"
                notes.append(f"{what}: the run goes on, {NOTED_OPTIONS[key]}")
            else:
                rows.append(f"  {key}: {shown[0]} there, {shown[1]} now")
    if rows and not has_checkpoint(path) and not (path / SAMPLES).exists():
        return []  # refused for want of disk, say: there is nothing to mix up
    if rows:
        raise ConfigError(
            f"{path} holds a run with another configuration; use another --workdir, or the "
            "old values:\n" + "\n".join(rows)
        )
    return notes
