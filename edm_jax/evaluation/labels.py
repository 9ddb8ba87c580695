"""Which labels an evaluation asks a model for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edm_jax.data.sources.base import ImageSource, class_indices
from edm_jax.generate import drawn_labels
from edm_jax.model import Model

# How classes are asked for: every one equally often, or as each seed draws.
BALANCED, RANDOM = "balanced", "random"


def balanced_labels(classes: Sequence[int], count: int) -> np.ndarray | None:
    """Every class equally often, ``(count,)``; None without classes."""
    return np.resize(np.asarray(classes), count) if len(classes) else None


def has_label_vectors(source: ImageSource) -> bool:
    """Whether labels are vectors of numbers that are no classes."""
    labels = getattr(source, "labels", None)
    if labels is None:
        return bool(source.num_classes) and np.ndim(source[0]["label"]) == 1
    return class_indices(labels) is None


def asked_labels(model: Model, source: ImageSource | None, count: int) -> np.ndarray | None:
    """What an evaluation asks for: every class that has images equally often, or their vectors.

    Args:
      model: whose classes are asked for.
      source: the images it was trained on, if they are at hand.
      count: how many.

    Returns:
      ``(count,)`` classes; ``(count, K)`` labels of the first images (or those that the model
      keeps), over and over, where these are vectors; None without labels.
    """
    if model.num_classes and source is None and model.label_vectors is not None:
        return model.label_vectors[np.arange(count) % len(model.label_vectors)]
    if not model.num_classes or source is None or not has_label_vectors(source):
        return balanced_labels(model.classes, count)
    labels = getattr(source, "labels", None)
    if labels is None:
        labels = np.stack([source[i]["label"] for i in range(min(count, len(source)))])
    return np.asarray(labels)[np.arange(count) % len(labels)]


def labels_of(
    model: Model, seeds: np.ndarray, labels: str | int, source: ImageSource | None = None
) -> np.ndarray | None:
    """The label of every seed; None for an unconditional model.

    Args:
      model: whose classes are asked for.
      seeds: ``(n,)``.
      labels: ``balanced`` (see `asked_labels`), ``random`` (as each seed draws its class), or
        one class for all.
      source: the images it was trained on, if they are at hand.

    Raises:
      ValueError: another word, or a class that the model does not have.
    """
    if labels == BALANCED:
        return asked_labels(model, source, len(seeds))
    if labels == RANDOM:
        return drawn_labels(model, seeds)
    if isinstance(labels, bool) or not isinstance(labels, int | np.integer):
        raise ValueError(f"labels must be {BALANCED}, {RANDOM} or a class index, got {labels!r}")
    if not 0 <= labels < model.num_classes:
        raise ValueError(f"label {labels} is out of range; the model has {model.num_classes}")
    return np.full(len(seeds), labels)
