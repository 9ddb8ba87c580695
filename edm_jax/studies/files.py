"""The results of cells and of single blocks on the disk, each whole or not there."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from edm_jax.store.atomic import to_json, write_atomically

FOLDER = "cells"


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write JSON values, whole or not at all, with the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(to_json(value), indent=2) + "\n")


def read_dictionary(path: pathlib.Path, what: str) -> dict[str, Any] | None:
    """The JSON file that says what a study or a tuning is about; None without one.

    Raises:
      ValueError: it cannot be read: what is beside it may be anything.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
    else:
        if isinstance(found, dict):
            return found
        reason = "it is no dictionary"
    raise ValueError(
        f"{path}, which says what the {what} there is about, cannot be read ({reason}); use "
        "another directory, or remove this one"
    )


class CellFiles:
    """One JSON file for each cell, named by the digest of all that its result depends on.

    Args:
      directory: of the study; None keeps nothing.
    """

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self.folder = None if directory is None else pathlib.Path(directory).expanduser() / FOLDER

    def read(self, digest: str, measures: Sequence[str]) -> dict[str, Any] | None:
        """A result with the numbers of some measures; None if there is none that can be read."""
        if self.folder is None:
            return None
        try:
            found = json.loads((self.folder / f"{digest}.json").read_text())
        except (OSError, ValueError):
            return None
        return found if _is_result(found, measures) else None

    def write(self, digest: str, row: Mapping[str, Any]) -> None:
        """Keep a result."""
        if self.folder is not None:
            write_json(self.folder / f"{digest}.json", row)


def _is_result(found: Any, measures: Sequence[str]) -> bool:
    """Whether a row has all that tables and figures are made of."""
    if not _has_numbers(found, ("nfe", "network_calls", "seconds")):
        return False
    values, steps = found.get("values"), found.get("steps", {"sigmas": [], "errors": []})
    return (
        isinstance(values, dict)
        and all(_has_numbers(values.get(m), ("mean", "minimum", "maximum")) for m in measures)
        and all(_is_number(values[m].get("standard_error") or 0) for m in measures)
        and isinstance(steps, dict)
        and all(isinstance(steps.get(key), list) for key in ("sigmas", "errors"))
    )


def _has_numbers(told: Any, names: Sequence[str]) -> bool:
    return isinstance(told, dict) and all(_is_number(told.get(name)) for name in names)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a setting gave on one block of seeds, and what that cost.

    Attributes:
      value: of the measure; None where it has none, as the images were not finite.
      images: drawn.
      network_calls: for all of them.
      seconds: it took.
    """

    value: float | None
    images: int
    network_calls: int
    seconds: float


class BlockFile:
    """One JSON file of many `Drawn`, by the digest of a setting and the number of a block.

    Args:
      path: of the file; None keeps them in memory.
    """

    def __init__(self, path: pathlib.Path | None = None) -> None:
        self.path = path
        self.found: dict[tuple[str, int], Drawn] = {}
        if path is not None:
            self._read(path)

    def _read(self, path: pathlib.Path) -> None:
        """What is there; what cannot be read is measured anew."""
        try:
            told = json.loads(path.read_text())
            for digest, blocks in told.items():
                for block, one in blocks.items():
                    drawn = Drawn(**one)
                    numbers = dataclasses.astuple(drawn)
                    if all(_is_number(n) for n in numbers[1:]) and _is_number(numbers[0] or 0):
                        self.found[digest, int(block)] = drawn
        except (OSError, ValueError, TypeError, AttributeError):
            return

    def put(self, digest: str, block: int, drawn: Drawn) -> None:
        """Keep one."""
        self.found[digest, block] = drawn
        if self.path is not None:
            told: dict[str, dict[int, Any]] = {}
            for (one, number), kept in self.found.items():
                told.setdefault(one, {})[number] = dataclasses.asdict(kept)
            write_json(self.path, told)

    def total(self, name: str) -> Any:
        """The sum of ``images``, ``network_calls`` or ``seconds``."""
        # Rounded: the order of additions is that of the file, or that of the measurements.
        return round(sum(getattr(drawn, name) for drawn in self.found.values()), 3)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
