"""What ``--mode=evaluate`` is asked: of which models, what, compared with what, to go where."""

from __future__ import annotations

import difflib
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from edm_jax import requests
from edm_jax.arguments import user_path
from edm_jax.evaluation import protocol
from edm_jax.evaluation.labels import BALANCED, RANDOM
from edm_jax.metrics.registry import parse
from edm_jax.model import Model
from edm_jax.sampling import Sampling
from edm_jax.store import checkpoints
from experiments import evaluations, guidance_flags, sampling_flags
from experiments.config import build
from experiments.config.flag import UsageError
from experiments.config.options import Evaluation, label_choice
from experiments.workdir import CONFIG, WorkdirError, prepare, read_config

NETWORKS = ("inception", "dinov2")
# Of a model without a run.
USUAL = Evaluation(0, protocol.FIRST_SEED, ("fid",), 0)


def stored(workdir: pathlib.Path) -> Any:
    """The experiment that a run directory holds."""
    return build.experiment(read_config(workdir))


def metrics_of(values: types.SimpleNamespace, usual: Sequence[str]) -> tuple[str, ...]:
    metrics = tuple(values.metrics.split(",")) if values.metrics else tuple(usual)
    for name in metrics:
        parse(name)
    return metrics


def reference_files(values: types.SimpleNamespace, own: str = "") -> list[pathlib.Path]:
    """The files of references, which must be there."""
    given = values.reference.split(",") if values.reference else [own] if own else []
    files = [user_path("--reference", one) for one in given]
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"--reference={file}: there is no such file")
    return files


def features_of(values: types.SimpleNamespace, own: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of an evaluation about feature networks and references.

    Raises:
      FileNotFoundError: a file that is given is not there, whether a metric needs it or not.
      WorkdirError: the folder of references cannot be written.
    """
    for name in NETWORKS:
        given = getattr(values, name)
        if given is not None and not given.exists():
            raise FileNotFoundError(f"--{name}={given}: there is no such file or folder")
    if values.reference_cache is not None and jax.process_index() == 0:
        prepare(values.reference_cache, "reference_cache")
    return {
        "weights": {name: getattr(values, name) or own.get(name) for name in NETWORKS},
        "options": {name: f"--{name}" for name in NETWORKS},
        "cache": values.reference_cache or evaluations.references_directory(),
    }


def asked_of(values: types.SimpleNamespace, model: Model | None) -> dict[str, Any]:
    """What is to be evaluated, as far as the run, or else the model, says it."""
    experiment = None
    if values.config is not None:
        experiment = build.experiment(values.config)
    elif (values.workdir / CONFIG).exists() or not values.reference:
        experiment = stored(values.workdir)
    own = USUAL if experiment is None else experiment.evaluation
    num_images = values.num_images or own.num_images
    if not num_images:
        raise UsageError(
            "config.evaluation.num_images is 0: there is nothing to evaluate; give --num_images"
        )
    return {
        "experiment": experiment,
        "sampling": sampling_flags.request(values, _base(experiment, model)),
        "guidance": guidance_flags.asked(values),
        "num_images": num_images,
        "first_seed": own.first_seed if values.first_seed is None else values.first_seed,
        "blocks": values.blocks or own.blocks,
        "labels": label_choice(own.labels) if values.labels is None else values.labels,
        "metrics": metrics_of(values, own.metrics),
        "files": reference_files(values, own.reference),
        "features": features_of(values, own.weights),
        "batch_size": values.batch_size or (experiment.sample_batch if experiment else 64),
    }


def class_of(labels: str | int, model: Model) -> str | int:
    """``labels`` with the name of a class as its index.

    Raises:
      ValueError: for what is no word of `evaluation.labels` and no name of a class.
    """
    names = model.label_names or ()
    if labels in (BALANCED, RANDOM) or not isinstance(labels, str):
        return labels
    if labels not in names:
        near = difflib.get_close_matches(labels, names, 1)
        raise ValueError(
            f"labels must be {BALANCED}, {RANDOM} or a class index{' or name' if names else ''}, "
            f"got {labels!r}" + (f"; did you mean {near[0]!r}" if near else "")
        )
    return names.index(labels)


def _base(experiment: Any, model: Model | None) -> Any:
    """How images are drawn where no flag says it."""
    if experiment is not None:
        return experiment.sampling
    return Sampling() if model is None else requests.default_request(model)


def identity(asked: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """What tells an evaluation from others, as its result says it."""
    request = {
        "sampling": asked["sampling"].to_json(),
        "num_images": asked["num_images"],
        "first_seed": asked["first_seed"],
        "metrics": list(asked["metrics"]),
        "weights": model.variant,
        "progress": model.description.get("progress"),
        "num_blocks": asked["blocks"],
        "labels": asked["labels"] if model.num_classes else None,
    }
    if asked["guidance"]:
        request["guidance"] = asked["guidance"]
    if asked["files"]:
        request["reference_files"] = [file.name for file in asked["files"]]
    return request


def chosen_models(values: types.SimpleNamespace) -> list[tuple[pathlib.Path, str | None]]:
    """Paths and weights of the models."""
    paths = [values.workdir]
    if values.checkpoints is not None:
        paths = _steps(values.workdir, values.checkpoints)
    if values.variant is None:
        return [(path, None) for path in paths]
    if values.variant != "all":
        names = values.variant.split(",")
    else:
        steps = checkpoints.checkpoint_steps(values.workdir / "checkpoints")
        if values.workdir.is_file() or not steps:
            raise UsageError("--variant=all is for a run directory; name the weights of others")
        names = list(checkpoints.read_description(steps[-1]).get("variants") or ())
    return [(path, name) for name in names for path in paths]


def _steps(workdir: pathlib.Path, text: str) -> list[pathlib.Path]:
    """The checkpoints of a run that ``--checkpoints`` names, oldest first."""
    steps = checkpoints.checkpoint_steps(workdir / "checkpoints") if workdir.is_dir() else []
    if not steps:
        raise UsageError(f"--checkpoints={text}: {workdir} has no checkpoints")
    word, _, count = text.partition(":")
    if word == "all" and not count:
        return steps
    if word == "last" and count.isdigit() and int(count):
        return steps[-int(count) :]
    raise UsageError(f"--checkpoints={text}: write all, or the number of the last ones as last:5")


def directory_of(
    values: types.SimpleNamespace, request: dict[str, Any], folder: pathlib.Path, several: bool
) -> pathlib.Path:
    """Where the result goes, which can be written and holds no other."""
    if values.outdir is None and not values.workdir.is_dir():
        raise UsageError(
            f"--workdir={values.workdir} is a file: say where results go, for example "
            "--outdir=evaluations"
        )
    if values.name is None and values.outdir is None and not several:
        if _is_headline(values, request):
            return _prepared(values.workdir, values)
    name = evaluations.check_name(values.name or evaluations.default_name(request))
    if several:
        step = (request["progress"] or {}).get("step")
        name += f"-{request['weights']}" + ("" if step is None else f"-{step}")
    evaluations.check_free(folder / name, request)
    return _prepared(folder / name, values)


def _prepared(directory: pathlib.Path, values: types.SimpleNamespace) -> pathlib.Path:
    try:
        prepare(directory, "workdir" if values.outdir is None else "outdir")
    except WorkdirError as error:
        cure = "" if values.outdir else "; --outdir=DIR puts results elsewhere"
        raise WorkdirError(f"{error}{cure}") from error
    return directory


def _is_headline(values: types.SimpleNamespace, request: dict[str, Any]) -> bool:
    """Whether this is the evaluation that the run itself would make."""
    if values.variant is not None:
        return False
    if not (values.workdir / CONFIG).exists():
        there = evaluations.read(values.workdir)
        return there is None or evaluations.asked(there) == evaluations.asked(request)
    experiment = stored(values.workdir)
    group = experiment.evaluation
    own = {
        "sampling": experiment.sampling.to_json(),
        "num_images": group.num_images,
        "first_seed": group.first_seed,
        "metrics": list(group.metrics),
        "num_blocks": group.blocks,
        "labels": label_choice(group.labels) if request["labels"] is not None else None,
        "weights": request["weights"],
        "progress": request["progress"],
    }
    if group.reference:
        own["reference_files"] = [pathlib.Path(group.reference).name]
    return evaluations.asked(own) == evaluations.asked(request)
