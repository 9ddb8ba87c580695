"""Do class-conditional samples show the class that was asked for?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from edm_jax.metrics.extractors import Extractor
from edm_jax.metrics.reference import Reference
from edm_jax.metrics.result import Accumulated, Result, enough

NAME = "classes"


def fit_pixel_classifier(
    images: np.ndarray, labels: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """A support-vector machine on raw pixels, for small and simple images.

    Args:
      images: ``(n, H, W, C)`` floats.
      labels: ``(n,)`` class indices.

    Returns:
      ``classify(images) -> (m,)`` class indices.
    """
    from sklearn.svm import SVC

    machine = SVC().fit(images.reshape(len(images), -1), labels)
    return lambda samples: machine.predict(samples.reshape(len(samples), -1))


def class_accuracy(predicted: np.ndarray, requested: np.ndarray) -> float:
    """Share of samples whose predicted class is the requested one, in [0, 1]."""
    return float(np.mean(np.asarray(predicted) == np.asarray(requested)))


def extractor(images: np.ndarray, labels: np.ndarray) -> Extractor:
    """The class that a classifier of some images sees in others, as their only feature.

    Args:
      images: ``(n, H, W, C)`` uint8.
      labels: ``(n,)`` class indices, at least two of them different.
    """
    classify = fit_pixel_classifier(images / 127.5 - 1, labels)

    def predicted(some: np.ndarray) -> np.ndarray:
        return classify(some / 127.5 - 1)[:, None]

    digest = hashlib.sha256(b"support-vector machine on v / 127.5 - 1")
    for array in (images, labels):
        digest.update(np.ascontiguousarray(array).data)
    return Extractor(NAME, digest.hexdigest(), predicted, 256)


def measure(accumulated: Accumulated, reference: Reference | None) -> dict[str, Result]:
    """The share of images in which the class is seen that was asked for."""
    del reference
    predicted, requested = (accumulated[need].result()[:, 0] for need in ("features", "labels"))
    count = enough(len(predicted), 1, "the class accuracy")
    share = class_accuracy(predicted, requested)
    remark = "the uncertainty is the binomial standard deviation"
    return {"": Result(share, float(np.sqrt(share * (1 - share) / count)), (remark,))}
