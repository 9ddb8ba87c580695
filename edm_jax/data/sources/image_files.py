"""Images in a folder or in a zip archive, with labels from dataset.json or folder names.

The EDM format is a folder or an uncompressed archive of ``00000/img00000000.png`` and so
on, all of one size, with a dataset.json of ``{"labels": [[name, label], ...]}``; any
other folder of images of one size is read alike.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from edm_jax.data.sources import base as source_lib
from edm_jax.data.sources.base import ImageSource
from edm_jax.data.sources.decode import decode_image, is_image_name
from edm_jax.data.sources.stored_zip import ZipReader

METADATA = "dataset.json"
# Folders of the EDM format are ranges of numbers, not classes.
_NUMBERED = re.compile(r"\d{5}/img\d{8}\.png")


class FileStore(Protocol):
    """Files by number, whatever holds them."""

    path: str
    names: list[str]  # relative, forward slashes, sorted as strings

    def read(self, number: int) -> bytes: ...


class FolderStore:
    """The files below a folder, links followed.

    Args:
      path: of the folder.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self.names = sorted(self._walk("", ()))

    def _walk(self, below: str, parents: tuple[tuple[int, int], ...]) -> list[str]:
        status = os.stat(os.path.join(self.path, below))
        here = (status.st_dev, status.st_ino)
        if here in parents:  # a link to one of the folders it lies in
            return []
        names = []
        with os.scandir(os.path.join(self.path, below)) as entries:
            for entry in entries:
                if entry.is_dir():
                    names += self._walk(f"{below}{entry.name}/", (*parents, here))
                elif entry.is_file():
                    names.append(below + entry.name)
        return names

    def read(self, number: int) -> bytes:
        """The content of file ``names[number]``."""
        with open(os.path.join(self.path, self.names[number]), "rb", buffering=0) as file:
            return file.read()


def open_store(path: str | os.PathLike) -> FileStore:
    """A folder or a zip archive as a `FileStore`.

    Raises:
      ValueError: if it is neither.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return FolderStore(path)
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such file or folder; check the path of the data set")
    if not path.lower().endswith(".zip"):
        raise ValueError(
            f"{path}: expected a folder of images or a .zip archive; convert anything else "
            "with --mode=dataset first"
        )
    return ZipReader(path)


def read_metadata(store: FileStore) -> dict[str, Any] | None:
    """``{file name: label}`` from dataset.json; None if there is none or it says null.

    Raises:
      ValueError: if it is not of the form ``{"labels": [[name, label], ...]}``.
    """
    if METADATA not in store.names:
        return None
    where = f"{store.path}: {METADATA}"
    try:
        metadata = json.loads(store.read(store.names.index(METADATA)))
        pairs = metadata.get("labels")
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(
            f'{where} must be a JSON object such as {{"labels": null}} ({error}); repair it'
        ) from error
    if pairs is None:
        return None
    well_formed = isinstance(pairs, list) and all(
        isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in pairs
    )
    if not well_formed:
        bad = next((p for p in pairs if not isinstance(p, list) or len(p) != 2), pairs)
        raise ValueError(
            f'{where}: "labels" must be a list of [file name, label] pairs, got '
            f"{str(bad)[:80]}; repair it"
        )
    labels = {name.replace("\\", "/"): label for name, label in pairs}
    if len(labels) != len(pairs):
        seen: set[str] = set()
        twice = next(n for n, _ in pairs if n in seen or seen.add(n))
        raise ValueError(f"{where} labels {twice!r} twice; repair it")
    return labels


def labels_from_metadata(
    labels: dict[str, Any], names: Sequence[str], where: str
) -> tuple[np.ndarray, int]:
    """The labels of the images ``names``, in their order.

    Args:
      labels: ``{file name: label}``; a label is an integer or a list of numbers.
      names: of all images.
      where: what messages begin with.

    Returns:
      ``(N,)`` int32 or ``(N, K)`` float32, and the dimension of the labels.

    Raises:
      ValueError: if an image has no label, or labels differ in kind or length.
    """
    missing = [name for name in names if name not in labels]
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of {len(names)} images have no label, for example "
            f"{missing[0]!r}; label every image or none"
        )
    if len(labels) > len(names):
        extra = sorted(labels.keys() - set(names))
        warnings.warn(
            f"{where}: {len(extra)} labels belong to no image, for example {extra[0]!r}",
            stacklevel=2,
        )
    values = [labels[name] for name in names]
    kinds = {type(value) for value in values}
    if kinds == {int}:
        return source_lib.check_labels(np.array(values, np.int64), len(names), where=where)
    lengths = {len(value) for value in values} if kinds == {list} else set()
    numbers = kinds == {list} and all(type(x) in (int, float) for v in values for x in v)
    if len(lengths) != 1 or not numbers:
        first = next(n for n, v in zip(names, values, strict=True) if not _like(v, values[0]))
        raise ValueError(
            f"{where}: all labels must be integers, or all lists of numbers of one length, got "
            f"{str(labels[first])[:60]} for {first!r} beside {str(values[0])[:60]} for {names[0]!r}"
        )
    return source_lib.check_labels(np.array(values, np.float64), len(names), where=where)


def _like(value: Any, first: Any) -> bool:
    if type(value) is int:
        return type(first) is int
    return (
        isinstance(value, list)
        and isinstance(first, list)
        and len(value) == len(first) > 0
        and all(type(x) in (int, float) for x in value)
    )


def labels_from_folders(names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Class = number of the top-level folder, folders sorted by name.

    Returns:
      ``(N,)`` int32 and the folder names; None unless every image lies in a folder and
      there is more than one.
    """
    if not all("/" in name for name in names):
        return None
    folders = [name.split("/", 1)[0] for name in names]
    classes = sorted(set(folders))
    if len(classes) < 2:
        return None
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[f] for f in folders], np.int32), tuple(classes)


class ImageFiles:
    """All images of a folder or zip archive, in the order of their sorted names.

    Labels come from dataset.json.  A folder (not an archive) without that file has the
    classes of its top-level folders.

    Args:
      path: folder or .zip file.
      use_labels: whether items carry labels.
      resolution: what width and height must be; None takes the first image's.

    Raises:
      ValueError: if there are no images, no labels with ``use_labels``, or the first
        image is not ``resolution`` pixels wide and high.  Other images are checked when
        they are read.
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
        self._numbers = np.array(
            [i for i, name in enumerate(store.names) if is_image_name(name)], np.int64
        )
        if not len(self._numbers):
            raise ValueError(
                f"{store.path}: no images among {len(store.names)} files; expected names such "
                "as 00000/img00000000.png"
            )
        self._labels, self.num_classes, self.label_names = None, 0, None
        if use_labels:
            self._labels, self.num_classes, self.label_names = self._find_labels()
            self._labels.flags.writeable = False  # items are views
        self.image_shape = decode_image(store.read(self._numbers[0]), self.name(0)).shape
        if resolution is not None and self.image_shape[:2] != (resolution, resolution):
            raise ValueError(
                f"{self.name(0)} is {self.image_shape[1]}x{self.image_shape[0]} pixels, expected "
                f"{resolution}x{resolution}; convert the data set with --mode=dataset "
                f"--resolution={resolution}x{resolution}"
            )

    def _find_labels(self) -> tuple[np.ndarray, int, tuple[str, ...] | None]:
        names = [self._store.names[i] for i in self._numbers]
        path = self._store.path
        metadata = read_metadata(self._store)
        if metadata is not None:
            labels, dim = labels_from_metadata(metadata, names, f"{path}: {METADATA}")
            return labels, dim, None
        if METADATA in self._store.names:
            raise ValueError(
                f"{path}: {METADATA} holds no labels; set use_labels=False "
                "(config.data.conditional=False)"
            )
        found = None
        if not isinstance(self._store, ZipReader) and not _NUMBERED.fullmatch(names[0]):
            found = labels_from_folders(names)
        if found is None:
            raise ValueError(
                f"{path}: no labels: there is no {METADATA}, and class folders count only in a "
                "folder (no archive) of two or more of them that hold every image; add the "
                "file, or set use_labels=False (config.data.conditional=False)"
            )
        return found[0], len(found[1]), found[1]

    def name(self, index: int) -> str:
        """Where image ``index`` comes from, for messages."""
        return f"{self._store.path}: {self._store.names[self._numbers[index]]}"

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
        if pixels.shape != self.image_shape:
            raise ValueError(
                f"{self.name(index)} has shape {pixels.shape}, expected {self.image_shape} like "
                "the first image; convert the data set with --mode=dataset"
            )
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
