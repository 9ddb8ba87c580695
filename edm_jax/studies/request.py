"""What the study in a directory is, so that another one does not take its place."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from edm_jax.names import brief
from edm_jax.store.atomic import to_json
from edm_jax.studies.declaration import DISTANCE, TRUNCATION, Study
from edm_jax.studies.files import FOLDER, read_dictionary, write_json

REQUEST = "study.json"
_GROWING = ("models", "settings")


def told(study: Study) -> dict[str, Any]:
    """What makes a study another one, and its models and settings; JSON values."""
    found: dict[str, Any] = {
        "quality": study.quality,
        **{name: getattr(study, name) for name in ("num_images", "first_seed", "labels")},
        "reference": study.reference,
    }
    if DISTANCE in study.quality:
        found["accurate"] = study.accurate.to_json()
    if TRUNCATION in study.quality:
        found["substeps"] = study.substeps
    found["models"] = dict(study.models)
    found["settings"] = [dict(cell.settings) for cell in study.cells]
    return json.loads(json.dumps(to_json(found), default=str))


def check_same(
    study: Study, directory: str | os.PathLike[str] | None, report: Callable[[str], None]
) -> None:
    """Whether a study may go on in a directory: one with the same measures, images and models.

    Its settings and the number of blocks may be others, and there may be more models or fewer:
    results are then of the new grid, and cells that are not in it stay on the disk.

    Args:
      study: what is asked for.
      directory: of results; None for none.
      report: told how many cells of the grid before are not in this one.

    Raises:
      ValueError: it holds another study, or what it holds cannot be read.
    """
    if directory is None:
        return
    folder = pathlib.Path(directory).expanduser()
    old = read_dictionary(folder / REQUEST, "study")
    if old is None:
        return
    new = told(study)
    differing = [
        f"{key}: {brief(old.get(key))} there, {brief(new[key])} now"
        for key in new  # "accurate" and "substeps" come and go with the measures
        if key not in _GROWING and (key in old or key == "quality") and old.get(key) != new[key]
    ]
    models = old.get("models")
    common = new["models"].keys() & models.keys() if isinstance(models, dict) else set()
    if not common or any(models[name] != new["models"][name] for name in common):
        differing.append(f"models: {brief(models)} there, {brief(new['models'])} now")
    if differing:
        raise ValueError(
            f"{folder} holds another study ({'; '.join(differing)}); use another directory"
        )
    settings = old.get("settings")
    gone = [one for one in settings if one not in new["settings"]] if settings else []
    if gone:
        report(
            f"{len(gone)} cells of the grid before are not in this one: the results will be of "
            f"this one alone, and what was measured stays in {FOLDER}/"
        )


def record(study: Study, directory: str | os.PathLike[str] | None) -> None:
    """Write what the study is, after `check_same`."""
    if directory is not None:
        write_json(pathlib.Path(directory).expanduser() / REQUEST, told(study))
