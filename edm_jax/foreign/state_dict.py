"""From published tensors to variables of our networks, checked name by name.

Names here are those of the bare network (no prefix ``model.``) in the grammar of the
published state dictionaries, such as ``enc.32x32_block0.conv0.weight``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from edm_jax.store.errors import WeightsError, show
from edm_jax.store.tensors import Tensor, array_of, numel_of, shape_of
from edm_jax.store.variables import build_network, check_arguments
from edm_jax.typing import PyTree

Tensors = Mapping[str, Tensor | np.ndarray]

FILTER = ".resample_filter"
_FLOATS = ("float16", "bfloat16", "float32", "float64")


@functools.lru_cache(maxsize=8)
def _published_shapes(network_json: str) -> dict[str, tuple[int, ...]]:
    from edm_jax.models import names

    net = build_network(json.loads(network_json))
    try:
        return names.state_dict_shapes(net)
    except (ValueError, TypeError, ArithmeticError) as error:
        message = f"the network of the description cannot run: {show(str(error))}"
        raise WeightsError(message) from None


def expected_tensors(network: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and published shape of every parameter and buffer, filters included."""
    return _published_shapes(json.dumps(network, sort_keys=True))


def check_tensors(tensors: Tensors, network: Mapping[str, Any], file_size: int) -> None:
    """Raise WeightsError unless the tensors are exactly those of the network.

    Args:
      tensors: by published name, filters included.
      network: ``description["network"]``.
      file_size: in bytes.  Strides of 0 and shared storages let a small file announce
        large tensors; a network has at most one number per byte of its file.
    """
    check_arguments(network, len(tensors))
    total = numel_of(tensors.values())
    if total > file_size:
        raise WeightsError(f"tensors of {total} numbers in a file of {file_size} bytes")
    expected = expected_tensors(network)
    for name in tensors:
        if name not in expected:
            raise WeightsError(f"tensor {show(name)} is no part of this {network['name']}")
    for name, shape in expected.items():
        if name not in tensors:
            raise WeightsError(f"tensor {show(name)} of shape {show(shape)} is missing")
        if shape_of(tensors[name]) != shape:
            got = show(shape_of(tensors[name]))
            raise WeightsError(f"tensor {show(name)} has shape {got}, expected {show(shape)}")


def to_float32(tensor: Tensor | np.ndarray, name: str) -> np.ndarray:
    """A float32 copy, contiguous in C order, equal in value.

    Half precision widens exactly.  float64 is narrowed only where nothing is lost.
    """
    array = array_of(tensor)
    if array.dtype.name not in _FLOATS:
        raise WeightsError(f"tensor {show(name)} is of {array.dtype}, expected floating point")
    # An overflow is reported below, as a value that is not kept.
    with np.errstate(over="ignore"):
        out = np.array(array, np.float32, order="C")
    if array.dtype == np.float64 and not np.array_equal(out, array, equal_nan=True):
        raise WeightsError(
            f"tensor {show(name)} is float64 and not exact in float32; convert the file first"
        )
    return out


def _check_filter(array: np.ndarray, stored_dtype: np.dtype, want: np.ndarray, name: str) -> None:
    # One rounding of the stored dtype, and one of the published float32 evaluation.
    rtol = {"float16": 2e-3, "bfloat16": 2e-2}.get(stored_dtype.name, 1e-6)
    if not np.allclose(array, want, rtol=rtol, atol=0):
        raise WeightsError(f"filter {show(name)} is not that of the resample_filter of the network")


def to_variables(tensors: Tensors, network: Mapping[str, Any], file_size: int) -> dict[str, PyTree]:
    """Variables of a network from its published tensors.

    Returns:
      ``{"params": tree, "buffers": tree}`` of float32 arrays in our layout.

    Raises:
      WeightsError: missing, superfluous or misshapen tensors, unusable dtypes, or filters
        that are not those of the network.
    """
    from edm_jax.models import names

    check_tensors(tensors, network, file_size)
    filters = names.resample_filters(build_network(network))
    variables: dict[str, Any] = {"params": {}, "buffers": {}}
    for name, tensor in tensors.items():  # one by one: a model is held once, not twice
        array = to_float32(tensor, name)
        if name in filters:
            stored = tensor.storage.dtype if isinstance(tensor, Tensor) else tensor.dtype
            _check_filter(array, stored, filters[name], name)
            continue
        *parents, leaf = names.variable_path(name, array.ndim)
        node = variables
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = np.ascontiguousarray(names.to_flax_layout(array))
    return variables


def from_variables(
    variables: Mapping[str, PyTree], network: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The published state dictionary of a network, filters included; inverse of `to_variables`."""
    from edm_jax.models import names

    return names.to_state_dict(dict(variables), build_network(network))


def inner_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Names without the preconditioner's prefix ``model.``; its table ``u`` is dropped."""
    inner = {}
    for name, tensor in tensors.items():
        if name == "u":
            continue
        if not name.startswith("model."):
            raise WeightsError(f"tensor {show(name)} lies outside the network")
        inner[name.removeprefix("model.")] = tensor
    return inner
