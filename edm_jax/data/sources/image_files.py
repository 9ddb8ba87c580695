"""Images in a folder or in a zip archive, with labels from dataset.json or folder names.

The EDM format is a folder or an uncompressed archive of ``00000/img00000000.png`` and so
on, all of one size, with a dataset.json (see `labels`); any other folder or archive of images
of one size is read alike.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np

from edm_jax.data.sources import base as source_lib
from edm_jax.data.sources import labels as labels_lib
from edm_jax.data.sources.base import ImageSource
from edm_jax.data.sources.class_folders import in_numbered_folders, labels_from_folders
from edm_jax.data.sources.decode import decode_image, is_coloured, size_of
from edm_jax.data.sources.labels import METADATA
from edm_jax.data.sources.names import shown
from edm_jax.data.sources.stores import find_images, open_store


class ImageFiles:
    """All images of a folder or zip archive, in the order of their sorted names.

    Grey images become colour where there is colour; a set of grey ones stays grey.

    Labels come from dataset.json; without that file, classes are the top-level folders.  What
    other programs leave in folders (hidden files, thumbnails) is no image.

    Args:
      path: folder or .zip file.
      use_labels: whether items carry labels.
      resolution: what width and height must be; None takes the first image's.

    Attributes:
      notes: remarks on the whole, such as images that were left out.

    Raises:
      ValueError: if there are no images, no labels with ``use_labels``, or the first
        image has a side of one pixel, or is not ``resolution`` pixels wide and high.  Other
        images are checked when they are read, or by `first_odd`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        use_labels: bool = False,
        resolution: int | None = None,
    ):
        store = open_store(path)
        self._store = store
        found = find_images(store)
        self._numbers, self.notes = found.numbers, found.notes
        if not len(self._numbers):
            hidden = "".join(f" ({note})" for note in self.notes)
            raise ValueError(
                f"{shown(store.path)}: no images among {len(store.names)} files{hidden}; expected "
                "names such as 00000/img00000000.png"
            )
        self._labels, self.num_classes, self.label_names = None, 0, None
        if use_labels:
            self._labels, self.num_classes, self.label_names = self._find_labels(found.names)
            self._labels.flags.writeable = False  # items are views
        self.image_shape = decode_image(store.read(self._numbers[0]), self.name(0)).shape
        if min(self.image_shape[:2]) < 2:
            raise ValueError(
                f"{self.name(0)} is {self.image_shape[1]}x{self.image_shape[0]} pixels, too few "
                "for a network; expected at least 2x2"
            )
        if resolution is not None and self.image_shape[:2] != (resolution, resolution):
            raise ValueError(
                f"{self.name(0)} is {self.image_shape[1]}x{self.image_shape[0]} pixels, expected "
                f"{resolution}x{resolution}; convert the data set with --mode=dataset "
                f"--resolution={resolution}x{resolution}"
            )
        if self.image_shape[2] == 1 and (coloured := self._first_coloured()) is not None:
            self.image_shape = (*self.image_shape[:2], 3)
            self.notes += (f"grey images are made colour, as {self.name(coloured)} has colour",)

    def _first_coloured(self) -> int | None:
        """The first image with colour, from the headers; None if all are grey."""
        for index, number in enumerate(self._numbers):
            try:
                if is_coloured(self._store.read(number), self.name(index)):
                    return index
            except (OSError, ValueError):  # told when it is read
                continue
        return None

    def first_odd(self, count: int | None = None) -> str | None:
        """What is wrong with the first image of another size than image 0; None if none is.

        Args:
          count: how many images are looked at, at equal distances; None for all.  Headers
            are read, nothing is decoded.
        """
        count = len(self) if count is None else min(count, len(self))
        for index in np.linspace(0, len(self) - 1, count).round().astype(int).tolist():
            try:
                size = size_of(self._store.read(self._numbers[index]))
            except (OSError, ValueError):  # told when it is read
                continue
            if size is not None and size != self.image_shape[:2]:
                return self._unlike_the_first(index, (*size, self.image_shape[2]))
        return None

    def _unlike_the_first(self, index: int, shape: tuple[int, ...]) -> str:
        height, width = self.image_shape[:2]
        return (
            f"{self.name(index)} has shape {shape}, expected {self.image_shape} like the first "
            f"image; convert the data set with --mode=dataset --resolution={width}x{height} "
            "--transform=center-crop"
        )

    def _find_labels(self, names: list[str]) -> tuple[np.ndarray, int, tuple[str, ...] | None]:
        path = shown(self._store.path)
        cure = "set use_labels=False (config.data.conditional=False)"
        metadata = labels_lib.read_metadata(self._store, names)
        if metadata is not None and metadata.decides:
            if metadata.labels is None:
                raise ValueError(f"{metadata.where} holds no labels; {cure}")
            found = labels_lib.labels_from_metadata(metadata, names)
            extra = sorted(metadata.labels.keys() - set(names))
            if extra:
                warnings.warn(
                    f"{metadata.where}: {len(extra)} labels belong to no image, for example "
                    f"{shown(extra[0])!r}",
                    stacklevel=4,
                )
            return found
        folders = labels_from_folders(names, metadata)
        if isinstance(folders, str):
            raise ValueError(f"{path}: no labels: {folders}, or {cure}")
        if folders is None:
            missing = f"no {METADATA}" if metadata is None else f'no key "labels" in {METADATA}'
            running = " (folders of running numbers are none)"
            raise ValueError(
                f"{path}: no labels: there is {missing}, and no two or more class folders"
                f"{running if in_numbered_folders(names) else ''}; add them, or {cure}"
            )
        return folders.labels, len(folders.names), folders.names

    def name(self, index: int) -> str:
        """Where image ``index`` comes from, for messages."""
        return shown(f"{self._store.path}: {self._store.names[self._numbers[index]]}")

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, ``(N,)`` int32 or ``(N, K)`` float32; None if items carry none."""
        return self._labels

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `ImageSource`.  Raises ValueError for an image that is damaged or of another
        shape than the first."""
        index = source_lib.check_index(index, len(self))
        pixels = decode_image(self._store.read(self._numbers[index]), self.name(index))
        if pixels.shape[2] == 1 and self.image_shape[2] == 3:
            pixels = np.repeat(pixels, 3, axis=2)
        if pixels.shape != self.image_shape:
            raise ValueError(self._unlike_the_first(index, pixels.shape))
        item = {"image": pixels}
        if self._labels is not None:
            item["label"] = self._labels[index]
        return item

    def __repr__(self) -> str:
        return (
            f"ImageFiles({self._store.path!r}: {len(self)} images {self.image_shape}, "
            f"{self.num_classes} classes)"
        )


def open_images(
    path: str | os.PathLike,
    *,
    resolution: int | None = None,
    max_size: int | None = None,
    use_labels: bool = False,
    mirror: bool = False,
    seed: int = 0,
) -> ImageSource:
    """A data set of image files, as the published training program would read it.

    Args:
      path: folder or .zip file.
      resolution: what width and height must be.
      max_size: how many images to keep, chosen by ``seed``; the label dimension stays
        that of all.
      use_labels: whether items carry labels; they must exist.
      mirror: append the left-right mirror images, which doubles the length.
      seed: chooses the subset.

    Raises:
      ValueError: as `ImageFiles`.
    """
    images: ImageSource = ImageFiles(path, use_labels=use_labels, resolution=resolution)
    if max_size is not None and max_size < len(images):
        kept = source_lib.max_size_indices(len(images), max_size, seed)
        images = source_lib.Subset(images, kept)
    return source_lib.Mirrored(images) if mirror else images


def open_split(
    path: str, split: str = "train", *, use_labels: bool = True, **options: Any
) -> ImageSource:
    """Image files as `registry.SOURCES` opens them.

    Args:
      path: folder or .zip file.
      split: there is ``train`` alone.
      use_labels: whether items carry labels; they must exist.
      **options: of `open_images`.

    Raises:
      ValueError: as `open_images`, or without a path.
      NoTestSplit: for ``test``.
    """
    if not path:
        raise ValueError("path is missing: the folder or .zip file of images")
    if split != "train":
        raise source_lib.NoTestSplit("a folder of images has no test split")
    return open_images(path, use_labels=use_labels, **options)
