"""What ``--mode=evaluate`` does: models of a run, one or several, or pictures."""

from __future__ import annotations

import functools
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from edm_jax import generate, load
from edm_jax.evaluation import evaluate, evaluate_images, protocol, reporting
from edm_jax.evaluation import pictures as picture_files
from edm_jax.evaluation.planning import Plan, make_plan
from edm_jax.figures import curves, sheets
from edm_jax.generate import Sampling
from edm_jax.metrics.registry import columns, parse
from edm_jax.model import Model
from edm_jax.store import checkpoints
from experiments import bounds, compilation_cache, evaluations, guidance_flags, sampling_flags
from experiments.config import build
from experiments.config.experiment import data_difference
from experiments.config.flag import UsageError
from experiments.config.groups import ConfigError
from experiments.config.options import Evaluation, label_choice
from experiments.workdir import CONFIG, WorkdirError, prepare, read_config

NETWORKS = ("inception", "dinov2")
# Of a model without a run.
USUAL = Evaluation(0, protocol.FIRST_SEED, ("fid",), 0)
SAMPLES = "evaluation_samples.png"
# Flags that say nothing about pictures that are there.
OF_A_MODEL = (
    "variant", "checkpoints", "figure_format", "first_seed", "blocks", "labels",
    *(flag.name for flag in (*sampling_flags.FLAGS, *guidance_flags.FLAGS)),
)  # fmt: skip


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


def stored(workdir: pathlib.Path) -> Any:
    """The experiment that a run directory holds."""
    return build.experiment(read_config(workdir))


def _metrics(values: types.SimpleNamespace, usual: Sequence[str]) -> tuple[str, ...]:
    metrics = tuple(values.metrics.split(",")) if values.metrics else tuple(usual)
    for name in metrics:
        parse(name)
    return metrics


def _files(values: types.SimpleNamespace, own: str = "") -> list[pathlib.Path]:
    """The files of references, which must be there."""
    given = values.reference.split(",") if values.reference else [own] if own else []
    files = [pathlib.Path(one).expanduser() for one in given]
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"--reference={file}: there is no such file")
    return files


def _weights(values: types.SimpleNamespace, own: Mapping[str, str]) -> dict[str, Any]:
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


def _picture(directory: pathlib.Path) -> Callable[[np.ndarray, np.ndarray], None]:
    """Writes the first images of an evaluation: random ones, not chosen."""

    def write(seeds: np.ndarray, images: np.ndarray) -> None:
        count = max(1, round(len(images) ** 0.5))
        told = {"seeds": np.asarray(seeds).tolist()}
        title = f"{len(images)} images as they come, not chosen"
        sheets.sample_grid(directory / SAMPLES, images, count, title=title, told=told)

    return write


def _show(result: Mapping[str, Any], file: pathlib.Path) -> None:
    _say(f"\n{reporting.result_table(result)}\n\n  {file}")
    for remark in reporting.remarks(result):
        _say(f"  {remark}")


# ---------------------------------------------------------------- pictures


def pictures(values: types.SimpleNamespace) -> None:
    """Measure pictures that are there."""
    for flag in OF_A_MODEL:
        if flag in values.given:
            raise UsageError(f"--{flag} is about the images of a model, and --images are there")
    metrics = _metrics(values, ("fid",))
    files, features = _files(values), _weights(values, {})
    images = picture_files.open_pictures(values.images)
    source = None
    if values.config is not None:
        source = build.experiment(values.config).data.open()
    if not files and source is None and any(parse(m).metric.reference for m in metrics):
        raise UsageError(
            "say what the images are compared with: --reference=FILE.npz, or the --config of a "
            "data set"
        )
    request = {
        "images": str(values.images),
        "num_images": values.num_images or len(images),
        "metrics": list(metrics),
    }
    if values.num_images is not None:
        request["subset_seed"] = 0
    if files:
        request["reference_files"] = [file.name for file in files]
    folder = values.outdir or pathlib.Path(evaluations.FOLDER)
    directory = folder / evaluations.check_name(values.name or evaluations.default_name(request))
    evaluations.check_free(directory, request)
    prepare(directory, "outdir")
    compilation_cache.enable(values.compilation_cache)
    written: list[pathlib.Path] = []
    result = evaluate_images(
        images,
        [*files, source],
        metrics=metrics,
        num_images=values.num_images,
        name=str(values.images),
        resume=folder / evaluations.UNFINISHED,
        report=_say,
        on_samples=_picture(directory),
        finished=lambda result: written.append(_write(directory, request, result)),
        **features,
    )
    if written:
        _show(result, written[0])


def _write(
    directory: pathlib.Path, request: Mapping[str, Any], result: Mapping[str, Any]
) -> pathlib.Path:
    also = {key: request[key] for key in evaluations.ALSO_ASKED if key in request}
    return evaluations.write(directory, {**result, **also})


# ---------------------------------------------------------------- models


def models(values: types.SimpleNamespace) -> None:
    """Measure the images of one or several models."""
    chosen = _chosen(values)
    several = len(chosen) > 1
    first = None
    if not (values.workdir / CONFIG).exists() and values.config is None:
        first = load(chosen[0][0], variant=chosen[0][1])  # which says how it is drawn from
    asked = _request(values, first)
    compilation_cache.enable(values.compilation_cache)
    first = first or load(chosen[0][0], variant=chosen[0][1])
    if first.kind == "classifier":
        raise UsageError(
            f"--workdir={values.workdir} is a classifier, which draws no images; its accuracy is "
            "in the evaluation.json that training left"
        )
    if len(first.image_shape) == 1:
        raise UsageError(
            f"--workdir={values.workdir} is a model of sequences, which no metric is for; "
            "--mode=likelihood tells its bits per token"
        )
    guidance = guidance_flags.build(values, first, asked["sampling"])
    generate.check_request(first, asked["sampling"], guidance)
    folder = values.outdir or values.workdir / evaluations.FOLDER
    _directory(values, _request_of(asked, first), folder, several)  # before long work
    plan = _plan(values, asked, first)
    results: dict[str, dict[str, Any]] = {}
    for i, (path, variant) in enumerate(chosen):
        model = first if i == 0 else load(path, variant=variant)
        request = _request_of(asked, model)
        directory = _directory(values, request, folder, several)
        there = evaluations.read(directory)
        if several and _is_there(there, request, plan, model):
            _say(f"{directory} is there already")
            results[directory.name] = there
            continue
        if i:
            guidance = guidance_flags.build(values, model, asked["sampling"])
        result = _evaluate(model, plan, asked, request, directory, folder, guidance)
        if result:
            _show(result, directory / "evaluation.json")
            results[directory.name] = result
    if jax.process_index():
        return
    if several:
        _curve(folder / f"curve.{values.figure_format}", results)
    others = evaluations.found(values.workdir, folder)
    if len(others) > 1:
        _say(f"\nevaluations of {values.workdir}:\n{reporting.comparison_table(others)}")


def _is_there(
    there: Mapping[str, Any] | None, request: Mapping[str, Any], plan: Plan, model: Model
) -> bool:
    """Whether a result is what was asked, of these weights, extractors and references."""
    if there is None or evaluations.asked(there) != evaluations.asked(request):
        return False
    made, compared = reporting.made_with(plan), there.get("references") or {}
    return (
        there.get("weights_sha256") == reporting.weights_digest(model)
        and there.get("extractors") == made["extractors"]
        and {name: one["digest"] for name, one in compared.items()}
        == {name: one["digest"] for name, one in made["references"].items()}
    )


def _evaluate(
    model: Model,
    plan: Plan,
    asked: Mapping[str, Any],
    request: Mapping[str, Any],
    directory: pathlib.Path,
    folder: pathlib.Path,
    guidance: Any,
) -> dict[str, Any]:
    """One result, written before what it was going on from is removed."""
    return evaluate(
        model,
        plan,
        metrics=asked["metrics"],
        num_images=asked["num_images"],
        blocks=asked["blocks"],
        first_seed=asked["first_seed"],
        labels=asked["labels"],
        sampling=asked["sampling"],
        guidance=guidance,
        guidance_json=asked["guidance"],
        batch_size=asked["batch_size"],
        resume=folder / evaluations.UNFINISHED,
        report=_say,
        on_samples=_picture(directory),
        finished=functools.partial(_write, directory, request),
        more=_bound(model, asked),
    )


def _bound(model: Model, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Of an autoregressive model, where its data are at hand."""
    if model.kind != "ardm" or asked["experiment"] is None:
        return {}
    data = asked["experiment"].data
    source = data.open()
    if data_difference(model.description, source):
        return {}
    return bounds.bound(model, source, data.open_test(), batch_size=asked["batch_size"])


def _request(values: types.SimpleNamespace, model: Model | None) -> dict[str, Any]:
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
        "metrics": _metrics(values, own.metrics),
        "files": _files(values, own.reference),
        "features": _weights(values, own.weights),
        "batch_size": values.batch_size or (experiment.sample_batch if experiment else 64),
    }


def _base(experiment: Any, model: Model | None) -> Any:
    """How images are drawn where no flag says it."""
    if experiment is not None:
        return experiment.sampling
    return Sampling() if model is None else generate.default_request(model)


def _request_of(asked: Mapping[str, Any], model: Model) -> dict[str, Any]:
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


def _chosen(values: types.SimpleNamespace) -> list[tuple[pathlib.Path, str | None]]:
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


def _plan(values: types.SimpleNamespace, asked: Mapping[str, Any], model: Model) -> Plan:
    """Metrics with networks and references; the same for all models of a run."""
    experiment, files = asked["experiment"], asked["files"]
    source, test = None, None
    try:
        if experiment is not None:
            source = experiment.data.open()
            test = experiment.data.open_test()
    except (ConfigError, ValueError, OSError) as error:
        if not files:
            raise
        _say(f"warning: without the data set: {' '.join(str(error).split())}")
    if source is not None and (difference := data_difference(model.description, source)):
        if not files:
            raise ValueError(f"the model makes {difference}; give the --config of its data")
        source, test = None, None
    return make_plan(
        asked["metrics"],
        [*files, source],
        test,
        num_images=asked["num_images"],
        image_shape=model.image_shape,
        classes=model.num_classes,
        report=_say,
        extractors_given={},
        **asked["features"],
    )


def _directory(
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


def _curve(path: pathlib.Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """The numbers of several models over the images they have seen, a line for each average."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    texts = [text for result in results.values() for text in result["metrics"]]
    for column in columns(texts):
        for result in results.values():
            kimg = (result.get("progress") or {}).get("kimg")
            if result.get(column.key) is not None and kimg is not None:
                panel = lines.setdefault(column.label, {})
                panel.setdefault(result["weights"], []).append((kimg, result[column.key]))
    if lines:
        curves.lines_of_models(path, lines)
        _say(f"\n  {path}")
