"""The five points in [0, 1]^2 that golden file 13 is made of."""

import functools

import jax
import jax.numpy as jnp

from edm_jax.domains.box import Box
from edm_jax.reflected.sources import ReflectedPoints

UNIT = Box(0.0, 1.0)


def source(arrays, label=0):
    """The points of a class, all of them for class 0."""
    keep = (arrays["toy/class"] == label) | (label == 0)
    return ReflectedPoints(arrays["toy/points"][keep], arrays["toy/weights"][keep], UNIT)


def by_label(arrays, labels, method="denoise"):
    """``(x, sigma) -> D`` where each row of the batch has its own class."""
    functions = [getattr(source(arrays, label), method) for label in (0, 1, 2)]

    def conditional(x, sigma):
        values = jnp.stack([function(x, sigma) for function in functions])
        return values[jnp.asarray(labels), jnp.arange(x.shape[0])]

    return conditional


@functools.partial(jax.jit, static_argnums=0)
def call(function, *args):
    """``function(*args)``, compiled."""
    return function(*args)
