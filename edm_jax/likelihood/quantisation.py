"""From densities to probabilities of 8-bit images, and to bits per dimension.

An image of integers v has the values x_v = v / 127.5 - 1, which are w = 1 / 127.5 apart.  A flow
gives a density at s0 > 0; two ways lead from it to a lower bound of ln P(v):

* ``uniform``: x = x_v + (u - 1/2) w, u uniform, and ln P(v) >= E ln p(x; s0) + d ln w.  For
  networks trained on images dequantised like this, with s0 of at most 0.02 w.  For one trained on
  the integers themselves, whose density is a spike at each of them, the bound falls without limit
  as s0 -> 0.
* ``gaussian``: z = x_v + s0 e, e normal, and a decoder P(v | z) that takes the levels of each
  element for equally likely:

      ln P(v) >= E[ln p(z; s0) + ln P(v | z)] + d (ln(2 pi e) / 2 + ln s0)

  For networks trained on raw integers.  What the decoder does not know of the data costs less
  than 1e-5 bits per dimension for s0 <= 0.1 w and about 0.05 at 0.002 (0.255 w).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import seeds
from edm_jax.arguments import check_number
from edm_jax.typing import Array, ArrayLike, Key

BIN_WIDTH = 1 / 127.5  # of 8-bit images in [-1, 1]
METHODS = ("uniform", "gaussian", "none")


def eight_bit_levels() -> np.ndarray:
    """``(256,)`` the values v / 127.5 - 1, float64."""
    return np.arange(256) / 127.5 - 1


def bits_per_dim(log_p: ArrayLike, size: int, bin_width: float | None = None) -> np.ndarray:
    """-log p / (d ln 2), less log2 of the bin width if p is a density of bins.

    Args:
      log_p: in nats, any shape: a log probability, or (with ``bin_width``) a log density.
      size: d, elements of an image.
      bin_width: of the integers in the units of the density: 1/127.5 for EDM's v / 127.5 - 1,
        2/256 for 2 (v + u) / 256 - 1, 1/256 for data in [0, 1].

    Returns:
      float64, of the shape of log_p.
    """
    check_number("size", size, least=1)
    bits = -np.asarray(log_p, np.float64) / (size * math.log(2))
    if bin_width is None:
        return bits
    check_number("bin_width", bin_width, above=0)
    return bits - math.log2(bin_width)


def dequantise(x: Array, key: Key, sigma_min: ArrayLike, method: str) -> Array:
    """A continuous image of an 8-bit one.

    Args:
      x: ``(B, ...)`` values v / 127.5 - 1.
      key: ``(B,)`` keys, one per image.
      sigma_min: s0, deviation of the ``gaussian`` method.
      method: of METHODS; ``none`` changes nothing.
    """
    if method == "uniform":
        return x + (seeds.uniform(key, x.shape, x.dtype) - 0.5) * BIN_WIDTH
    if method == "gaussian":
        return x + jnp.asarray(sigma_min, x.dtype) * seeds.normal(key, x.shape, x.dtype)
    return x


def decoder_nats(levels: ArrayLike, sigma: ArrayLike) -> Array:
    """E[-ln P(v | z)] of the level decoder for each level v, with z = x_v + sigma e.

    P(v | z) is the softmax over levels of -(z - x_level)^2 / (2 sigma^2): the posterior of
    levels that are equally likely.

    Args:
      levels: ``(L,)`` values of one element.
      sigma: noise level > 0, a scalar, may be traced.

    Returns:
      ``(L,)`` nats.
    """
    levels = jnp.asarray(levels, jnp.result_type(float))
    sigma = jnp.asarray(sigma, levels.dtype)
    # The trapezoidal rule on an analytic integrand: exact to rounding at this spacing, and
    # normalised so that constants are exact too.
    e = jnp.linspace(-8.5, 8.5, 273, dtype=levels.dtype)
    density = jnp.exp(-0.5 * jnp.square(e))
    density = density / jnp.sum(density)
    # -(z - x_l)^2 / (2 sigma^2) less its value at l = v, as a function of the distance to v.
    gap = (levels[None] - levels[:, None]) / sigma
    logits = gap[:, :, None] * e[None, None] - 0.5 * jnp.square(gap)[:, :, None]
    return jnp.sum(jax.nn.logsumexp(logits, axis=1) * density[None], axis=-1)


def decoder_cost(index: Array, levels: ArrayLike, sigma: ArrayLike) -> Array:
    """E[-ln P(v | z)] of whole images: ``(B, ...)`` indices of levels -> ``(B,)`` nats."""
    table = decoder_nats(levels, sigma)
    return jnp.sum(table[index], axis=tuple(range(1, index.ndim)))


def log_probability(
    log_density: Array,
    index: Array,
    sigma_min: ArrayLike,
    method: str,
    levels: ArrayLike | None = None,
) -> Array:
    """The lower bound of ln P(v) from the log density of its `dequantise`-d image.

    Args:
      log_density: ``(B,)`` nats, at noise level s0.
      index: ``(B, ...)`` integers 0..L-1.
      sigma_min: s0.
      method: of METHODS; with ``none`` the density stays one.
      levels: ``(L,)`` evenly spaced values of the integers; by default those of 8-bit images.
    """
    size = math.prod(index.shape[1:])
    levels = eight_bit_levels() if levels is None else levels
    if method == "uniform":
        return log_density + size * math.log(float(levels[1] - levels[0]))
    if method == "gaussian":
        log_sigma = jnp.log(jnp.asarray(sigma_min, log_density.dtype))
        cost = decoder_cost(index, levels, sigma_min).astype(log_density.dtype)
        return log_density - cost + size * (0.5 * math.log(2 * math.pi * math.e) + log_sigma)
    return log_density
