"""Variables of a network: initial values, logical axes, counts, an overview."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.typing import Key, PyTree


def data_shape(net: nn.Module) -> tuple[int, ...]:
    """Shape of one example as the fields of a network say it: ``(H, W, C)`` for images.

    Raises:
      ValueError: if it has neither ``image_shape`` nor ``img_resolution`` and ``in_channels``.
    """
    if (shape := getattr(net, "image_shape", None)) is not None:
        return tuple(shape)
    try:
        return (net.img_resolution, net.img_resolution, net.in_channels)
    except AttributeError:
        raise ValueError(
            f"{type(net).__name__} does not say what it takes: give it the fields img_resolution "
            "and in_channels, or image_shape, or pass the shape of an example"
        ) from None


def inputs(net: nn.Module, shape: tuple[int, ...] | None = None) -> tuple[Any, ...]:
    """Arguments of a network for one example, as ShapeDtypeStructs; all labels it knows.

    Args:
      net: called as ``net.apply(variables, x, c_noise, class_labels, augment_labels)``; the
        sizes of the labels are its fields ``label_dim`` and ``augment_dim``, 0 if it lacks them.
        One that is called otherwise says so by a method ``example_inputs()``.
      shape: of one example; by default `data_shape`.

    Raises:
      ValueError: for a network with ``example_inputs`` of another shape.
    """
    if hasattr(net, "example_inputs"):
        own = net.example_inputs()
        if shape is not None and tuple(shape) != own[0].shape[1:]:
            raise ValueError(f"{type(net).__name__} takes {own[0].shape[1:]}, got {tuple(shape)}")
        return own

    def struct(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def labels(field: str) -> jax.ShapeDtypeStruct | None:
        size = getattr(net, field, 0)
        return struct(1, size) if size else None

    shape = data_shape(net) if shape is None else shape
    return struct(1, *shape), struct(1), labels("label_dim"), labels("augment_dim")


@functools.lru_cache(maxsize=64)
def _abstract(net: nn.Module, shape: tuple[int, ...] | None) -> PyTree:
    """Shapes of the variables, in boxes that know their axis names."""
    return jax.eval_shape(net.init, jax.random.key(0), *inputs(net, shape))


def _is_box(value: Any) -> bool:
    return isinstance(value, nn.meta.AxisMetadata)


def init_variables(
    net: nn.Module, key: Key, shape: tuple[int, ...] | None = None
) -> dict[str, PyTree]:
    """Initial variables as plain arrays (drawn as the published networks were).

    Args:
      net: the network.
      key: PRNG key.
      shape: of one example; by default `data_shape`.

    Returns:
      ``{"params": ...}`` and, with a Fourier embedding, ``"buffers"``.  May be called
      under jit and, at no cost, under `jax.eval_shape`.
    """
    # Draws the parameters without running the network they belong to.
    return nn.meta.unbox(net.lazy_init(key, *inputs(net, shape)))


def abstract_variables(net: nn.Module, shape: tuple[int, ...] | None = None) -> PyTree:
    """Shapes and dtypes of the variables; nothing is allocated."""
    return nn.meta.unbox(_abstract(net, shape))


def logical_axes(net: nn.Module, shape: tuple[int, ...] | None = None) -> PyTree:
    """A tuple of axis names for every parameter, in the tree of ``variables["params"]``.

    Names: ``channels_in``, ``channels_out``, ``height``, ``width`` (convolutions), ``qkv``,
    ``channels`` (norms), ``embed_in``, ``embed_out``, ``embed``, ``labels`` (linear);
    ``unnamed`` for every axis of a parameter whose network names none.
    """

    def names(leaf: Any) -> tuple[str, ...]:
        return tuple(leaf.names) if _is_box(leaf) else ("unnamed",) * len(leaf.shape)

    return jax.tree.map(names, _abstract(net, shape)["params"], is_leaf=_is_box)


def param_count(net: nn.Module, shape: tuple[int, ...] | None = None) -> int:
    """Number of parameters, buffers not counted; nothing is allocated."""
    leaves = jax.tree.leaves(abstract_variables(net, shape)["params"])
    return sum(math.prod(leaf.shape) for leaf in leaves)


def parameter_table(variables: PyTree) -> str:
    """Names, shapes and sizes of all parameters as a text table (clu).

    Args:
      variables: of a network.  Arrays add the mean and standard deviation of each; of shapes
        alone (`abstract_variables`) there are none.
    """
    from clu import parameter_overview

    params = variables["params"]
    known = not any(isinstance(p, jax.ShapeDtypeStruct) for p in jax.tree.leaves(params))
    if known:
        params = jax.tree.map(np.asarray, params)
    return parameter_overview.get_parameter_overview(params, include_stats=known)
