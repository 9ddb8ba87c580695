"""Variables of a network: initial values, logical axes, counts, an overview."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.models.unet import UNet
from edm_jax.typing import Key, PyTree


def _boxed(net: UNet, key: Key) -> PyTree:
    r = net.img_resolution
    # Optional inputs are given, so that their maps get parameters.
    augment_labels = jnp.zeros((1, net.augment_dim)) if net.augment_dim else None
    x = jnp.zeros((1, r, r, net.in_channels))
    return net.init(key, x, jnp.zeros((1,)), augment_labels=augment_labels)


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
    return jax.jit(lambda key: nn.meta.unbox(_boxed(net, key)))(key)


def _abstract(net: UNet) -> PyTree:
    return jax.eval_shape(lambda: _boxed(net, jax.random.key(0)))


def logical_axes(net: UNet) -> PyTree:
    """A tuple of axis names for every parameter, in the tree of ``variables["params"]``.

    Names: ``channels_in``, ``channels_out``, ``height``, ``width`` (convolutions), ``qkv``,
    ``channels`` (norms), ``embed_in``, ``embed_out``, ``embed``, ``labels`` (linear).
    """
    params = _abstract(net)["params"]
    return jax.tree.map(lambda box: tuple(box.names), params, is_leaf=_is_box)


def param_count(net: UNet) -> int:
    """Number of parameters, buffers not counted; nothing is allocated."""
    leaves = jax.tree.leaves(_abstract(net)["params"])
    return sum(math.prod(leaf.shape) for leaf in leaves)


def parameter_table(variables: PyTree) -> str:
    """Names, shapes, sizes and statistics of all parameters as a text table (clu)."""
    from clu import parameter_overview

    params = jax.tree.map(np.asarray, variables["params"])
    return parameter_overview.get_parameter_overview(params)
