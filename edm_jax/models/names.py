"""Between Flax variables (NHWC) and the published state dictionaries (OIHW).

A published name such as ``enc.32x32_block0.conv0.weight`` is the variable
``params/enc_32x32_block0/conv0/kernel``; ``map_noise.freqs`` is the variable
``buffers/map_noise/freqs``.  Names are those of the bare network, without the prefix
``model.`` of the published preconditioners.  Pure functions of numpy arrays; both
directions are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_BUFFERS = ("freqs",)
_FILTER = "resample_filter"


def variable_path(name: str, ndim: int) -> tuple[str, ...]:
    """Path of a published name in the variables: ``(collection, *modules, leaf)``."""
    if name.startswith(("enc.", "dec.")):
        name = name.replace(".", "_", 1)
    *modules, leaf = name.split(".")
    if leaf in _BUFFERS:
        return ("buffers", *modules, leaf)
    if leaf == "weight":
        leaf = "kernel" if ndim > 1 else "scale"
    return ("params", *modules, leaf)


def state_dict_name(path: tuple[str, ...]) -> str:
    """The inverse of `variable_path`."""
    _, first, *rest = path
    if first.startswith(("enc_", "dec_")):
        first = first.replace("_", ".", 1)
    leaf = {"kernel": "weight", "scale": "weight"}.get(rest[-1], rest[-1])
    return ".".join([first, *rest[:-1], leaf])


def to_flax_layout(array: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO, ``(out, in)`` -> ``(in, out)``; vectors stay."""
    array = np.asarray(array)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_published_layout(array: np.ndarray) -> np.ndarray:
    """HWIO -> OIHW, ``(in, out)`` -> ``(out, in)``; vectors stay."""
    array = np.asarray(array)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def from_state_dict(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Variables of a network from its published state dictionary."""
    variables: dict[str, Any] = {"params": {}}
    for name, array in state_dict.items():
        if name.endswith(_FILTER):
            continue
        *parents, leaf = variable_path(name, np.ndim(array))
        node = variables
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = np.ascontiguousarray(to_flax_layout(array))
    return variables
