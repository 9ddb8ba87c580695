"""What every data set is to the input pipeline: random access to uint8 images.

A source is picklable and cheap to open, because it travels to worker processes, and
may be read from several threads at once.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


class NoTestSplit(LookupError):
    """A data set that has no images apart from those trained on."""


@runtime_checkable
class ImageSource(Protocol):
    """Random access to the images of a data set.

    Attributes:
      image_shape: ``(H, W, C)`` of every image.
      num_classes: dimension of the labels; 0 means there are none.
      label_names: what the ``num_classes`` labels are called, or None if not known.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    label_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``{"image": (H, W, C) uint8, "label": int32 scalar or (num_classes,) float32}``.

        There is no "label" when ``num_classes == 0``.  Raises IndexError unless
        ``0 <= index < len``.
        """
        ...


def check_index(index: int, length: int) -> int:
    """``index`` as an int; IndexError unless 0 <= index < length."""
    index = operator.index(index)
    if not 0 <= index < length:
        raise IndexError(f"index {index} is outside a data set of {length} images")
    return index


def check_labels(
    labels: np.typing.ArrayLike, count: int, num_classes: int | None = None, *, where: str = ""
) -> tuple[np.ndarray, int]:
    """Bring labels into one of the two accepted forms.

    Args:
      labels: ``(N,)`` non-negative integers, or ``(N, K)`` finite floats.
      count: N.
      num_classes: dimension of the labels.  None: largest integer + 1, or K.
      where: what messages begin with.

    Returns:
      ``(N,)`` int32 or ``(N, K)`` float32, and the dimension of the labels.

    Raises:
      ValueError: if the shape, type or range is another one.
    """
    labels = np.asarray(labels)
    where = where and f"{where}: "
    if labels.shape[:1] != (count,) or labels.ndim not in (1, 2):
        raise ValueError(
            f"{where}labels must have shape ({count},) for classes or ({count}, K) for "
            f"vectors, got {labels.shape}; give one label per image"
        )
    if labels.ndim == 2:
        if labels.dtype.kind not in "fiu" or labels.shape[1] == 0:
            raise ValueError(
                f"{where}label vectors must be numbers, at least one per image, got "
                f"{labels.dtype} of shape {labels.shape}"
            )
        labels = labels.astype(np.float32)
        if not np.isfinite(labels).all():
            bad = int(np.argwhere(~np.isfinite(labels))[0, 0])
            raise ValueError(f"{where}label vector {bad} is not finite: {labels[bad]}")
        if num_classes not in (None, labels.shape[1]):
            raise ValueError(
                f"{where}label vectors have {labels.shape[1]} entries, not num_classes = "
                f"{num_classes}; leave num_classes out"
            )
        return labels, labels.shape[1]
    if labels.dtype.kind not in "iu":
        raise ValueError(
            f"{where}class labels must be integers, got {labels.dtype}; give float labels "
            f"as vectors of shape ({count}, K)"
        )
    low, high = (int(labels.min()), int(labels.max())) if count else (0, -1)
    limit = np.iinfo(np.int32).max if num_classes is None else num_classes
    if low < 0 or high >= limit:
        raise ValueError(
            f"{where}class labels must lie in [0, {limit}), got {low} to {high}; "
            "renumber them or raise num_classes"
        )
    return labels.astype(np.int32), high + 1 if num_classes is None else num_classes


def present_classes(source: ImageSource) -> tuple[int, ...] | None:
    """The classes that have an image, ascending; None where that is not known without reading.

    Label vectors of which each has one 1 and else zeros count as classes; of any others there
    is no such thing, and the answer is None.
    """
    labels = getattr(source, "labels", None)
    if labels is None or not len(labels):
        return None
    classes = class_indices(labels)
    return None if classes is None else tuple(np.unique(classes).tolist())


def class_indices(labels: np.ndarray) -> np.ndarray | None:
    """``(N,)`` class indices of ``(N,)`` labels or ``(N, K)`` one-hot rows; None of other rows."""
    labels = np.asarray(labels)
    if labels.ndim == 1:
        return labels
    one_hot = ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()
    return labels.argmax(axis=1).astype(np.int32) if one_hot else None


# Numbers of label vectors that a model keeps: enough to draw from, few beside its weights.
_KEPT_VECTORS, _KEPT_NUMBERS = 64, 4096


def example_vectors(source: ImageSource) -> list[list[float]] | None:
    """Some of the labels, all different, where they are vectors that are no classes; else None."""
    labels = getattr(source, "labels", None)
    if labels is None or not len(labels) or class_indices(labels) is not None:
        return None
    count = max(1, min(_KEPT_VECTORS, _KEPT_NUMBERS // labels.shape[1]))
    spread = np.linspace(0, len(labels) - 1, min(len(labels), 16 * count)).astype(int)
    found = dict.fromkeys(tuple(row) for row in np.asarray(labels)[spread].tolist())
    return [list(row) for row in list(found)[:: max(1, len(found) // count)][:count]]


def check_label_names(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """``names`` as a tuple; ValueError unless there is one per class."""
    if names is None:
        return None
    if len(names) != num_classes:
        raise ValueError(f"label_names must name {num_classes} classes, got {len(names)} names")
    return tuple(str(name) for name in names)


class ArraySource:
    """Images that are already in memory.

    Pickling copies them: for many worker processes read from files instead.

    Args:
      images: ``(N, H, W, C)`` uint8, C = 1 or 3; kept, not copied.
      labels: None, ``(N,)`` integers or ``(N, K)`` floats.
      label_names: one name per class.
      num_classes: number of classes if larger than the largest label + 1.

    Raises:
      ValueError: for any other type, shape or range.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.typing.ArrayLike | None = None,
        label_names: Sequence[str] | None = None,
        *,
        num_classes: int | None = None,
    ):
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise ValueError(
                f"images must be uint8 in [0, 255], got {images.dtype}; training scales "
                "them to [-1, 1] by itself"
            )
        if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
            raise ValueError(
                f"images must have shape (N, H, W, C) with C = 1 or 3 and nothing empty, got "
                f"{images.shape}"
            )
        # Items are views: written to, they would change the data set.
        self._images = images.view()
        self._images.flags.writeable = False
        self.image_shape = tuple(images.shape[1:])
        self._labels, self.num_classes = None, 0
        if labels is not None:
            self._labels, self.num_classes = check_labels(labels, len(images), num_classes)
        elif num_classes:
            raise ValueError(f"num_classes = {num_classes} needs labels, got None")
        self.label_names = check_label_names(label_names, self.num_classes)

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, ``(N,)`` int32 or ``(N, K)`` float32; None if there are none."""
        return self._labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = check_index(index, len(self))
        item = {"image": self._images[index]}
        if self._labels is not None:
            item["label"] = self._labels[index]
        return item

    def __repr__(self) -> str:
        return f"ArraySource({len(self)} images {self.image_shape}, {self.num_classes} classes)"


def max_size_indices(length: int, max_size: int, seed: int = 0) -> np.ndarray:
    """The images that the published program keeps of a larger data set, ascending.

    It shuffles ``arange(length)`` with ``RandomState(seed mod 2^31)`` and keeps the
    first ``max_size``.

    Returns:
      ``(min(length, max_size),)`` int64.
    """
    if max_size < 1:
        raise ValueError(f"max_size must be at least 1, got {max_size}")
    indices = np.arange(length, dtype=np.int64)
    if max_size < length:
        # The legacy generator on purpose: its stream is frozen, so subsets are too.
        np.random.RandomState(seed % 2**31).shuffle(indices)
        indices = np.sort(indices[:max_size])
    return indices


class _Wrapper:
    """A source with the images of another one, in another order or number."""

    def __init__(self, source: ImageSource):
        self.source = source
        self.image_shape = source.image_shape
        self.num_classes = source.num_classes
        self.label_names = source.label_names
        self.notes = tuple(getattr(source, "notes", ()))
        for name in ("num_values", "alphabet"):  # of tokens
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))

    def first_odd(self, count: int | None = None) -> str | None:
        """What is wrong with an image of the whole that is unlike the others, if that is known."""
        look = getattr(self.source, "first_odd", None)
        return None if look is None else look(count)


class Subset(_Wrapper):
    """Some images of a source; the label dimension stays that of the whole.

    Args:
      source: the whole.
      indices: which images, in this order.
    """

    def __init__(self, source: ImageSource, indices: np.typing.ArrayLike):
        super().__init__(source)
        self.indices = np.asarray(indices, dtype=np.int64)
        if self.indices.ndim != 1 or not self.indices.size:
            raise ValueError(f"indices must be a list of images, got shape {self.indices.shape}")
        if self.indices.min() < 0 or self.indices.max() >= len(source):
            raise ValueError(
                f"indices must lie in [0, {len(source)}), got {self.indices.min()} to "
                f"{self.indices.max()}"
            )

    @property
    def labels(self) -> np.ndarray | None:
        """All labels where the whole has them at hand."""
        labels = getattr(self.source, "labels", None)
        return None if labels is None else labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[check_index(index, len(self))])]


class Mirrored(_Wrapper):
    """A source followed by its own left-right mirror images: twice the length."""

    @property
    def labels(self) -> np.ndarray | None:
        """All labels where the whole has them at hand."""
        labels = getattr(self.source, "labels", None)
        return None if labels is None else np.concatenate([labels, labels])

    def __len__(self) -> int:
        return 2 * len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        length = len(self.source)
        index = check_index(index, 2 * length)
        item = self.source[index % length]
        if index >= length:
            item = item | {"image": np.ascontiguousarray(item["image"][:, ::-1])}
        return item


class Unlabelled(_Wrapper):
    """A source with its labels left out."""

    def __init__(self, source: ImageSource):
        super().__init__(source)
        self.num_classes, self.label_names = 0, None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.source[index]["image"]}


def stack_source(source: ImageSource, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All (or the first ``limit``) images and labels of a source.

    Returns:
      ``(n, H, W, C)`` images, and ``(n,)`` or ``(n, K)`` labels, ``(0,)`` if it has none.
    """
    count = len(source) if limit is None else min(limit, len(source))
    examples = [source[i] for i in range(count)]
    images = np.stack([e["image"] for e in examples])
    labels = np.stack([e["label"] for e in examples]) if source.num_classes else np.zeros(0)
    return images, labels
