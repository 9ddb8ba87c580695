"""The images of a data set as a model's flow takes them: of its shape, with its labels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edm_jax.data.sources.base import ImageSource, max_size_indices
from edm_jax.model import Model
from experiments import image_files

NO_LABEL = "none"
# So many images tell one data set from another.
_SAMPLE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Images of a source and the labels that the model gets.

    Attributes:
      source: of images of the model's shape.
      indices: ``(n,)`` which of its images, ascending.
      num_classes: of the model.
      labels: ``(n,)`` classes or ``(n, num_classes)`` rows, asked for; None for those of the
        source, or none if the model has no classes.
    """

    source: ImageSource
    indices: np.ndarray
    num_classes: int
    labels: np.ndarray | None

    def batch(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Indices, ``(b, H, W, C)`` uint8 images and labels of some images of the source."""
        items = [self.source[int(i)] for i in indices]
        images = np.stack([item["image"] for item in items])
        if not self.num_classes:
            return np.asarray(indices), images, None
        if self.labels is not None:
            return np.asarray(indices), images, self.labels[np.searchsorted(self.indices, indices)]
        return np.asarray(indices), images, np.stack([item["label"] for item in items])

    def batches(self, indices: Sequence[int], size: int) -> Iterator[tuple]:
        """`batch` after batch."""
        return (self.batch(indices[i : i + size]) for i in range(0, len(indices), size))

    def told(self) -> dict[str, Any]:
        """What tells these images from others, as JSON values.

        The digest is that of 16 images spread over them.
        """
        some = self.indices[np.linspace(0, len(self.indices) - 1, _SAMPLE).astype(int)]
        digest = hashlib.sha256()
        for array in self.batch(some):
            digest.update(b"" if array is None else np.ascontiguousarray(array))
        return {
            "num_images": len(self.indices),
            "of": len(self.source),
            "sha256_of_16": digest.hexdigest()[:16],
        }


def images_of(
    model: Model,
    source: ImageSource,
    *,
    num_images: int | None = None,
    labels: str | None = None,
    name: str = "the data set",
) -> Images:
    """Images of a source for a model.

    Args:
      model: the denoiser.
      source: of images.
      num_images: so many of them, the same ones every time; None for all.
      labels: a class for all (or one per image), ``none`` for the all-zero label that label
        dropout trains; None for the labels of the source.
      name: of the source, in messages.

    Raises:
      ValueError: for images of another shape, more than there are, labels that the model has
        not, or none where it needs them.
    """
    if tuple(source.image_shape) != model.image_shape:
        had, wanted = ("x".join(map(str, s)) for s in (source.image_shape, model.image_shape))
        raise ValueError(
            f"{name} has images of {had}, the model is one of {wanted}; convert them with "
            "--mode=dataset, or give those of the model"
        )
    if num_images is not None and num_images > len(source):
        raise ValueError(f"--num_images={num_images}: {name} has {len(source)}")
    indices = max_size_indices(len(source), num_images or len(source))
    asked = None
    if labels == NO_LABEL:
        if not model.num_classes:
            raise ValueError("--labels=none: the model is unconditional; leave --labels out")
        asked = np.zeros((len(indices), model.num_classes), np.float32)
    elif labels is not None:
        asked = image_files.labels_of(labels, model, range(len(indices)))
    elif model.num_classes:
        _check_labels(model, source, name)
    return Images(source, indices, model.num_classes, asked)


def _check_labels(model: Model, source: ImageSource, name: str) -> None:
    cure = "give --labels=3 (a class for all), or --labels=none for a model of label dropout"
    if not source.num_classes:
        raise ValueError(
            f"the model has {model.num_classes} classes and another flow for each, and {name} has "
            f"no labels; {cure}"
        )
    vectors = np.ndim(source[0]["label"]) > 0
    fits = source.num_classes == model.num_classes
    if not (fits or (not vectors and source.num_classes < model.num_classes)):
        raise ValueError(
            f"{name} has {source.num_classes} classes, the model {model.num_classes}; {cure}"
        )


def check_label_text(labels: str | None) -> None:
    """Raise ValueError for ``--labels`` that can be no labels, before a model is loaded."""
    if labels not in (None, NO_LABEL) and not image_files.are_names(labels):
        image_files.parse_ranges(labels, "labels")


def one_class_each(rows: np.ndarray | None) -> np.ndarray | None:
    """``(n,)`` classes of one-hot rows; None of any others."""
    if rows is None or not len(rows):
        return None
    if not (np.isin(rows, (0, 1)).all() and (rows.sum(axis=1) == 1).all()):
        return None
    return rows.argmax(axis=1)
