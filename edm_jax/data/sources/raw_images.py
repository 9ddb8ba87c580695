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

from edm_jax.data.sources import cifar, image_files
from edm_jax.data.sources.decode import is_image_name, open_image
from edm_jax.data.sources.stored_zip import ZipReader

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
      notes: remarks on the whole, such as why there are no labels.
    """

    def __init__(
        self,
        names: list[str],
        labels: list[Label],
        load: Callable[[int], tuple[Image.Image, list[str]]],
        notes: tuple[str, ...] = (),
    ):
        self.names = names
        self.labels = labels
        self.load = load
        self.notes = notes

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """Changes when images are added, removed, renamed or relabelled."""
        content = json.dumps([self.names, self.labels]).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, digest_size=16).hexdigest()


def open_raw_images(source: str | os.PathLike) -> RawImages:
    """Recognise a source by its name.

    Args:
      source: a folder ending in "_lmdb" (LSUN), any other folder of images, a .zip
        archive of images, cifar-10-python.tar.gz, or train-images-idx3-ubyte.gz (MNIST,
        with the labels file beside it).

    Raises:
      ValueError: if it is none of them, damaged, or holds no images.
    """
    path = os.fspath(source)
    base = os.path.basename(path.rstrip("/"))
    if not os.path.exists(path):
        raise ValueError(f"source {path}: no such file or folder; check the path")
    if os.path.isdir(path):
        images = _open_lmdb(path) if base.endswith("_lmdb") else _open_files(path)
    elif base == cifar.ARCHIVE_NAME:
        images = _from_arrays("CIFAR-10 training image", *cifar.read_cifar10(path))
    elif base == MNIST_IMAGES:
        images = _from_arrays("MNIST training image", *_read_mnist(path))
    elif base.lower().endswith(".zip"):
        images = _open_files(path)
    else:
        raise ValueError(
            f"source {path} is not recognised; expected a folder, a folder ending in _lmdb, a "
            f".zip archive, {cifar.ARCHIVE_NAME} or {MNIST_IMAGES}"
        )
    if not len(images):
        raise ValueError(f"source {path}: no images in it; check the path")
    return images


def _open_files(path: str) -> RawImages:
    store = image_files.open_store(path)
    numbers = [i for i, name in enumerate(store.names) if is_image_name(name)]
    names = [store.names[i] for i in numbers]
    labels: list[Label] = [None] * len(names)
    notes = []
    metadata = image_files.read_metadata(store)
    if metadata is not None:
        labels = [metadata.get(name) for name in names]
        missing = [n for n, label in zip(names, labels, strict=True) if label is None]
        if missing:
            notes.append(
                f"{len(missing)} of {len(names)} images have no label in "
                f"{image_files.METADATA}, for example {missing[0]!r}: labels are written only "
                "if every image has one"
            )
        else:  # the same rules as for training, now rather than then
            image_files.labels_from_metadata(metadata, names, f"{path}: {image_files.METADATA}")
    elif image_files.METADATA not in store.names and not isinstance(store, ZipReader):
        found = image_files.labels_from_folders(names)
        if found is not None:
            labels = found[0].tolist()
        elif any("/" in name for name in names):
            notes.append("no labels: images do not all lie in two or more class folders")

    def load(index: int) -> tuple[Image.Image, list[str]]:
        try:
            return open_image(store.read(numbers[index]), names[index])
        except OSError as error:
            raise ValueError(f"{names[index]}: cannot be read ({error})") from error

    return RawImages(names, labels, load, tuple(notes))


def _open_lmdb(path: str) -> RawImages:
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
        return open_image(data, names[index])

    return RawImages(names, [None] * len(names), load)


def _from_arrays(what: str, images: np.ndarray, labels: np.ndarray) -> RawImages:
    from PIL import Image

    def load(index: int) -> tuple[Image.Image, list[str]]:
        return Image.fromarray(images[index]), []

    names = [f"{what} {i}" for i in range(len(images))]
    return RawImages(names, labels.tolist(), load)


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
