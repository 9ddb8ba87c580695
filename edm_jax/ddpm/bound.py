"""Terms of the variational bound of DDPM and iDDPM, in bits per dimension.

Natural logarithms inside; a term is the mean over the elements of an image over ln 2, so
nats per image are the term times ln 2 times the number of elements.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from edm_jax.ddpm.process import Process, Step
from edm_jax.typing import Array, ArrayLike

_HALF_BIN = 1 / 255  # images have levels k / 127.5 - 1
_EDGE = 0.999
_LEAST = 1e-12
_SATURATED = 100.0  # |u| beyond which tanh is 1 in float64; its cube stays finite


def kl_term(v: ArrayLike, log_ratio: ArrayLike, error: ArrayLike) -> Array:
    """KL(posterior || N(mean, V)) of every element in nats, for t > 0.

        1/2 [ (v ln r + expm1(-v ln r)) + r^-v Q e^2 ]

    Args:
      v: where ln V lies between small (0) and large (1); not clamped.
      log_ratio: ln r.
      error: Q e^2, with e the error of D.
    """
    scaled = v * log_ratio
    # The grouping keeps the digits that v ln r - 1 + r^-v loses where r is near 1.
    return 0.5 * ((scaled + jnp.expm1(-scaled)) + jnp.exp(-scaled) * error)


def normal_cdf(u: Array) -> Array:
    """The tanh approximation of the released programs, within 1.8e-4 of the normal CDF.

    The published bounds are those of this function: use no better one.
    """
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))


def decoder_log_likelihood(y: Array, mean: Array, log_std: Array) -> Array:
    """ln P of the 8-bit level y under N(mean, std^2) integrated over its bin, elementwise.

    Bins of the extreme levels reach to infinity.  Probabilities are at least 1e-12; an
    element below has no gradient.

    Args:
      y: levels k / 127.5 - 1, k = 0 .. 255.
      mean, log_std: broadcast with y.
    """
    centred, inverse = y - mean, jnp.exp(-log_std)

    def cdf(offset: float) -> Array:
        return normal_cdf(jnp.clip((centred + offset) * inverse, -_SATURATED, _SATURATED))

    upper, lower = cdf(_HALF_BIN), cdf(-_HALF_BIN)
    inner = jnp.where(y > _EDGE, 1 - lower, upper - lower)
    return jnp.log(jnp.maximum(jnp.where(y < -_EDGE, upper, inner), _LEAST))


def _column(value: Array, like: Array) -> Array:
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def mean_per_image(values: Array) -> Array:
    """``(B, ...)`` -> ``(B,)``."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def bound_term(step: Step, y: Array, v: ArrayLike, error: Array, mean: Array) -> Array:
    """L_t of every image in bits per dimension, ``(B,)``.

        t > 0   mean of KL(q(z_{t-1} | z_t, y) || p(z_{t-1} | z_t)) / ln 2
        t = 0   -mean of ln P(y | z_0) / ln 2, with the decoder's mean D

    Args:
      step: numbers of the time steps of the batch, each ``(B,)``.
      y: ``(B, ...)`` images at 8-bit levels in [-1, 1].
      v: variance of the network, the shape of y or a number.
      error: Q e^2 of every element, used for t > 0.
      mean: D, used at t = 0.
    """
    log_ratio, log_small = _column(step.log_ratio, y), _column(step.log_small, y)
    first = _column(step.first, y)
    # Each branch sees harmless numbers where it is not used: its gradient is then 0, not NaN.
    kl = kl_term(v, log_ratio, jnp.where(first, 0, error))
    log_std = jnp.where(first, 0.5 * (v * log_ratio + log_small), 0)
    decoder = -decoder_log_likelihood(y, jnp.where(first, mean, y), log_std)
    return mean_per_image(jnp.where(first, decoder, kl)) / math.log(2)


def prior_term(process: Process, y: Array) -> Array:
    """KL(q(z_{T-1} | y) || N(0, 1)) in bits per dimension, ``(B,)``.

    mean of 1/2 [ ln(1 + 1/S^2) - 1/(1 + S^2) + y^2/(1 + S^2) ] / ln 2,   S = sigma_{T-1}
    """
    square = float(process.levels[0]) ** 2
    constant = np.log1p(1 / square) - 1 / (1 + square)  # cancels: float64
    return 0.5 * (constant + mean_per_image(jnp.square(y)) / (1 + square)) / math.log(2)
