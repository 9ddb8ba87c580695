"""Do class-conditional samples show the class that was asked for?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


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
