"""The single-file model: safetensors whose metadata describes the model.

Tensors are called ``<variant>/params/<module>/.../<leaf>`` and
``<variant>/buffers/...``, in the layout of our networks.  The metadata texts are

    format        "edm_jax"
    description   JSON, see `edm_jax.store.description`
    sha256        SHA-256 of the whole file, taken with this field set to 64 zeros

so that a changed byte anywhere, header included, is noticed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edm_jax.store.binary import sha256
from edm_jax.store.description import ImportedModel, check_description, dump_json
from edm_jax.store.errors import WeightsError, show
from edm_jax.store.safetensors import make_header, parse_json
from edm_jax.store.variables import check_variables
from edm_jax.typing import PyTree

FORMAT = "edm_jax"
_NO_DIGEST = "0" * 64
_MAX_DEPTH = 16


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            array = np.asarray(value)
            yield f"{prefix}{key}", np.ascontiguousarray(array).reshape(array.shape)


def _unflatten(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, PyTree]]:
    variables: dict[str, Any] = {}
    for name, array in arrays.items():
        variant, *path = name.split("/")
        if len(path) < 2 or path[0] not in ("params", "buffers") or len(path) > _MAX_DEPTH:
            raise WeightsError(f"tensor {show(name)} is not <variant>/params/... or /buffers/...")
        node = variables.setdefault(variant, {"params": {}, "buffers": {}})
        for key in path[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise WeightsError(f"tensor {show(name)} lies below another tensor")
        if path[-1] in node:
            raise WeightsError(f"tensor {show(name)} lies above another tensor")
        node[path[-1]] = array
    return variables


def _raw(array: np.ndarray) -> memoryview:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return memoryview(little.reshape(-1).view(np.uint8))


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> str:
    """Write safetensors with its digest; atomic.  Returns the digest."""
    # First in the header, so that the first 64 zeros are this field.
    blank = make_header(arrays, {"sha256": _NO_DIGEST} | dict(metadata))
    digest = sha256(blank, *(_raw(a) for a in arrays.values()))
    header = blank.replace(_NO_DIGEST.encode(), digest.encode(), 1)
    # Beside the target, since a rename is atomic within a file system only.
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(header)
            for array in arrays.values():
                file.write(_raw(array))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return digest


def write_single_file(
    path: str | os.PathLike[str],
    description: Mapping[str, Any],
    variables: Mapping[str, Mapping[str, PyTree]],
) -> str:
    """Write a model as one self-describing file.

    The file appears complete or not at all: it is written beside the target, flushed, and
    renamed over it.

    Args:
      path: the file; by convention it ends with ``.safetensors``.
      description: see `edm_jax.store.description`.
      variables: by variant, ``{"params": tree, "buffers": tree}``; JAX or NumPy arrays of
        any type safetensors has.

    Returns:
      The SHA-256 the file carries.

    Raises:
      ValueError: the description is incomplete or no plain JSON, there is no variant, the
        variables are not those of the network, or an array has an unusable type.
      OSError: the folder cannot be written.
    """
    check_description(description)
    if not variables or not all(isinstance(v, str) and v and "/" not in v for v in variables):
        raise ValueError(
            "variables must hold at least one variant, called by a text without '/', such as "
            f"'ema'; got {', '.join(show(v) for v in variables) or 'none'}"
        )
    for tree in variables.values():
        check_variables(tree, description)
    metadata = {"format": FORMAT, "description": dump_json(description)}
    return write_arrays(path, dict(_flatten(variables)), metadata)


def is_single_file(metadata: Mapping[str, str]) -> bool:
    """Whether safetensors metadata is that of `write_single_file`."""
    return metadata.get("format") == FORMAT


def check_digest(data: memoryview, metadata: Mapping[str, str]) -> None:
    """Raise WeightsError unless the file's bytes have the SHA-256 its metadata gives."""
    stored = metadata.get("sha256", "")
    header = bytes(data[: 8 + int.from_bytes(data[:8], "little")])
    if len(stored) != 64 or not stored.isascii() or header.count(stored.encode()) != 1:
        raise WeightsError(f"sha256 in the metadata is {show(stored)}, expected 64 digits")
    blank = header.replace(stored.encode(), _NO_DIGEST.encode())
    found = sha256(blank, data[len(header) :])
    if found != stored:
        raise WeightsError(
            f"the file is damaged: its SHA-256 is {found}, recorded {stored}; copy it again"
        )


def parse_single_file(
    data: memoryview, metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]
) -> ImportedModel:
    """A model from an opened single file; arrays are copied out of the file."""
    description = parse_json(metadata.get("description", ""))
    check_description(description)  # first: a newer format may have another digest
    check_digest(data, metadata)
    variables = _unflatten({name: np.array(a) for name, a in arrays.items()})
    if not variables:
        raise WeightsError("the file holds no variables")
    for tree in variables.values():
        check_variables(tree, description)
    return ImportedModel(description, variables)
