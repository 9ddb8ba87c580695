"""The reflected Gaussian: the law of a point of an interval after reflected Brownian motion.

On [a, a + L] the heat kernel with reflecting ends has two series,

    images:   q(x | y) = sum_m N(x; m, sigma^2),   m in {y + 2Lk, 2a - y + 2Lk : k integer}
    cosines:  q(x | y) = (1 + 2 sum_k E_k cos(pi k (x - a)/L) cos(pi k (y - a)/L)) / L,
              E_k = exp(-(pi k sigma / L)^2 / 2)

The first is short at small sigma, the second at large.  Everything here works element by
element: a box is a product of intervals, and its kernel the product of theirs.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from edm_jax.typing import Array

# In units of L.  There 11 images and 5 cosines are both exact to 1e-14 (float64).
SWITCH = 0.5
_TRANSLATIONS = (1, -1, 2, -2)
_MIRRORS = (0, 1, 2)
_COSINES = (1, 2, 3, 4, 5)


def _images(x: Array, y: Array, sigma: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """ln q, and the mean of m - y over the sources m, from the images next to the box.

    All weights are taken relative to the source y itself, the nearest to x.  The exponent of
    a ratio is the product -(m - y)(m + y - 2x) / (2 sigma^2), and the factors are sums of
    distances to a face: nothing cancels, however small sigma, and a weight is at most 1.
    """
    length = high - low
    # float32 squares underflow below 1e-19; no level of noise is that small.
    inverse = 1 / jnp.maximum(jnp.square(sigma), jnp.finfo(x.dtype).tiny)
    total, shift = jnp.ones_like(x), jnp.zeros_like(x)
    for k in _TRANSLATIONS:
        weight = jnp.exp(-2 * k * length * ((y - x) + k * length) * inverse)
        total, shift = total + weight, shift + weight * (2 * k * length)
    for near_x, near_y, sign in ((x - low, y - low, -2), (high - x, high - y, 2)):
        for k in _MIRRORS:
            weight = jnp.exp(-2 * (near_y + k * length) * (near_x + k * length) * inverse)
            total, shift = total + weight, shift + weight * (sign * (near_y + k * length))
    log_normal = -0.5 * jnp.square(y - x) * inverse - jnp.log(sigma * math.sqrt(2 * math.pi))
    return log_normal + jnp.log(total), shift / total


def _cosines(x: Array, y: Array, sigma: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """ln q, and sigma d/dx ln q, from the cosine series."""
    length = high - low
    angle_x, angle_y = (math.pi / length * (v - low) for v in (x, y))
    scaled = math.pi / length * sigma
    excess, slope = jnp.zeros_like(x), jnp.zeros_like(x)
    for k in _COSINES:
        amplitude = 2 * jnp.exp(-0.5 * jnp.square(k * scaled)) * jnp.cos(k * angle_y)
        excess = excess + amplitude * jnp.cos(k * angle_x)
        slope = slope - k * scaled * amplitude * jnp.sin(k * angle_x)
    return jnp.log1p(excess) - jnp.log(length), slope / (1 + excess)


def _both(
    x: Array, y: Array, sigma: Array, low: Array, high: Array
) -> tuple[Array, tuple[Array, Array], tuple[Array, Array]]:
    """Whether the images are to be used, and both series, each where it is finite.

    The series that is not used is fed sigma at the switch, so that neither its value nor
    its derivative can spoil those of `jnp.where`.
    """
    switch = SWITCH * (high - low)
    small = sigma <= switch
    images = _images(x, y, jnp.where(small, sigma, switch), low, high)
    cosines = _cosines(x, y, jnp.where(small, switch, sigma), low, high)
    return small, images, cosines


def log_density(x: Array, y: Array, sigma: Array, low: Array, high: Array) -> Array:
    """ln q(x | y; sigma) of every element.

    Args:
      x, y: in [low, high], of one shape.
      sigma: > 0, broadcastable to it; in the units of the interval.
      low, high: ends of the interval.

    Returns:
      Of the shape of x.
    """
    small, (log_images, _), (log_cosines, _) = _both(x, y, sigma, low, high)
    return jnp.where(small, log_images, log_cosines)


def scaled_score(x: Array, y: Array, sigma: Array, low: Array, high: Array) -> Array:
    """sigma d/dx ln q(x | y; sigma) = (D* - x) / sigma of every element.

    Between -1/sigma and 1/sigma times the length, 0 on both faces, and of order 1 for x
    drawn from the kernel: what a network with c_skip = 1, c_out = sigma learns.  Arguments
    and result as `log_density`.
    """
    small, (_, shift), (_, slope) = _both(x, y, sigma, low, high)
    floor = jnp.finfo(x.dtype).tiny
    return jnp.where(small, ((y - x) + shift) / jnp.maximum(sigma, floor), slope)


def target(x: Array, y: Array, sigma: Array, low: Array, high: Array) -> Array:
    """D*(x, y; sigma) = x + sigma^2 d/dx ln q, the mean of the unfolded source given x.

    It tends to y as sigma goes to 0, equals x on both faces, and may leave the interval.
    Arguments and result as `log_density`.
    """
    small, (_, shift), (_, slope) = _both(x, y, sigma, low, high)
    return jnp.where(small, y + shift, x + sigma * slope)
