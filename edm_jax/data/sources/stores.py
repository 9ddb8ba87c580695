"""Files by number, in a folder or in a zip archive, and which of them are images."""

from __future__ import annotations

import dataclasses
import os
from typing import Protocol

import numpy as np

from edm_jax.data.sources.decode import has_image_extension, has_unread_extension
from edm_jax.data.sources.names import clean, is_left_out, shown
from edm_jax.data.sources.stored_zip import ZipReader
from edm_jax.pytree import short_repr

# How files of weights end; those of PyTorch are zip archives inside.
WEIGHTS_ENDINGS = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".msgpack")


class FileStore(Protocol):
    """Files by number, whatever holds them."""

    path: str
    names: list[str]  # relative, forward slashes, sorted as strings

    def read(self, number: int) -> bytes: ...


class FolderStore:
    """The files below a folder, links followed.

    Args:
      path: of the folder.

    Attributes:
      broken: names of links that lead nowhere, which are no files.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self.broken: list[str] = []
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
                elif entry.is_symlink():
                    self.broken.append(below + entry.name)
        return names

    def read(self, number: int) -> bytes:
        """The content of file ``names[number]``."""
        with open(os.path.join(self.path, self.names[number]), "rb", buffering=0) as file:
            return file.read()


def open_store(path: str | os.PathLike) -> FileStore:
    """A folder or a zip archive as a `FileStore`; ``~`` is the home folder.

    Raises:
      ValueError: if it is neither, or holds weights.
    """
    path = os.path.expanduser(os.fspath(path))
    if not os.path.exists(path):
        raise ValueError(f"{shown(path)}: no such file or folder; check the path of the data set")
    if os.path.isdir(path):
        if os.path.isdir(os.path.join(path, "checkpoints")) and os.path.isfile(
            os.path.join(path, "config.json")
        ):
            raise ValueError(
                f"{shown(path)} is the directory of a run, not a data set: its pictures are "
                "samples; give the folder or .zip file of the images"
            )
        return FolderStore(path)
    if path.lower().endswith(WEIGHTS_ENDINGS):
        raise ValueError(_is_weights(path))
    if not path.lower().endswith(".zip"):
        raise ValueError(
            f"{shown(path)}: expected a folder of images or a .zip archive; convert anything else "
            "with --mode=dataset first"
        )
    store = ZipReader(path)
    # What PyTorch writes, whatever it is called.
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in store.names):
        raise ValueError(_is_weights(path))
    return store


def _is_weights(path: str) -> str:
    return (
        f"{shown(path)} is a file of weights, not of images: weights are read by --mode=import or "
        "edm_jax.load; give the folder or .zip file of the images"
    )


@short_repr
@dataclasses.dataclass(frozen=True)
class FoundImages:
    """The images among the files of a store.

    Attributes:
      numbers: ``(N,)`` their numbers in the store, in the order of their names.
      names: of them, as `names.clean` spells them.
      notes: what was left out and may not have been meant to be.
    """

    numbers: np.ndarray
    names: list[str]
    notes: tuple[str, ...]


def find_images(store: FileStore) -> FoundImages:
    """The files of a store whose names are those of images, without what tools left there."""
    numbers, names, of_tools, unread = [], [], [], []
    for number, name in enumerate(store.names):
        spelt = clean(name)
        if has_image_extension(spelt):
            if is_left_out(spelt):
                of_tools.append(spelt)
            else:
                numbers.append(number)
                names.append(spelt)
        elif has_unread_extension(spelt) and not is_left_out(spelt):
            unread.append(spelt)
    notes = []
    if of_tools:
        notes.append(
            f"{len(of_tools)} image(s) left out, in hidden folders or those of other programs, "
            f"for example {shown(of_tools[0])}"
        )
    broken = sorted(n for n in getattr(store, "broken", ()) if has_image_extension(clean(n)))
    if broken:
        notes.append(
            f"{len(broken)} link(s) to images lead nowhere, for example {shown(broken[0])}"
        )
    if unread:
        notes.append(
            f"{len(unread)} file(s) left out, of a kind that is not read, for example "
            f"{shown(unread[0])}"
        )
    return FoundImages(np.array(numbers, np.int64), names, tuple(notes))
