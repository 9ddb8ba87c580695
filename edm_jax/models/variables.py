"""Variables of a network: initial values, logical axes, counts, an overview."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.models.unet import UNet
from edm_jax.typing import Key, PyTree


def _inputs(net: UNet) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Shapes of one image and all labels, so that every layer gets its parameters."""
    r = net.img_resolution

    def struct(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    augment_labels = struct(1, net.augment_dim) if net.augment_dim else None
    return (struct(1, r, r, net.in_channels), struct(1)), {"augment_labels": augment_labels}


@functools.lru_cache(maxsize=64)
def _abstract(net: UNet) -> PyTree:
    """Shapes of the variables, in boxes that know their axis names."""
    arguments, labels = _inputs(net)
    return jax.eval_shape(net.init, jax.random.key(0), *arguments, **labels)


def _is_box(value: Any) -> bool:
    return isinstance(value, nn.meta.AxisMetadata)


def init_variables(net: UNet, key: Key) -> dict[str, PyTree]:
    """Initial variables as plain arrays (drawn as the published networks were).

    Args:
      net: the network.
      key: PRNG key.

    Returns:
      ``{"params": ...}`` and, with a Fourier embedding, ``"buffers"``.  May be called
      under jit and, at no cost, under `jax.eval_shape`.
    """
    arguments, labels = _inputs(net)
    # Draws the parameters without running the network they belong to.
    return nn.meta.unbox(net.lazy_init(key, *arguments, **labels))


def abstract_variables(net: UNet) -> PyTree:
    """Shapes and dtypes of the variables; nothing is allocated."""
    return nn.meta.unbox(_abstract(net))


def logical_axes(net: UNet) -> PyTree:
    """A tuple of axis names for every parameter, in the tree of ``variables["params"]``.

    Names: ``channels_in``, ``channels_out``, ``height``, ``width`` (convolutions), ``qkv``,
    ``channels`` (norms), ``embed_in``, ``embed_out``, ``embed``, ``labels`` (linear).
    """
    return jax.tree.map(lambda box: tuple(box.names), _abstract(net)["params"], is_leaf=_is_box)


def param_count(net: UNet) -> int:
    """Number of parameters, buffers not counted; nothing is allocated."""
    leaves = jax.tree.leaves(abstract_variables(net)["params"])
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
