"""What ``--mode=study`` does with a grid: the study of a file or of flags, its data, its files."""

from __future__ import annotations

import json
import pathlib
import types
from collections.abc import Mapping
from typing import Any

from edm_jax.arguments import user_path
from experiments import compilation_cache, evaluations
from experiments.config.flag import UsageError
from experiments.words import format_duration

# Flags that say what a study file says too; a flag wins.
ENTRIES = ("quality", "num_images", "blocks", "first_seed", "labels", "batch_size", "reference")


def read_file(path: pathlib.Path) -> dict[str, Any]:
    """A study as JSON values, of a ``.json`` or of a ``.py`` with ``get_config()``.

    Raises:
      UsageError: one line, for a file that cannot be read or makes no study.
    """
    if path.suffix == ".json":
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"--study={path}: {error}") from None
    else:
        told = _run(path)
    told = told.to_dict() if hasattr(told, "to_dict") else told
    if not isinstance(told, Mapping):
        raise UsageError(f"--study={path}: a study is a dictionary by name, got {told!r}")
    return dict(told)


def _run(path: pathlib.Path) -> Any:
    import runpy

    try:
        make = runpy.run_path(str(path)).get("get_config")
        if not callable(make):
            raise UsageError("it has no get_config(), which returns the study as a dictionary")
        return make()
    except UsageError as error:
        raise UsageError(f"--study={path}: {error}") from None
    except Exception as error:  # whatever a file of the user's raises is said in one line
        text = " ".join(str(error).split())
        raise UsageError(f"--study={path}: {type(error).__name__}: {text}") from error


def parse_grid(text: str) -> dict[str, Any]:
    """``sampler=heun,euler;num_steps=9,18`` as setting -> values; values are JSON or names.

    Raises:
      ValueError: for anything else.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, values = (word.strip() for word in part.partition("="))
        if not (name and equals and values):
            raise ValueError(f"{part!r} is not setting=value,value; apart by semicolons")
        try:
            found[name] = json.loads(f"[{values}]")
        except ValueError:
            found[name] = [_value(word.strip()) for word in values.split(",")]
    if not found:
        raise ValueError("is empty; write it like sampler=heun,euler;num_steps=9,18")
    return found


def _value(word: str) -> Any:
    try:
        return json.loads(word.lower() if word in ("True", "False") else word)
    except ValueError:
        return word


def check_quality(text: str) -> None:
    """Raise UsageError unless ``--quality`` names measures."""
    from edm_jax.studies.declaration import check_measure

    for name in text.split(","):
        try:
            check_measure(name)
        except ValueError as error:
            raise UsageError(f"--quality={text}: {error}") from None


def declared(values: types.SimpleNamespace, file: pathlib.Path | None) -> dict[str, Any]:
    """The study of a file with what flags say about it."""
    if values.quality is not None:
        check_quality(values.quality)
    told: dict[str, Any] = {} if file is None else read_file(file)
    if values.grid is not None:
        told["grid"] = values.grid
    if values.models is not None:
        told["models"] = values.models.split(",")
    for name in ENTRIES:
        given = getattr(values, name)
        if given is not None:
            several = name in ("quality", "reference")
            told[name] = given.split(",") if several else given
    if not told.get("models"):
        raise UsageError("the study names no models: give --models=runs/digits, or in the file")
    return told


def carry_out(values: types.SimpleNamespace, file: pathlib.Path | None) -> int:
    """Run the study of a file or of flags; 1 if a cell failed or cannot work."""
    from edm_jax import studies
    from edm_jax.evaluation.references import default_sharding
    from experiments.workdir import locked, prepare

    told = declared(values, file)
    where = "--grid" if file is None else f"--study={file}"
    try:
        study = studies.Study.from_json(told)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from None
    for name, path in study.models.items():
        check_there(name, path)
    data = data_of(values, study) if study.metrics else None
    prepare(values.workdir)
    compilation_cache.enable(values.compilation_cache)
    with locked(values.workdir):
        results = studies.run(
            study,
            directory=values.workdir,
            reference=data,
            sharding=default_sharding(),
            weights={name: getattr(values, name) for name in ("inception", "dinov2")},
            options={name: f"--{name}" for name in ("inception", "dinov2")},
            cache=values.reference_cache or evaluations.references_directory(),
        )
        written = results.write(values.workdir, figure_format=values.figure_format)
    seconds = sum(row["seconds"] for row in results.done)
    print(f"\n{results.table()}\n\nmeasured in {format_duration(seconds)}")
    for path in written:
        print(f"  {path}")
    return 1 if results.count("failed") or results.count("impossible") else 0


def check_there(name: str, path: str) -> None:
    """Raise FileNotFoundError for a model that is not there, before anything is loaded."""
    head = path.rpartition(":")[0]
    if not any(user_path("--models", p).exists() for p in (path, head) if p):
        raise FileNotFoundError(f"model {name}: no such file or directory: {path}")


def data_of(values: types.SimpleNamespace, study: Any) -> Any:
    """The real images of ``--config``, or those of the first model's run."""
    from experiments.config import build
    from experiments.workdir import CONFIG, read_config

    if values.config is not None:
        return build.experiment(values.config).data.open()
    for path in study.models.values():
        for folder in (path, path.rpartition(":")[0]):
            run = user_path("folder", folder) if folder else None
            for parent in () if run is None else (run, *run.parents[:2]):
                if (parent / CONFIG).is_file():
                    return build.experiment(read_config(parent)).data.open()
    if study.reference:
        return None
    raise UsageError(
        f"{study.metrics[0]} compares with real images: give the --config of their data, or a "
        "--reference"
    )
