"""What can be known to be wrong, or to look wrong, with the data of a run before it starts."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from edm_jax.ardm.process import num_steps
from edm_jax.data.sources.base import ImageSource
from edm_jax.evaluation.drawing import progress_bar
from experiments.config.experiment import Experiment
from experiments.config.groups import named
from experiments.preflight.checks import Findings, one_line, stated_sigma_data

# Images that are decoded; enough that the standard deviation is known to a few per cent.
SAMPLE, QUICK_SAMPLE = 1024, 64
# Images whose headers are looked at where not all are: about a second.
QUICK_HEADERS = 10_000
# Sigma_data may be off by this factor from the data before it is remarked on: the paper has
# 0.5 for all of its data sets.
SIGMA_DATA_FACTOR = 1.25
# Below this, which is less than one of 255 levels, images show nothing.
LEAST_STD = 0.005


def check_data(
    findings: Findings, experiment: Experiment, source: ImageSource, *, quick: bool
) -> None:
    """A sample of the images, and all labels.

    Quick is a smaller sample, and all labels only where they are at hand.
    """
    data = experiment.data
    name = f"{data.source} {data.path}".strip()
    size = "x".join(map(str, source.image_shape))
    findings.fact("data", f"{name}: {len(source):,} images of {size}")
    if not len(source):
        findings.errors.append(f"the data set {name} is empty")
        return
    findings.warnings += getattr(source, "notes", ())
    batch_size = experiment.training.batch_size
    if batch_size > len(source):
        findings.warnings.append(
            f"config.train.batch_size={batch_size} is more than the {len(source):,} images: every "
            f"step sees each {batch_size / len(source):.3g} times, and a request to stop waits for "
            "the whole step; lower it"
        )
    sequences = len(source.image_shape) == 1
    if experiment.kind == "ardm":
        profile = np.zeros(num_steps(experiment.process, source.image_shape))
        with findings.part(), named("config.sampler", ("num_steps", "policy")):
            experiment.sampling.policies(experiment.process, source.image_shape, profile)
    if data.conditional and not source.num_classes and not sequences:
        findings.warnings.append(
            "config.data.conditional is on but the data have no labels: the network is "
            "unconditional; set config.data.conditional=False"
        )
    look = getattr(source, "first_odd", None)
    odd = look(QUICK_HEADERS if quick else None) if look else None
    if odd is not None:
        findings.errors.append(odd)
        return
    count = min(QUICK_SAMPLE if quick else SAMPLE, len(source))
    indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    threads = max(data.num_threads, 1)
    read = _moments_of(source, _num_values(experiment))
    moments = _read_all(findings, read, indices, threads, "images looked at")
    if moments and not sequences:
        mean, square = np.mean(moments, axis=0)
        std = max(square - mean**2, 0) ** 0.5
        findings.fact("", f"{len(moments):,} looked at: mean {mean:.3f}, std {std:.3f} in [-1, 1]")
        findings.warnings += _doubtful_sigma_data(experiment, std)
    if source.num_classes:
        labels = getattr(source, "labels", None)
        if labels is None and not quick:
            labels = _read_labels(findings, source, threads)
        if labels is not None:
            check_labels(findings, np.asarray(labels), source)


def _num_values(experiment: Experiment) -> int:
    """How many values the data may have."""
    if experiment.kind == "ardm" and not experiment.objective["order_agnostic"]["levels"]:
        return experiment.process.num_values
    return 256


def _moments_of(source: ImageSource, num_values: int) -> Callable[[int], tuple[float, float]]:
    shape = tuple(source.image_shape)

    def moments(index: int) -> tuple[float, float]:
        item = source[index]
        image = np.asarray(item["image"])
        if image.shape != shape or image.dtype != np.uint8:
            raise ValueError(
                f"image {index} is {image.dtype} of shape {image.shape}, expected uint8 of {shape}"
            )
        if int(image.max()) >= num_values:
            raise ValueError(
                f"image {index} has the value {image.max()}, and "
                f"config.objective.order_agnostic has values 0..{num_values - 1}; "
                "raise num_values, or set levels=True to take the nearest of so many grey levels"
            )
        if source.num_classes:
            _check_label(index, item, source.num_classes)
        pixels = image / 127.5 - 1
        return float(pixels.mean()), float(np.square(pixels).mean())

    return moments


def _check_label(index: int, item: dict[str, Any], num_classes: int) -> None:
    if "label" not in item:
        raise ValueError(f"image {index} has no label")
    label = item["label"]
    if np.ndim(label) == 0 and not 0 <= label < num_classes:
        raise ValueError(f"image {index} has label {label}, not in [0, {num_classes})")


def _read_all(
    findings: Findings,
    read: Callable[[int], Any],
    indices: Iterable[int],
    threads: int,
    what: str,
) -> list[Any]:
    """``read`` of every index; what it raises becomes one error with the first message."""

    def attempt(index: int) -> tuple[Any, str | None]:
        try:
            return read(index), None
        except (ValueError, KeyError, OSError) as error:
            return None, one_line(error)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(attempt, indices))
    problems = [problem for _, problem in results if problem is not None]
    if problems:
        findings.errors.append(
            f"{len(problems)} of {len(results)} {what} cannot be used; the first: {problems[0]}"
        )
    return [value for value, problem in results if problem is None]


def _read_labels(findings: Findings, source: ImageSource, threads: int) -> np.ndarray | None:
    """All labels, one by one; None if some cannot be read."""
    read = getattr(source, "read_label", None) or (lambda index: source[index]["label"])
    with progress_bar(len(source), "labels") as bar:

        def label(index: int) -> Any:
            bar.update()
            return read(index)

        labels = _read_all(findings, label, range(len(source)), threads, "labels")
    return np.asarray(labels) if len(labels) == len(source) else None


def check_labels(findings: Findings, labels: np.ndarray, source: ImageSource) -> None:
    """Range of all labels, and classes without images.

    Args:
      labels: ``(N,)`` classes or ``(N, K)`` vectors.
    """
    classes = source.num_classes
    if labels.ndim == 2:
        bad = ~np.isfinite(labels).all(1) if labels.shape[1] == classes else np.full(1, True)
        rule = f"vectors of {classes} finite numbers"
        findings.fact("", f"labels are {rule}")
    else:
        bad, rule = (labels < 0) | (labels >= classes), f"in [0, {classes})"
    if bad.any():
        first = int(np.argmax(bad))
        findings.errors.append(
            f"{int(bad.sum())} of {len(labels)} labels are not {rule}, the first that of image "
            f"{first}: {labels[first]}"
        )
    elif labels.ndim == 1:
        counts = np.bincount(labels, minlength=classes)
        findings.fact("", f"{classes} classes of {counts.min():,} to {counts.max():,} images")
        missing = np.flatnonzero(counts == 0)
        if missing.size:
            findings.warnings.append(
                f"{missing.size} of {classes} classes have no image, such as class {missing[0]}; "
                "the network will have inputs that are never trained"
            )


def _doubtful_sigma_data(experiment: Experiment, std: float) -> Iterator[str]:
    stated = list(stated_sigma_data(experiment))
    if std < LEAST_STD:
        yield "the images looked at are all of one level of grey: there is nothing to learn"
        return
    for key, value in stated[:1]:
        if not value / SIGMA_DATA_FACTOR <= std <= value * SIGMA_DATA_FACTOR:
            yield (
                f"the standard deviation of the images is {std:.3f} but {key} is {value:g}; set "
                f"{' and '.join(key for key, _ in stated)} to {std:.2f}"
            )
