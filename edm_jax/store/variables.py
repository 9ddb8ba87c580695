"""Whether the arrays of a file are those of the network it describes.

What a network has is asked of the network itself (`models.abstract_variables`), so that
whatever trains can be saved and loaded.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from edm_jax import models
from edm_jax.store.errors import WeightsError, show
from edm_jax.typing import PyTree

_MAX_SIZE = 1 << 16  # of any number among the network arguments
_MAX_LENGTH = 64  # of any list or text


def check_arguments(network: Mapping[str, Any], num_tensors: int) -> None:
    """Raise WeightsError for arguments that would make a network of absurd size.

    Building a network takes time for every block, before any tensor is compared.
    """

    def small(value: object) -> bool:
        if isinstance(value, list | tuple):
            return len(value) <= _MAX_LENGTH and all(small(v) for v in value)
        if isinstance(value, str):
            return len(value) <= _MAX_LENGTH
        if isinstance(value, int | float):
            return abs(value) <= _MAX_SIZE  # also not for NaN
        return value is None

    for key, value in network.items():
        if not small(key) or not small(value):
            raise WeightsError(f"network argument {show(key)} is too large: {show(value)}")
    levels, blocks = network.get("channel_mult", ()), network.get("num_blocks", 1)
    if isinstance(levels, list | tuple) and isinstance(blocks, int):
        least = len(levels) * (2 * blocks + 1)  # every block has more than one tensor
        if least > num_tensors:
            raise WeightsError(
                f"{len(levels)} levels of {blocks} blocks need more than the {num_tensors} "
                "tensors of the file"
            )


def build_network(network: Mapping[str, Any]) -> Any:
    """The Flax module of a description.

    Raises:
      WeightsError: unknown name, unknown or unusable argument.
    """
    try:
        return models.build(**network)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise WeightsError(f"no network can be built from the description: {error}") from None


@functools.lru_cache(maxsize=8)
def _expected_shapes(network_json: str, shape: tuple[int, ...]) -> dict[tuple[str, ...], tuple]:
    net = build_network(json.loads(network_json))
    try:
        abstract = models.abstract_variables(net, shape)
    except (ValueError, TypeError, ArithmeticError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = f"the network of the description cannot run: {show(text)}"
        raise WeightsError(message) from None
    return {path: tuple(leaf.shape) for path, leaf in _leaves(abstract)}


def _leaves(tree: PyTree) -> Iterator[tuple[tuple[str, ...], Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(dict(tree))[0]:
        yield tuple(str(getattr(key, "key", key)) for key in path), leaf


def check_variables(variables: Mapping[str, PyTree], description: Mapping[str, Any]) -> None:
    """Raise WeightsError unless variables have the names and shapes of the network.

    Args:
      variables: ``{"params": tree, "buffers": tree}``; empty collections may be left out.
      description: of the model, checked (`store.description.check_description`).
    """
    network = description["network"]
    found = {path: tuple(np.shape(leaf)) for path, leaf in _leaves(variables)}
    check_arguments(network, len(found))
    expected = _expected_shapes(
        json.dumps(network, sort_keys=True), tuple(description["image_shape"])
    )
    for path in found:
        if path not in expected:
            raise WeightsError(f"array {show('/'.join(path))} is no part of this {network['name']}")
    for path, shape in expected.items():
        name = show("/".join(path))
        if path not in found:
            raise WeightsError(f"array {name} of shape {show(shape)} is missing")
        if found[path] != shape:
            raise WeightsError(
                f"array {name} has shape {show(found[path])}, expected {show(shape)}"
            )
