"""What data sets are converted from: folders, archives and original downloads.

Each is a list of names with the label and the undecoded pixels of every one, so that
any image can be loaded by any thread.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edm_jax.data.sources import cifar
from edm_jax.data.sources import labels as labels_lib
from edm_jax.data.sources.class_folders import in_numbered_folders, labels_from_folders
from edm_jax.data.sources.decode import Colour, is_coloured, open_image
from edm_jax.data.sources.names import shown
from edm_jax.data.sources.stores import WEIGHTS_ENDINGS, FileStore, find_images, open_store

if TYPE_CHECKING:
    from PIL import Image

MNIST_IMAGES = "train-images-idx3-ubyte.gz"
MNIST_LABELS = "train-labels-idx1-ubyte.gz"

Label = int | list[float] | None


class RawImages:
    """Images to be converted.

    Args:
      names: of the images, for messages.
      labels: one per image, as dataset.json writes them; None where there is none.
      load: the image of a number, mode L or RGB, and notes on what decoding lost.  Called
        from several threads.  Raises ValueError for an image that cannot be used.
      notes: remarks on the whole, such as what was left out.
      label_names: of the classes, if known.
      coloured: whether the image of a number has colour; None: those of mode RGB.
      where: what messages on labels begin with.
    """

    def __init__(
        self,
        names: list[str],
        labels: list[Label],
        load: Callable[[int], tuple[Image.Image, list[str]]],
        notes: tuple[str, ...] = (),
        *,
        label_names: tuple[str, ...] | None = None,
        coloured: Callable[[int], bool] | None = None,
        where: str = "",
    ):
        self.names = names
        self.labels = labels
        self.load = load
        self.notes = notes
        self.label_names = label_names
        self.coloured = coloured or (lambda index: load(index)[0].mode == "RGB")
        self.where = where

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """Changes when images are added, removed, renamed or relabelled."""
        content = json.dumps([self.names, self.labels, self.label_names])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def check_labelled(self, count: int) -> None:
        """Raise ValueError if some of the first images have labels and others have not."""
        without = [i for i in range(count) if self.labels[i] is None]
        if without and any(label is not None for label in self.labels):
            raise ValueError(
                f"{self.where}: {len(without)} of {count} images have no label, for example "
                f"{self.names[without[0]]!r}; label every image, or convert with --unlabelled"
            )


def open_raw_images(
    source: str | os.PathLike, *, background: Colour | None = None, use_labels: bool = True
) -> RawImages:
    """Recognise a source by its name.

    Args:
      source: a folder ending in "_lmdb" (LSUN), any other folder of images, a .zip
        archive of images, cifar-10-python.tar.gz, or train-images-idx3-ubyte.gz (MNIST,
        with the labels file beside it).
      background: what transparent images are laid on; None refuses them.
      use_labels: False does not look at labels.

    Raises:
      ValueError: if it is none of them, damaged, or holds no images, or labels that cannot
        be used.
    """
    path = os.path.expanduser(os.fspath(source))
    base = os.path.basename(path.rstrip("/"))
    if not os.path.exists(path):
        raise ValueError(f"source {shown(path)}: no such file or folder; check the path")
    if os.path.isdir(path):
        lsun = base.endswith("_lmdb")
        images = _open_lmdb(path, background) if lsun else _open_files(path, background, use_labels)
    elif base == cifar.ARCHIVE_NAME:
        images = _from_arrays("CIFAR-10 training image", *cifar.read_cifar10(path), cifar.CLASSES)
    elif base == MNIST_IMAGES:
        images = _from_arrays("MNIST training image", *_read_mnist(path))
    elif base.lower().endswith((".zip", *WEIGHTS_ENDINGS)):  # the latter are refused there
        images = _open_files(path, background, use_labels)
    else:
        raise ValueError(
            f"source {shown(path)} is not recognised; expected a folder, a folder ending in _lmdb, "
            f"a .zip archive, {cifar.ARCHIVE_NAME} or {MNIST_IMAGES}"
        )
    if not len(images):
        notes = "".join(f" ({note})" for note in images.notes)
        raise ValueError(f"source {shown(path)}: no images in it{notes}; check the path")
    if not use_labels:
        images.labels, images.label_names = [None] * len(images), None
    return images


def _open_files(path: str, background: Colour | None, use_labels: bool) -> RawImages:
    store = open_store(path)
    found = find_images(store)
    names = [shown(name) for name in found.names]
    numbers = found.numbers.tolist()

    def load(index: int) -> tuple[Image.Image, list[str]]:
        try:
            return open_image(store.read(numbers[index]), names[index], background)
        except OSError as error:
            raise ValueError(f"{names[index]}: cannot be read ({error})") from error

    def coloured(index: int) -> bool:
        try:
            return is_coloured(store.read(numbers[index]), names[index], background)
        except (OSError, ValueError):  # told when it is converted
            return False

    labels, label_names, notes = _find_labels(store, found.names if use_labels else [])
    if not use_labels:
        labels = [None] * len(names)
    return RawImages(
        names,
        labels,
        load,
        found.notes + notes,
        label_names=label_names,
        coloured=coloured,
        where=f"source {shown(path)}",
    )


def _find_labels(
    store: FileStore, names: list[str]
) -> tuple[list[Label], tuple[str, ...] | None, tuple[str, ...]]:
    """Labels, names of the classes, and remarks; by the rules for training."""
    none: list[Label] = [None] * len(names)
    if not names:
        return none, None, ()
    metadata = labels_lib.read_metadata(store, names)
    if metadata is not None and metadata.decides:
        if not metadata.labels:  # null, or an empty list
            return none, None, (f"no labels: {metadata.where} says that there are none",)
        known = [name for name in names if name in metadata.labels]
        if not known:
            raise ValueError(
                f"{metadata.where} labels {next(iter(metadata.labels))!r} and others, but none of "
                f"the images, such as {shown(names[0])!r}; repair it, or convert with --unlabelled"
            )
        _, _, label_names = labels_lib.labels_from_metadata(metadata, known)
        extra = len(metadata.labels.keys() - set(known))
        notes = (f"{extra} labels of {metadata.where} belong to no image",) if extra else ()
        labels = [labels_lib.plain_label(metadata.labels.get(name)) for name in names]
        return labels, label_names, notes
    folders = labels_from_folders(names, metadata)
    if isinstance(folders, str):
        raise ValueError(f"source {shown(store.path)}: {folders}, or convert with --unlabelled")
    if folders is not None:
        return folders.labels.tolist(), folders.names, ()
    missing = "no dataset.json" if metadata is None else f'no key "labels" in {metadata.where}'
    numbered = in_numbered_folders(names)
    text = f"no labels: {missing}, and " + (
        "folders are those of running numbers (as in the EDM format), not classes"
        if numbered
        else "no two or more class folders"
    )
    return none, None, (text,) if metadata or any("/" in name for name in names) else ()


def _open_lmdb(path: str, background: Colour | None) -> RawImages:
    try:
        import lmdb
    except ImportError as error:
        raise ValueError(
            f"source {path}: reading LSUN needs the lmdb package; run pip install lmdb"
        ) from error
    try:
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False)
        with environment.begin() as transaction:
            keys = [bytes(key) for key in transaction.cursor().iternext(values=False)]
    except lmdb.Error as error:
        raise ValueError(f"source {path}: not an LMDB database ({error}); check it") from error
    names = [key.decode("utf-8", "backslashreplace") for key in keys]

    def load(index: int) -> tuple[Image.Image, list[str]]:
        with environment.begin() as transaction:
            data = transaction.get(keys[index])
        return open_image(data, names[index], background)

    return RawImages(names, [None] * len(names), load)


def _from_arrays(
    what: str,
    images: np.ndarray,
    labels: np.ndarray,
    label_names: tuple[str, ...] | None = None,
) -> RawImages:
    from PIL import Image

    def load(index: int) -> tuple[Image.Image, list[str]]:
        return Image.fromarray(images[index]), []

    names = [f"{what} {i}" for i in range(len(images))]
    return RawImages(names, labels.tolist(), load, label_names=label_names)


def _read_mnist(path: str) -> tuple[np.ndarray, np.ndarray]:
    """``(N, 32, 32)`` uint8, padded with zeros from 28x28, and ``(N,)`` labels."""
    labels_path = os.path.join(os.path.dirname(path), MNIST_LABELS)
    if not os.path.exists(labels_path):
        raise ValueError(f"source {path}: the labels file {MNIST_LABELS} must lie beside it")
    images = _read_idx(path, 3)
    labels = _read_idx(labels_path, 1)
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise ValueError(
            f"source {path}: expected images of 28x28 and as many labels, got {images.shape} and "
            f"{labels.shape}; download them again"
        )
    return np.pad(images, ((0, 0), (2, 2), (2, 2))), labels.astype(np.int64)


def _read_idx(path: str, dims: int) -> np.ndarray:
    """An array of bytes in the IDX format: magic number 0x0000 08 dims, sizes, values."""
    try:
        with gzip.open(path, "rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged ({error}); download it again") from error
    if len(data) < 4 + 4 * dims or data[:4] != bytes([0, 0, 8, dims]):
        raise ValueError(f"{path}: not an IDX file of {dims} dimensions; download it again")
    shape = struct.unpack_from(f">{dims}I", data, 4)
    start = 4 + 4 * dims
    if len(data) != start + int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{path}: {len(data) - start} values for shape {shape}; download it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
