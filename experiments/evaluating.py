"""What ``--mode=evaluate`` does: models of a run, one or several, or pictures."""

from __future__ import annotations

import functools
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from edm_jax import load, requests
from edm_jax.evaluation import evaluate, evaluate_images, reporting
from edm_jax.evaluation import pictures as picture_files
from edm_jax.evaluation.planning import Plan, make_plan
from edm_jax.figures import curves, files, sheets
from edm_jax.metrics.registry import columns, parse
from edm_jax.model import Model
from experiments import bounds, compilation_cache, evaluations, guidance_flags, sampling_flags
from experiments.config import build
from experiments.config.experiment import data_difference
from experiments.config.flag import UsageError
from experiments.config.groups import ConfigError
from experiments.evaluation_request import (
    asked_of,
    chosen_models,
    class_of,
    directory_of,
    features_of,
    identity,
    metrics_of,
    reference_files,
)
from experiments.workdir import CONFIG, prepare

SAMPLES = "evaluation_samples.png"
# Flags that say nothing about pictures that are there.
OF_A_MODEL = (
    "variant", "checkpoints", "figure_format", "first_seed", "blocks", "labels",
    *(flag.name for flag in (*sampling_flags.FLAGS, *guidance_flags.FLAGS)),
)  # fmt: skip


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


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
    metrics = metrics_of(values, ("fid",))
    files, features = reference_files(values), features_of(values, {})
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
    with evaluations.unfinished(folder) as kept:
        result = evaluate_images(
            images,
            [*files, source],
            metrics=metrics,
            num_images=values.num_images,
            name=str(values.images),
            resume=kept,
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
    chosen = chosen_models(values)
    several = len(chosen) > 1
    first = None
    if not (values.workdir / CONFIG).exists() and values.config is None:
        first = load(chosen[0][0], variant=chosen[0][1])  # which says how it is drawn from
    asked = asked_of(values, first)
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
    asked["labels"] = class_of(asked["labels"], first)
    guidance = guidance_flags.build(values, first, asked["sampling"])
    requests.check_request(first, asked["sampling"], guidance)
    folder = values.outdir or values.workdir / evaluations.FOLDER
    directory_of(values, identity(asked, first), folder, several)  # before long work
    plan = _plan(values, asked, first)
    results: dict[str, dict[str, Any]] = {}
    for i, (path, variant) in enumerate(chosen):
        model = first if i == 0 else load(path, variant=variant)
        request = identity(asked, model)
        directory = directory_of(values, request, folder, several)
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
    with evaluations.unfinished(folder) as kept:
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
            resume=kept,
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
        with files.costing_nothing_else(path):
            curves.lines_of_models(path, lines)
            _say(f"\n  {path}")
