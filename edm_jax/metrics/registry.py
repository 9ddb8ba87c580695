"""The metrics of an evaluation by name: images -> numbers, and what they cannot be had of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Images, ``(n, H, W, C)`` uint8, and their labels: ``(n,)`` classes, or ``(n, K)`` vectors that are
# none; None or empty without.
Labelled = tuple[np.ndarray, np.ndarray | None]
Metric = Callable[[Labelled, Labelled, Labelled | None], dict[str, float]]

# The covariance of pixels is a matrix of this size squared: half a minute and 0.1 GB here.
MAX_PIXEL_NUMBERS = 4096


def _as_floats(images: np.ndarray) -> np.ndarray:
    """uint8 -> float64 [-1, 1]."""
    return images / 127.5 - 1


def frechet_pixels(samples: Labelled, train: Labelled, test: Labelled | None) -> dict[str, float]:
    """Of the samples, and of real images that were not trained on, to those that were."""
    from edm_jax.metrics.frechet import frechet_distance, gaussian_statistics

    def statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return gaussian_statistics(_as_floats(images).reshape(len(images), -1))

    real = statistics(train[0])
    found = {"frechet_distance": samples} | ({"frechet_distance_floor": test} if test else {})
    return {key: frechet_distance(*statistics(images), *real) for key, (images, _) in found.items()}


def _needs_two(num_images: int, num_classes: int, labels: np.ndarray | None) -> str:
    return "" if num_images > 1 else f"it takes two images or more, not {num_images}"


def classifier(samples: Labelled, train: Labelled, test: Labelled | None) -> dict[str, float]:
    """How often a classifier of the training images sees the class that was asked for."""
    if samples[1] is None:
        return {}
    from edm_jax.metrics.classifier import class_accuracy, fit_pixel_classifier

    classify = fit_pixel_classifier(_as_floats(train[0]), train[1])
    found = {"class_accuracy": samples} | ({"class_accuracy_real_test": test} if test else {})
    return {
        key: class_accuracy(classify(_as_floats(images)), labels)
        for key, (images, labels) in found.items()
    }


def _needs_classes(num_images: int, num_classes: int, labels: np.ndarray | None) -> str:
    if not num_classes:
        return "it tells classes apart, and there are none"
    if labels is None or not len(labels):
        return ""
    if np.ndim(labels) > 1:
        return "it tells classes apart, and the labels are vectors of other numbers"
    return (
        ""
        if len(np.unique(labels)) > 1
        else "it tells classes apart, and all images are of one class"
    )


METRICS: dict[str, Metric] = {"frechet_pixels": frechet_pixels, "classifier": classifier}
# Why a metric cannot be had of so many training images, with such labels (None: not known), or "".
_NEEDS = {"frechet_pixels": _needs_two, "classifier": _needs_classes}


def obstacle(name: str, num_images: int, num_classes: int, labels: np.ndarray | None) -> str:
    """Why a metric cannot be had of a data set, known before anything is drawn; or "".

    Args:
      name: of METRICS.
      num_images: of the training images.
      num_classes: dimension of their labels.
      labels: of them, as in Labelled; None where they are not known.
    """
    needs = _NEEDS.get(name)
    return needs(num_images, num_classes, labels) if needs else ""


def floor_obstacle(name: str, num_images: int) -> str:
    """Why a metric has no number for the real test images; or ""."""
    return _needs_two(num_images, 0, None) if name == "frechet_pixels" else ""


# What metrics return: key, label and format, in the order of the table.
MEASURED: tuple[tuple[str, str, str], ...] = (
    ("class_accuracy", "class accuracy of samples", "{:.2%}"),
    ("class_accuracy_real_test", "class accuracy of real test images", "{:.2%}"),
    ("frechet_distance", "Frechet distance, samples to train", "{:.4f}"),
    ("frechet_distance_floor", "Frechet distance, real test to train", "{:.4f}"),
)
