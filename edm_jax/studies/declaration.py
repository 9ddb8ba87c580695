"""What a study is: models, a grid of settings, a measure of quality, seeds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from edm_jax import names
from edm_jax.arguments import check_number
from edm_jax.evaluation.labels import BALANCED
from edm_jax.evaluation.protocol import FIRST_SEED
from edm_jax.generate import Sampling
from edm_jax.metrics.registry import METRICS, parse
from edm_jax.studies import grid as grids
from edm_jax.studies.grid import Cell

# Measures that need no features: RMS distance to an accurate solution of the same latents, and
# the errors of single steps along it.
DISTANCE, TRUNCATION = "distance", "truncation"
# The accurate solution: Heun's method, whose error falls with the square of N.
ACCURATE = Sampling("heun", num_steps=256)
ONLY = "model"  # name of the one model of a study that names none


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """A declared study; `from_json` makes and checks one.

    Attributes:
      cells: its settings.
      models: name -> where it is loaded from, ``PATH`` or ``PATH:VARIANT``; empty text for one
        that is given to `run`.
      quality: names of metrics, DISTANCE, TRUNCATION.
      num_images: of a block of seeds.
      blocks: of consecutive seeds; their spread gives the error bars.
      first_seed: the seeds are this and those that follow, the same for every cell.
      labels: see `evaluation.labels_of`.
      batch_size: images of one program at most, those of cells that run together counted.
      accurate: the request of the accurate solution for DISTANCE.
      substeps: Heun steps between two levels of a cell, for TRUNCATION.
      reference: files of statistics for metrics; empty for those of the data.
      title: of figures.
    """

    cells: tuple[Cell, ...]
    models: Mapping[str, str]
    quality: tuple[str, ...] = (DISTANCE,)
    num_images: int = 64
    blocks: int = 4
    first_seed: int = FIRST_SEED
    labels: str | int = BALANCED
    batch_size: int = 256
    accurate: Sampling = ACCURATE
    substeps: int = 64  # leave a thousandth of the error of a step of Euler's
    reference: tuple[str, ...] = ()
    title: str = ""

    def __post_init__(self) -> None:
        for name in ("num_images", "blocks", "batch_size", "substeps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
            check_number(name, value, least=1)
        check_number("first_seed", self.first_seed, least=0)
        if not self.quality:
            raise ValueError("quality is empty: name metrics, distance or truncation")
        try:
            for name in self.quality:
                check_measure(name)
        except ValueError as error:
            raise ValueError(f"quality: {error}") from None
        if not isinstance(self.labels, str | int) or isinstance(self.labels, bool):
            raise ValueError(
                f"labels must be balanced, random or a class index, got {names.brief(self.labels)}"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The measures that are metrics of the evaluation."""
        return tuple(name for name in self.quality if name not in (DISTANCE, TRUNCATION))

    @classmethod
    def from_json(cls, told: Mapping[str, Any], models: Sequence[str] = ()) -> Study:
        """A study from JSON values.

        Args:
          told: ``grid`` (see `grid.expand`), ``models`` (paths, or name -> path), and whatever
            else a Study has; ``accurate`` as settings of a request.
          models: names of models that are given to `run`, in place of ``models``.

        Raises:
          ValueError: an unknown key or setting, an empty grid, a bad value.
        """
        known = [field.name for field in dataclasses.fields(cls) if field.name != "cells"]
        for key in told:
            if key not in [*known, "grid"]:
                raise names.unknown("entry of a study", key, sorted([*known, "grid"]))
        values = {key: told[key] for key in known if key in told and key != "models"}
        found = named_models(told.get("models", ()))
        found = found or dict.fromkeys(models, "") or {ONLY: ""}
        points = grids.expand(told.get("grid", {}))
        for key in ("quality", "reference"):
            if key in values:
                values[key] = _texts(key, values[key])
        if "accurate" in values:
            if not isinstance(values["accurate"], Mapping):
                raise ValueError(
                    "accurate must be the settings of a request, such as "
                    f'{{"num_steps": 256}}, got {names.brief(values["accurate"])}'
                )
            values["accurate"] = grids.sampling_of(values["accurate"])
        spread = "model" not in {key for point in points for key in point}
        if spread:  # every model with every setting
            points = [{"model": name, **point} for name in found for point in points]
        cells = tuple(grids.cell(point, list(found)) for point in points)
        return cls(cells, found, **values)


def check_measure(name: str) -> None:
    """Raise ValueError unless a name is that of a measure: distance, truncation or a metric."""
    if name in (DISTANCE, TRUNCATION):
        return
    if str(name).partition("@")[0] not in METRICS:
        raise names.unknown("measure", name, [DISTANCE, TRUNCATION, *sorted(METRICS)])
    parse(name)


def named_models(given: Any) -> dict[str, str]:
    """``{name: path}`` from that, a path, or several, which are named by themselves.

    Raises:
      ValueError: it is none of these.
    """
    if isinstance(given, Mapping):
        for name, path in given.items():
            if not isinstance(path, str | os.PathLike):
                raise ValueError(
                    f"models: the path of {names.brief(name)} must be text, got {names.brief(path)}"
                )
        found = {str(name): str(path) for name, path in given.items()}
    else:
        found = {path: path for path in _texts("models", given)}
    for name, path in found.items():
        if not path:
            raise ValueError(f"model {name!r} has no path")
    return found


def _texts(key: str, given: Any) -> tuple[str, ...]:
    """Names or paths, of which one may stand alone."""
    found = [given] if isinstance(given, str | os.PathLike) else given
    if not isinstance(found, list | tuple) or not all(
        isinstance(one, str | os.PathLike) for one in found
    ):
        kinds = " or name -> path" if key == "models" else ""
        raise ValueError(
            f"{key} must be a text or a list of texts{kinds}, got {names.brief(given)}"
        )
    return tuple(str(one) for one in found)
