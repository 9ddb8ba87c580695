"""An evaluation: images of given seeds, measured against real ones.

result = evaluate(model, source, metrics=["frechet_pixels"], num_images=1000)
print(result_table(result))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from edm_jax import names
from edm_jax.data.sources.base import ImageSource, class_indices
from edm_jax.evaluation import drawing
from edm_jax.generate import Sampling
from edm_jax.metrics import registry
from edm_jax.metrics.registry import MEASURED, METRICS, Labelled
from edm_jax.model import Model

# Far from the seeds of the sample grids.
FIRST_SEED = 100_000_000


def stack_source(source: ImageSource, limit: int | None = None) -> Labelled:
    """All (or the first) images and labels of a source, labels empty if it has none."""
    count = len(source) if limit is None else min(limit, len(source))
    examples = [source[i] for i in range(count)]
    images = np.stack([e["image"] for e in examples])
    labels = np.stack([e["label"] for e in examples]) if source.num_classes else np.zeros(0)
    return images, labels


def with_classes(images: Labelled) -> Labelled:
    """The same with classes in the place of one-hot vectors, as metrics take them."""
    pixels, labels = images
    indices = None if labels is None else class_indices(labels)
    return pixels, labels if indices is None else indices


def balanced_labels(classes: Sequence[int], count: int) -> np.ndarray | None:
    """Every class equally often, ``(count,)``; None without classes."""
    return np.resize(np.asarray(classes), count) if len(classes) else None


def has_label_vectors(source: ImageSource) -> bool:
    """Whether labels are vectors of numbers that are no classes."""
    labels = getattr(source, "labels", None)
    if labels is None:
        return bool(source.num_classes) and np.ndim(source[0]["label"]) == 1
    return class_indices(labels) is None


def asked_labels(model: Model, source: ImageSource, count: int) -> np.ndarray | None:
    """What an evaluation asks for: every class that has images equally often, or their vectors.

    Args:
      model: whose classes are asked for.
      source: the images it was trained on.
      count: how many.

    Returns:
      ``(count,)`` classes; ``(count, K)`` labels of the first images, over and over, where
      these are vectors; None without labels.
    """
    if not model.num_classes or not has_label_vectors(source):
        return balanced_labels(model.classes, count)
    labels = getattr(source, "labels", None)
    if labels is None:
        labels = np.stack([source[i]["label"] for i in range(min(count, len(source)))])
    return np.asarray(labels)[np.arange(count) % len(labels)]


def evaluate(
    model: Model,
    train: ImageSource,
    test: ImageSource | None = None,
    *,
    metrics: Sequence[str] = ("frechet_pixels", "classifier"),
    num_images: int = 2000,
    first_seed: int = FIRST_SEED,
    sampling: Sampling | None = None,
    batch_size: int = 64,
    report: Callable[[str], None] = print,
    poll: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Draw samples, every class equally often, and measure them.

    All processes draw, process 0 measures.

    Args:
      model: to sample from.
      train: the images it was trained on.
      test: real images that it has not seen, or None.
      metrics: names of `metrics.registry.METRICS`.
      num_images: samples, at least 2.
      first_seed: the seeds are this and those that follow.
      sampling: the request; None for the defaults.
      batch_size: images at a time of one process.
      report: told what is going on.
      poll: called for each batch of samples; may raise.

    Returns:
      JSON values: what was asked (number of images, NFE, request, weights) and one or more
      numbers for each metric; why a metric is left out, in ``left_out``, where the data do
      not allow it; nothing on processes other than 0.

    Raises:
      ValueError: before any work, for an unknown metric or a bad request.
    """
    measures = {name: names.lookup(METRICS, name, "metric") for name in metrics}
    if num_images < 2:
        raise ValueError(f"num_images must be at least 2, got {num_images}")
    sampling = Sampling() if sampling is None else sampling
    sampling.check(model.preconditioning)
    seeds = first_seed + np.arange(num_images)
    labels = asked_labels(model, train, num_images)
    nfe = sampling.nfe(model.preconditioning)
    report(f"drawing {num_images} images, {describe_calls(nfe)} each")
    images = drawing.draw(
        model, seeds, labels, sampling, batch_size=batch_size, name="evaluation", poll=poll
    )
    if jax.process_index():
        return {}
    result: dict[str, Any] = {
        "num_images": int(num_images),
        "first_seed": int(first_seed),
        "metrics": list(metrics),
        "nfe": nfe,
        "num_steps": sampling.num_steps,
        "sampling": sampling.to_json(),
        "weights": model.variant,
        "progress": model.description.get("progress"),
    }
    real = with_classes(stack_source(train))
    unseen = None if test is None else with_classes(stack_source(test))
    left_out = {}
    for name, measure in measures.items():
        reason = registry.obstacle(name, len(train), train.num_classes, real[1])
        if not reason:
            known = unseen is not None and not registry.floor_obstacle(name, len(unseen[0]))
            try:
                result |= measure((images, labels), real, unseen if known else None)
            except (ValueError, ArithmeticError) as error:  # of a library: the others are had
                reason = " ".join(str(error).split())
        if reason:
            left_out[name] = reason
            report(f"{name} is left out: {reason}")
    return result | ({"left_out": left_out} if left_out else {})


def describe_calls(nfe: int | None) -> str:
    """Network calls of an image, in words."""
    return "as many network calls as its tolerances ask" if nfe is None else f"{nfe} network calls"


ROWS = (
    *MEASURED,
    ("num_images", "images", "{:d}"),
    ("nfe", "network calls per image", "{:d}"),
)


def result_table(result: Mapping[str, Any]) -> str:
    """The result as a short table."""
    rows = [
        (label, form.format(result[key]))
        for key, label, form in ROWS
        if result.get(key) is not None
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"  {label:<{width}}  {value:>10}" for label, value in rows)


def comparison_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Several results under each other, a line each, with the columns that any has."""
    columns = [row for row in ROWS if any(r.get(row[0]) is not None for r in results.values())]
    cells = [["", *(label for _, label, _ in columns)]]
    for name, result in results.items():
        values = [
            "-" if result.get(key) is None else form.format(result[key]) for key, _, form in columns
        ]
        cells.append([name, *values])
    # Names of columns are long: one line for each, in front of the numbers.
    legend = [f"  [{i}] {label}" for i, label in enumerate(cells[0][1:], 1)]
    cells[0] = ["", *(f"[{i}]" for i in range(1, len(columns) + 1))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([*(f"  {line}" for line in lines), *legend])
