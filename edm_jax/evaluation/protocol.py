"""An evaluation: images of given seeds, measured against real ones.

result = evaluate(model, source, metrics=["fid"], weights={"inception": FILE}, num_images=50_000)
print(result_table(result))
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import requests
from edm_jax.arguments import (
    check_by_name,
    check_count,
    check_function,
    check_kind,
    check_path,
    check_scalar,
    check_switch,
)
from edm_jax.data.sources.base import ImageSource, Subset, max_size_indices
from edm_jax.evaluation import drawing, measuring, planning, references, reporting
from edm_jax.evaluation.labels import BALANCED, labels_of
from edm_jax.evaluation.planning import Plan, Weights, make_plan
from edm_jax.generate import Sampling
from edm_jax.guidance.cost import network_rows, visited_levels
from edm_jax.metrics.extractors import Extractor
from edm_jax.metrics.result import Result
from edm_jax.model import Model
from edm_jax.seeds import image_keys
from edm_jax.train import distributed
from edm_jax.typing import Array, ArrayLike, DenoiseFn, PyTree

# Far from the seeds of the sample grids.
FIRST_SEED = 100_000_000
# Far more than are worth drawing, and far fewer than there are seeds.
MAX_IMAGES = 100_000_000


@dataclasses.dataclass(frozen=True)
class Kept:
    """What stays on the disk while an evaluation goes on; process 0 writes.

    Attributes:
      folder: of all of them; None keeps nothing.
      seconds: between two states.
      finished: given the result before what is kept is removed.
    """

    folder: str | os.PathLike[str] | None = None
    seconds: float = measuring.SAVE_SECONDS
    finished: Callable[[dict[str, Any]], None] | None = None

    def of(self, identity: Mapping[str, Any]) -> pathlib.Path | None:
        """The folder of one evaluation, told by what it is about."""
        if self.folder is None:
            return None
        text = json.dumps(identity, sort_keys=True, default=str)
        return pathlib.Path(self.folder) / hashlib.sha256(text.encode()).hexdigest()[:24]


def _check_functions(report: Any, **others: Any) -> None:
    if report is None:
        raise ValueError("report must be a function of a line, got None; to be quiet: str")
    for name, function in {"report": report, **others}.items():
        check_function(name, function)


def _asked(
    model: Model,
    sampling: Sampling,
    guidance: PyTree | None,
    guidance_json: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What the result says of the model and of how it draws."""
    asked = {
        "nfe": requests.network_calls(model, sampling),
        "num_steps": sampling.num_steps,
        "sampling": sampling.to_json(),
        "weights": model.variant,
        "weights_sha256": reporting.weights_digest(model),
        "progress": model.description.get("progress"),
    }
    if guidance is not None:
        asked["guidance"] = dict(guidance_json) if guidance_json else repr(guidance)
        asked["network_rows"] = network_rows_of(guidance, sampling, model)
    return asked


def evaluate(
    model: Model,
    reference: Any,
    test: ImageSource | None = None,
    *,
    metrics: Sequence[str] = ("frechet_pixels", "classifier"),
    num_images: int = 50_000,
    blocks: int = 1,
    first_seed: int = FIRST_SEED,
    labels: str | int = BALANCED,
    sampling: Sampling | None = None,
    guidance: PyTree | None = None,
    guidance_json: Mapping[str, Any] | None = None,
    weights: Weights | None = None,
    extractors: Mapping[str, Extractor] | None = None,
    options: Mapping[str, str] | None = None,
    batch_size: int = 64,
    cache: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    save_seconds: float = measuring.SAVE_SECONDS,
    report: Callable[[str], None] = print,
    poll: Callable[[], None] | None = None,
    on_samples: Callable[[np.ndarray, np.ndarray], None] | None = None,
    finished: Callable[[dict[str, Any]], None] | None = None,
    strict: bool = True,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Draw samples and measure them as they come; none touches the disk.

    All processes call this together; each draws its share, process 0 measures.

    Args:
      model: to sample from.
      reference: what to compare with: the images it was trained on (a source), a `Reference`,
        the path of one, or several of these; or a `Plan` of an earlier call.
      test: real images that it has not seen, or None.
      metrics: names of `metrics.registry.METRICS`; ``kid@dinov2`` on other features.
      num_images: samples of a block, at least 2.
      blocks: of consecutive seeds; of several the minimum of a Frechet distance is quoted, as
        in the paper, and the mean of others.
      first_seed: the seeds are this and those that follow.
      labels: ``balanced``, ``random`` or one class, see `labels_of`.
      sampling: the request; None for the defaults.
      guidance: see `edm_jax.generate.batches`.
      guidance_json: what the guidance is, for the result; by default as Python shows it.
      weights: files of feature networks, ``{"inception": FILE, "dinov2": FILE}``.
      extractors: further ones by name, see `metrics.extractors.from_function`.
      options: what messages call the files of ``weights``.
      batch_size: images at a time of one process.
      cache: folder that keeps references made of data sets.
      resume: folder that keeps what is measured so far; the same call goes on from it.
      save_seconds: between two states there.
      report: told what is going on.
      poll: called for each batch; may raise.
      on_samples: given seeds and images of the first few, on process 0.
      finished: given the result, on process 0, before what ``resume`` keeps is removed.
      strict: whether it is an error that no metric can be given of these data.
      more: other numbers of the model, for the result.

    Returns:
      JSON values: what was asked, one or more numbers for each metric, with what they were
      made; nothing on processes other than 0.

    Raises:
      ValueError: before any work, for an unknown metric or a bad request.
    """
    check_kind("model", model, Model, "edm_jax.load or from_denoiser makes one")
    check_count("num_images", num_images, least=2)
    check_count("blocks", blocks)
    if num_images * blocks > MAX_IMAGES:
        raise ValueError(
            f"num_images times blocks must be at most {MAX_IMAGES:,}, got {num_images * blocks:,}"
        )
    check_count("first_seed", first_seed, least=0)
    check_count("batch_size", batch_size)
    check_by_name("guidance_json", guidance_json)
    check_path("resume", resume)
    check_switch("strict", strict)
    check_scalar("save_seconds", save_seconds, least=0, finite=False)
    _check_functions(report, poll=poll, on_samples=on_samples, finished=finished)
    sampling = requests.checked(model, sampling)
    requests.check_request(model, sampling, guidance)
    seeds = first_seed + np.arange(blocks * num_images).reshape(blocks, num_images)
    labels_of(model, seeds[0, :1], labels)  # checked before long work
    plan = reference
    if not isinstance(plan, Plan):
        plan = make_plan(
            metrics, reference, test, num_images=num_images, image_shape=model.image_shape,
            classes=model.num_classes, weights=weights, extractors_given=extractors,
            options=options, cache=cache, report=report, poll=poll, strict=strict,
        )  # fmt: skip
    wanted = labels_of(model, seeds.reshape(-1), labels, plan.real)
    classes = [None] * blocks if wanted is None else np.split(wanted, blocks)
    asked = {
        "num_images": int(num_images),
        "first_seed": int(first_seed),
        "metrics": list(metrics),
        "labels": labels if model.num_classes else None,
        "num_blocks": blocks,
    }
    asked |= _asked(model, sampling, guidance, guidance_json)
    asked |= more or {}
    if not plan.asked:
        return {**asked, **reporting.measured(plan, [], {})}

    def batches(block: int, done: int) -> Iterator[tuple[int, np.ndarray]]:
        return drawing.stream(
            model, seeds[block], classes[block], sampling, guidance,
            batch_size=batch_size, done=done, finite=True,
        )  # fmt: skip

    told = describe_calls(asked["nfe"], asked.get("network_rows"))
    report(f"drawing {blocks * num_images} images, {told} each")
    return _measure_blocks(
        plan, batches, classes, asked, Kept(resume, save_seconds, finished), report, poll,
        on_samples and (lambda images: on_samples(seeds[0][: len(images)], images)),
    )  # fmt: skip


def evaluate_images(
    images: ImageSource,
    reference: Any,
    *,
    metrics: Sequence[str] = ("fid",),
    num_images: int | None = None,
    seed: int = 0,
    weights: Weights | None = None,
    extractors: Mapping[str, Extractor] | None = None,
    options: Mapping[str, str] | None = None,
    name: str = "",
    cache: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    save_seconds: float = measuring.SAVE_SECONDS,
    report: Callable[[str], None] = print,
    poll: Callable[[], None] | None = None,
    on_samples: Callable[[np.ndarray, np.ndarray], None] | None = None,
    finished: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure pictures that are there; arguments as of `evaluate`.

    Args:
      images: the pictures, all of one size; their labels are the classes asked for.
      num_images: a random subset of so many, chosen by ``seed``; None for all.
      name: what they are, for people.

    Raises:
      ValueError: fewer pictures than ``num_images``, or as of `evaluate`.
    """
    count = len(images) if num_images is None else num_images
    if count > len(images):
        raise ValueError(f"num_images is {count}, but there are {len(images)} images")
    if count < 2:
        raise ValueError(f"an evaluation needs at least 2 images, got {count}")
    if count < len(images):
        images = Subset(images, max_size_indices(len(images), count, seed))
    labels = None
    if images.num_classes:
        labels = planning.classes_of(images)
    plan = reference
    if not isinstance(plan, Plan):
        plan = make_plan(
            metrics, reference, num_images=count, image_shape=images.image_shape,
            classes=0 if labels is None else images.num_classes, weights=weights,
            extractors_given=extractors, options=options, cache=cache, report=report, poll=poll,
        )  # fmt: skip
    asked = {
        "images": name or repr(images),
        # All are read once before the first is measured: a damaged one is found at once, and
        # what is kept of other pictures of the same name is not gone on with.
        "images_sha256": references.source_digest(images),
        "num_images": count,
        "metrics": list(metrics),
    }
    if num_images is not None:
        asked["subset_seed"] = seed
    report(f"measuring {count} images")
    return _measure_blocks(
        plan, lambda block, done: references.read_batches(images, start=done), [labels], asked,
        Kept(resume, save_seconds, finished), report, poll,
        on_samples and (lambda shown: on_samples(np.arange(len(shown)), shown)),
    )  # fmt: skip


def _measure_blocks(
    plan: Plan,
    batches: Callable[[int, int], Iterator[tuple[int, np.ndarray]]],
    labels: Sequence[np.ndarray | None],
    asked: Mapping[str, Any],
    kept: Kept,
    report: Callable[[str], None],
    poll: Callable[[], None] | None,
    on_shown: Callable[[np.ndarray], None] | None,
) -> dict[str, Any]:
    """The result of all blocks; each goes on from what is kept of it."""
    with_what = reporting.made_with(plan)
    identity = {**asked, **{key: with_what[key] for key in ("extractors", "references")}}
    folder = kept.of(identity)
    found: list[dict[str, Result]] = []
    failed: dict[str, str] = {}

    def collect(measurement: measuring.Measurement) -> None:
        results, without = measurement.results(plan.references)
        found.append(results)
        failed.update(without)

    for block, classes in enumerate(labels):
        measurement = plan.measurement()
        path = None if folder is None else folder / f"block-{block}.npz"
        measuring.measure(
            measurement, lambda done, b=block: batches(b, done), plan.num_images, classes,
            state=measuring.StateFile(path, kept.seconds), report=report, poll=poll,
            name="evaluation" if len(labels) == 1 else f"block {block + 1} of {len(labels)}",
        )  # fmt: skip
        # The others wait for process 0, which measures alone.
        distributed.on_lead(lambda m=measurement: collect(m))
        if block == 0 and on_shown and not jax.process_index() and measurement.shown is not None:
            on_shown(measurement.shown)
    if jax.process_index():
        return {}
    for text, reason in failed.items():
        report(f"warning: {text} is left out: {reason}")
    result = {**asked, **reporting.measured(plan, found, failed), **with_what}
    if kept.finished is not None:
        kept.finished(result)
    if folder is not None and failed:
        report(f"the images are not lost: the same call goes on from {folder}")
    elif folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def network_rows_of(guidance: Any, sampling: Sampling, model: Model) -> dict[str, int]:
    """Images that go through each network for one image of a guided sampling.

    Not the calls of D: what a guidance evaluates besides counts, where it does.

    Returns:
      Rows by the name of a network; none for a sampler whose calls the data decide.
    """
    if sampling.nfe(model.preconditioning) is None:
        return {}
    grid, asked = sampling.grid(model.preconditioning), sampling.request(model.preconditioning)
    keys = image_keys([0])
    learned = requests.learns_variance(asked)

    def run(denoise: DenoiseFn, x: Array) -> Any:
        def with_variance(x: Array, sigma: ArrayLike) -> tuple[Array, Array]:
            return denoise(x, sigma), jnp.full_like(x, 0.5)

        denoise_fn = with_variance if learned else denoise
        return asked(denoise_fn, x, grid, keys, preconditioning=model.preconditioning)

    levels = visited_levels(run, size=1)
    return network_rows(guidance, levels)


def describe_calls(nfe: int | None, rows: Mapping[str, int] | None = None) -> str:
    """Network calls of an image, in words.

    Args:
      nfe: evaluations of the guided or unguided model; None where the data decide.
      rows: under guidance, images through each network, see `network_rows_of`.
    """
    calls = "as many network calls as its tolerances ask" if nfe is None else f"{nfe} network calls"
    return f"{calls} (guided: {reporting.describe_rows(rows)})" if rows else calls
