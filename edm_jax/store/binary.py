"""Model files as read-only memory: mapped, not loaded, so a reader can stay lazy."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from typing import BinaryIO

from edm_jax.store.errors import WeightsError


def map_file(path: str | os.PathLike[str]) -> memoryview:
    """Map a file read-only.  It must not be cut while the map is in use.

    Returns:
      A memoryview of bytes.  Pages are read when touched, and arrays made from slices of
      it cost no memory of their own.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: it is empty or not a regular file.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise WeightsError(f"{path} is empty; copy or download it again")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading bytes; a pipe or device would block or never end."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise WeightsError(f"{path} is a directory, expected a model file")
    if not stat.S_ISREG(mode):
        raise WeightsError(f"{path} is not a regular file")
    return open(path, "rb")


def sha256(*parts: memoryview | bytes) -> str:
    """SHA-256 of the concatenated parts, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
