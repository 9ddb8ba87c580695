"""The files of feature networks, as far as they are alike: named tensors of known shapes."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from edm_jax.foreign.edm_snapshot import walk
from edm_jax.foreign.state_dict import to_float32
from edm_jax.foreign.torch_files import PersistentRecord, container_of, read_torch
from edm_jax.store.binary import map_file
from edm_jax.store.errors import WeightsError, show
from edm_jax.store.tensors import Parameter, Tensor, numel_of, shape_of

_NAMES_SHOWN = 4


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The named tensors of a PyTorch file: a flat state dictionary, or a pickled module.

    Nothing in the file is executed.

    Args:
      path: ``.pth``, ``.pt`` or ``.pkl``; the content decides.

    Returns:
      Tensors by name.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: it is of another kind, damaged, or asks for something refused.
    """
    data = map_file(path)
    if container_of(data) is None:
        raise WeightsError(
            f"not a file of PyTorch weights: it starts with {bytes(data[:16])!r}; is the "
            "download complete, and no web page?"
        )
    _, root = read_torch(data)
    if isinstance(root, PersistentRecord):
        tensors = walk(root)[0]
    elif isinstance(root, dict):
        entries = {k: v.tensor if isinstance(v, Parameter) else v for k, v in root.items()}
        tensors = {k: v for k, v in entries.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if len(tensors) != len(entries) or not tensors:
            raise WeightsError(
                f"a dictionary with {len(entries) - len(tensors)} entries that are no tensors, "
                f"expected names and tensors only; it has {shown_names(root)}"
            )
    else:
        raise WeightsError(f"the file holds {show(root)}, expected names and tensors")
    # Strides of 0 and shared storages let a small file announce large tensors.
    if numel_of(tensors.values()) > len(data):
        raise WeightsError(
            f"tensors of {numel_of(tensors.values())} numbers in a file of {len(data)} bytes"
        )
    return tensors


def shown_names(tensors: Mapping[object, object]) -> str:
    """The first names, for a message."""
    names = ", ".join(show(name) for name in list(tensors)[:_NAMES_SHOWN])
    more = len(tensors) - _NAMES_SHOWN
    return (names or "nothing") + (f" and {more} more" if more > 0 else "")


def checked_arrays(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], what: str
) -> dict[str, np.ndarray]:
    """float32 arrays of exactly the names and shapes that a network has.

    Args:
      tensors: of the file, under the published names.
      shapes: of the network.
      what: the network, for messages.

    Raises:
      WeightsError: something is missing, superfluous, of another shape, or not finite.
    """
    for name in tensors:
        if name not in shapes:
            raise WeightsError(f"tensor {show(name)} is no part of {what}")
    for name, shape in shapes.items():
        if name not in tensors:
            raise WeightsError(
                f"tensor {show(name)} of {what} is missing; the file has {shown_names(tensors)}"
            )
        if shape_of(tensors[name]) != shape:
            got = show(shape_of(tensors[name]))
            raise WeightsError(f"tensor {show(name)} has shape {got}, {what} has {show(shape)}")
    arrays = {name: to_float32(tensors[name], name) for name in shapes}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise WeightsError(f"tensor {show(name)} has numbers that are not finite")
    return arrays
