"""Samples beside the training images that are nearest to them: drawn, or remembered?"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.pytree import short_repr
from edm_jax.typing import Array

_BLOCK = 4096


@short_repr
class Neighbours(NamedTuple):
    """Of each image the nearest ones of a set; distances are RMS per element, in data units.

    Attributes:
      index: ``(n, k)`` which of the set, nearest first.
      distance: ``(n, k)``.
    """

    index: np.ndarray
    distance: np.ndarray


@jax.jit
def _mean_squares(x: Array, y: Array) -> Array:
    """``(n, D)``, ``(m, D)`` -> mean squared difference ``(n, m)``."""
    products = jnp.matmul(x, y.T, precision="highest")
    squares = jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1)[None, :]
    return jnp.maximum(squares - 2 * products, 0) / x.shape[1]


def nearest(
    images: np.ndarray, others: np.ndarray, count: int = 3, *, skip_itself: bool = False
) -> Neighbours:
    """The nearest images of a set by their pixels.

    Args:
      images: ``(n, H, W, C)`` in [-1, 1].
      others: ``(m, H, W, C)``.
      count: k, at most m.
      skip_itself: leave out image i of ``others`` for image i (the sets are one).
    """
    x = jnp.asarray(images, jnp.float32).reshape(len(images), -1)
    squared = np.concatenate(
        [
            np.asarray(_mean_squares(x, jnp.asarray(part, jnp.float32).reshape(len(part), -1)))
            for part in np.split(others, range(_BLOCK, len(others), _BLOCK))
        ],
        axis=1,
    )
    if skip_itself:
        squared[np.arange(len(images)), np.arange(len(images))] = np.inf
    count = min(count, len(others) - skip_itself)
    index = np.argsort(squared, axis=1)[:, :count]
    return Neighbours(index, np.sqrt(np.take_along_axis(squared, index, axis=1)))


def spread(images: np.ndarray) -> float:
    """RMS difference of an element between two different images of a set, in data units.

    Twice the mean variance of an element, its root: 0 if all images are one.
    """
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    return float(np.sqrt(2 * np.mean(np.var(flat, axis=0, ddof=1))))
