"""Between Flax variables (NHWC) and the published state dictionaries (OIHW).

A published name such as ``enc.32x32_block0.conv0.weight`` is the variable
``params/enc_32x32_block0/conv0/kernel``, ``map_noise.freqs`` is the variable
``buffers/map_noise/freqs``.  Published dictionaries also hold resampling filters, which
here follow from the arguments of the network.  Names are those of the bare network,
without the prefix ``model.`` of the published preconditioners.

Everything works on numpy arrays, keeps their dtype and is exact in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from edm_jax.models.unet import UNet
from edm_jax.models.variables import abstract_variables
from edm_jax.typing import ArrayLike, PyTree

_FILTER = "resample_filter"
_LEAVES = {"kernel": "weight", "scale": "weight"}
# Order of registration: layers of a block, and values of a layer.
_LAYERS = ("norm0", "conv0", "affine", "norm1", "conv1", "skip", "norm2", "qkv", "proj")
_VALUES = ("weight", "bias", _FILTER, "freqs")


def variable_path(name: str, ndim: int) -> tuple[str, ...]:
    """Path of a published name in the variables.

    Args:
      name: such as ``dec.32x32_aux_conv.bias``.
      ndim: rank of the array, which tells a norm from a convolution.

    Returns:
      ``(collection, *modules, leaf)``, such as ``("params", "dec_32x32_aux_conv", "bias")``.
    """
    if name.startswith(("enc.", "dec.")):
        name = name.replace(".", "_", 1)
    *modules, leaf = name.split(".")
    if leaf == "freqs":
        return ("buffers", *modules, leaf)
    if leaf == "weight":
        leaf = "kernel" if ndim > 1 else "scale"
    return ("params", *modules, leaf)


def state_dict_name(path: tuple[str, ...]) -> str:
    """Published name of a variable; the inverse of `variable_path`."""
    _, module, *rest = path
    if module.startswith(("enc_", "dec_")):
        module = module.replace("_", ".", 1)
    return ".".join([module, *rest[:-1], _LEAVES.get(rest[-1], rest[-1])])


def to_flax_layout(array: ArrayLike) -> np.ndarray:
    """OIHW -> HWIO, ``(out, in)`` -> ``(in, out)``; vectors stay."""
    array = np.asarray(array)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_published_layout(array: ArrayLike) -> np.ndarray:
    """HWIO -> OIHW, ``(in, out)`` -> ``(out, in)``; vectors stay."""
    array = np.asarray(array)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _flat(variables: PyTree) -> dict[tuple[str, ...], Any]:
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {tuple(str(key.key) for key in path): leaf for path, leaf in leaves}


def resample_filters(net: UNet) -> dict[str, np.ndarray]:
    """Name -> ``(1, 1, K, K)`` float32: the filters a published dictionary holds."""
    taps = np.asarray(net.settings["resample_filter"], np.float32)
    kernel = (np.outer(taps, taps) / np.square(taps.sum()))[None, None]
    names = []
    for entry in net.plan:
        if entry.up or entry.down:
            layers = ("conv0.", "skip.") if entry.kind == "block" else ("",)
            names += [f"{entry.name}.{layer}{_FILTER}" for layer in layers]
    return {name: kernel for name in names}


def state_dict_shapes(net: UNet) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the published state dictionary of a network, in its order.

    The order is the one modules were registered in: mapping layers, encoder, decoder;
    in a block norm0, conv0, affine, norm1, conv1, skip, norm2, qkv, proj; in a layer
    weight, bias, filter.
    """
    shapes = {name: kernel.shape for name, kernel in resample_filters(net).items()}
    for path, leaf in _flat(abstract_variables(net)).items():
        shape = leaf.shape
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        shapes[state_dict_name(path)] = shape

    modules = [*net.mapping_order, *(entry.name for entry in net.plan)]
    position = {module: i for i, module in enumerate(modules)}

    def order(name: str) -> tuple[int, int, int]:
        owner, value = name.rsplit(".", 1)
        if owner in position:
            return position[owner], 0, _VALUES.index(value)
        owner, layer = owner.rsplit(".", 1)
        return position[owner], _LAYERS.index(layer), _VALUES.index(value)

    return {name: shapes[name] for name in sorted(shapes, key=order)}


def from_state_dict(state_dict: Mapping[str, ArrayLike], net: UNet | None = None) -> PyTree:
    """Variables from a published state dictionary.

    Args:
      state_dict: name -> array, in the published layout, without the prefix ``model.``.
      net: the network they are for; names, shapes and filters are then checked.

    Returns:
      ``{"params": ...}``, with ``"buffers"`` where there are Fourier frequencies.

    Raises:
      ValueError: naming what is missing, unexpected or of another shape.
    """
    if net is not None:
        _check_state_dict(state_dict, net)
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


def to_state_dict(variables: PyTree, net: UNet | None = None) -> dict[str, np.ndarray]:
    """Published state dictionary of variables, the inverse of `from_state_dict`.

    Args:
      variables: of a network, as plain arrays.
      net: the network; its resampling filters are then added and the order is the
        published one.

    Returns:
      Name -> array in the published layout.

    Raises:
      ValueError: if the variables are not those of the network.
    """
    state_dict = {
        state_dict_name(path): np.ascontiguousarray(to_published_layout(leaf))
        for path, leaf in _flat(variables).items()
    }
    if net is None:
        return state_dict
    state_dict |= resample_filters(net)
    _check_state_dict(state_dict, net)
    return {name: state_dict[name] for name in state_dict_shapes(net)}


def _check_state_dict(state_dict: Mapping[str, ArrayLike], net: UNet) -> None:
    shapes, filters = state_dict_shapes(net), resample_filters(net)

    def some(names: list[str]) -> str:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    missing = [name for name in shapes if name not in state_dict]
    unexpected = [name for name in state_dict if name not in shapes]
    if missing or unexpected:
        raise ValueError(
            f"the state dictionary is not of this {type(net).__name__}: "
            f"missing {some(missing) or 'nothing'}; unexpected {some(unexpected) or 'nothing'}"
        )
    for name, shape in shapes.items():
        if np.shape(state_dict[name]) != shape:
            raise ValueError(
                f"{name} must have shape {shape} for this {type(net).__name__}, "
                f"got {np.shape(state_dict[name])}"
            )
    for name, kernel in filters.items():
        # Stored filters may have gone through float16.
        if not np.allclose(state_dict[name], kernel, rtol=2e-3, atol=1e-6):
            raise ValueError(f"{name} is not the filter of resample_filter of this network")
