"""Reading checkpoint directories: which steps there are, whether they are whole.

Layout of a run directory::

    checkpoints/<step, 8 digits>/
      description/   JSON: network, preconditioning, data shape, progress (`weights.model`)
      ema/           Orbax tree: averaged weights by variant name; absent if there are none
      params/        Orbax tree: raw weights and buffers
      train/         Orbax tree: optimizer and the rest of the training state
      running_metrics/  Orbax tree of training; not needed to go on
      checksums.json SHA-256 of every file above, written before the step gets its name

Orbax is imported when an array is read, not before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from edm_jax.store.description import check_version
from edm_jax.store.errors import NewerFormatError, WeightsError, show
from edm_jax.typing import PyTree

CHECKSUMS = "checksums.json"
_STEP_NAME = re.compile(r"\d+")
_ITEMS = ("description", "ema", "params", "train", "running_metrics")
# Orbax rewrites these after the checksums are taken; they hold no data.
_VOLATILE = {"_CHECKPOINT_METADATA", "commit_success.txt", CHECKSUMS}


class CheckpointError(WeightsError):
    """A checkpoint that is missing, damaged or from a newer version."""


def checkpoint_steps(directory: pathlib.Path) -> list[pathlib.Path]:
    """Finished step directories below ``directory``, oldest first."""
    if not directory.is_dir():
        return []
    found = [p for p in directory.iterdir() if p.is_dir() and _STEP_NAME.fullmatch(p.name)]
    return sorted(found, key=lambda p: int(p.name))


def file_digest(path: pathlib.Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(step_dir: pathlib.Path) -> set[str]:
    """Paths below a step of the files that have checksums."""
    paths = (p for p in step_dir.rglob("*") if p.is_file() and p.name not in _VOLATILE)
    return {p.relative_to(step_dir).as_posix() for p in paths}


def _stray(name: str) -> bool:
    """Whether a file below a step is nothing that Orbax reads, as operating systems leave them."""
    parts = pathlib.PurePosixPath(name).parts
    return parts[0] not in _ITEMS or any(part.startswith(".") for part in parts)


def write_checksums(step_dir: pathlib.Path) -> None:
    """Record the SHA-256 of every file of a step."""
    digests = {name: file_digest(step_dir / name) for name in sorted(_files(step_dir))}
    (step_dir / CHECKSUMS).write_text(json.dumps(digests, indent=1))


def verify_checksums(step_dir: pathlib.Path, items: tuple[str, ...] = ()) -> None:
    """Compare the files of a step with their recorded SHA-256.

    Args:
      step_dir: one step.
      items: only these sub-directories; all if empty.

    Raises:
      CheckpointError: naming the first file that is missing or changed.
    """
    entries = _read_checksums(step_dir / CHECKSUMS)
    unlisted = sorted(name for name in _files(step_dir).difference(entries) if not _stray(name))
    if unlisted:
        raise CheckpointError(f"{step_dir / unlisted[0]}: not listed in {CHECKSUMS}")
    for name, digest in entries.items():
        path = step_dir / name
        if items and pathlib.PurePath(name).parts[0] not in items:
            continue
        try:
            if not path.is_file():
                raise CheckpointError(f"{path}: missing")
            found = file_digest(path)
        except OSError as error:
            raise CheckpointError(f"{path}: unreadable ({error.strerror or error})") from None
        if found != digest:
            raise CheckpointError(f"{path}: contents do not match the recorded SHA-256")


def _read_checksums(manifest: pathlib.Path) -> dict[str, str]:
    """SHA-256 by the path of a file below the step, as `write_checksums` left them."""
    try:
        digests = json.loads(manifest.read_text())
        entries = {str(name): str(digest) for name, digest in digests.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{manifest.parent}: {manifest.name} is missing") from None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{manifest}: unreadable ({error})") from None
    for name in entries:
        path = pathlib.PurePosixPath(name)
        if not path.parts or "\0" in name or path.is_absolute() or ".." in path.parts:
            raise CheckpointError(f"{manifest}: {show(name)} is no file of a step")
    return entries


def read_description(step_dir: pathlib.Path) -> dict:
    """The JSON description stored with a step.

    Raises:
      NewerFormatError: a newer version wrote it; nothing else of the step can be judged then.
      CheckpointError: it is missing, damaged, or of no version.
    """
    path = step_dir / "description" / "metadata"
    try:
        description = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: unreadable ({error})") from None
    try:
        check_version(description)
    except NewerFormatError as error:
        raise NewerFormatError(f"{step_dir}: {error}") from None
    except WeightsError as error:
        raise CheckpointError(f"{step_dir}: {error}") from None
    return description


def read_arrays(step_dir: pathlib.Path, item: str) -> PyTree:
    """One Orbax tree of a step as nested dicts of NumPy arrays."""
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        raise ImportError(
            "reading a checkpoint directory needs orbax-checkpoint: pip install -e '.[train]' "
            "(a single-file export does not)"
        ) from None
    import jax

    path = (step_dir / item).resolve()
    try:
        with _quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Exception as error:  # Orbax raises many kinds for damaged files
        raise CheckpointError(f"{path}: cannot be restored ({_first_line(error)})") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's warning that an item has no metadata file of its own."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
