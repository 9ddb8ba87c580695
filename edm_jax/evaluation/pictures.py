"""Pictures made elsewhere: a folder, a zip archive, or one ``.npz`` of uint8 images."""

from __future__ import annotations

import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from edm_jax.arguments import user_path
from edm_jax.data.sources.base import ArraySource, ImageSource
from edm_jax.data.sources.image_files import ImageFiles
from edm_jax.data.sources.labels import read_metadata
from edm_jax.data.sources.stores import find_images, open_store

# Headers that are read before the pictures are: about a second.
LOOKED_AT = 10_000


def open_pictures(path: str | os.PathLike[str]) -> ImageSource:
    """The pictures of a folder, ``.zip`` or ``.npz``, with their labels where they have any.

    An ``.npz`` holds one array of images, ``(n, H, W, C)`` uint8, and perhaps one of labels,
    ``(n,)`` integers (``arr_0`` and ``arr_1`` in the files of published programs).  Folders and
    archives have labels in a dataset.json.

    Raises:
      FileNotFoundError: there is nothing.
      ValueError: it cannot be read, has no images, or some of another size.
    """
    path = user_path("path", path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or directory: {path}")
    if path.suffix == ".npz":
        return _from_arrays(path)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise ValueError(f"{path}: pictures are a folder, a .zip or a .npz of uint8 images")
    store = open_store(path)
    told = read_metadata(store, find_images(store).names)
    images = ImageFiles(path, use_labels=told is not None and told.labels is not None)
    if odd := images.first_odd(LOOKED_AT):
        raise ValueError(odd)
    return images


def _from_arrays(path: pathlib.Path) -> ImageSource:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, LookupError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise ValueError(f"{path}: no readable .npz: {reason}; copy it again") from None
    images = {name: a for name, a in arrays.items() if a.ndim == 4 and a.dtype == np.uint8}
    if len(images) != 1:
        shown = ", ".join(f"{n} {a.dtype}{list(a.shape)}" for n, a in list(arrays.items())[:6])
        raise ValueError(
            f"{path}: expected one array of images, (n, H, W, C) uint8, got {shown or 'nothing'}"
        )
    (found,) = images.values()
    try:
        return ArraySource(found, _labels(arrays, len(found)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _labels(arrays: dict[str, Any], count: int) -> np.ndarray | None:
    for name in ("labels", "arr_1"):
        array = arrays.get(name)
        if array is not None and array.shape == (count,) and array.dtype.kind in "iu":
            return array
    return None
