"""Bounded data whose reflected denoiser, score and density are known exactly.

The counterpart of `edm_jax.exact` for a box: a sampler run on `denoise` of one of these has
no network error.  Use 64-bit mode where more than six digits matter.

x is ``(..., *event)``, sigma a scalar or of the shape of leading axes of x.  With event = ()
every element of x is a data point of its own.
"""

from __future__ import annotations

import abc
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm as normal

from edm_jax.arguments import check_number
from edm_jax.domains.box import Box, column
from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike, Key

# Gaussian images beyond 9 standard deviations weigh less than 1e-18.
_REACH = 9.0


class _Mixture(abc.ABC):
    """sum_k w_k prod_i f_k,i(x_i): everything but the factors f."""

    @abc.abstractmethod
    def _factors(self, x: Array, sigma: Array) -> tuple[Array, Array]:
        """ln f and sigma d/dx ln f, ``(K, ..., *event)``, for x and sigma with a unit axis."""

    def _parts(self, x: Array, sigma: ArrayLike) -> tuple[Array, Array]:
        """ln w_k p_k(x) ``(K, ...)`` and sigma times the score of p_k ``(K, ..., *event)``."""
        shape = np.shape(self.points)
        event_ndim = len(shape) - 1
        log_f, slope = self._factors(x[None], column(sigma, x)[None])
        log_p = jnp.sum(log_f, axis=tuple(range(log_f.ndim - event_ndim, log_f.ndim)))
        weights = jnp.ones(shape[0]) if self.weights is None else jnp.asarray(self.weights)
        log_w = jax.nn.log_softmax(jnp.log(weights.astype(x.dtype)))
        return log_p + log_w.reshape(shape[:1] + (1,) * (log_p.ndim - 1)), slope

    def _rows(self, value: ArrayLike, x: Array) -> Array:
        """``(K, *event)`` with axes in between, to broadcast against ``(1, ..., *event)``."""
        value = jnp.asarray(value, x.dtype)
        return value.reshape(value.shape[:1] + (1,) * (x.ndim - value.ndim) + value.shape[1:])

    def scaled_score(self, x: Array, sigma: ArrayLike) -> Array:
        """sigma times the gradient of ln p(x; sigma), of the shape of x."""
        x = _float(x)
        log_p, slope = self._parts(x, sigma)
        posterior = jax.nn.softmax(log_p, axis=0)
        posterior = posterior.reshape(posterior.shape + (1,) * (slope.ndim - posterior.ndim))
        return jnp.sum(posterior * slope, axis=0)

    def score(self, x: Array, sigma: ArrayLike) -> Array:
        """The gradient of ln p(x; sigma), of the shape of x."""
        x = _float(x)
        return self.scaled_score(x, sigma) / column(sigma, x)

    def denoise(self, x: Array, sigma: ArrayLike) -> Array:
        """D = x + sigma^2 grad ln p(x; sigma), for x in the box; it may leave the box."""
        x = _float(x)
        return x + column(sigma, x) * self.scaled_score(x, sigma)

    def log_density(self, x: Array, sigma: ArrayLike) -> Array:
        """ln p(x; sigma) for sigma > 0, of the shape of x without the event axes."""
        return jax.nn.logsumexp(self._parts(_float(x), sigma)[0], axis=0)

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Array:
        """Data of shape ``(*shape, *event)``."""
        key_component, key_within = jax.random.split(key)
        points = _float(self.points)
        weights = jnp.ones(points.shape[0]) if self.weights is None else jnp.asarray(self.weights)
        index = jax.random.categorical(key_component, jnp.log(weights), shape=shape)
        return self._within(key_within, points[index])

    def _within(self, key: Key, points: Array) -> Array:
        return points


def _float(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@pytree_dataclass
class ReflectedPoints(_Mixture):
    """A finite data set in a box.

    Attributes:
      points: ``(K, *event)``, in the box, faces included.
      weights: ``(K,)`` positive, normalised on use; None for equal ones.
      box: where they live.
    """

    points: ArrayLike
    weights: ArrayLike | None = None
    box: Box = Box()

    def __post_init__(self) -> None:
        check_number("points", self.points)
        self.box.check(self.points, "points")
        if self.weights is not None:
            check_number("weights", self.weights, above=0)

    def _factors(self, x: Array, sigma: Array) -> tuple[Array, Array]:
        points = self._rows(self.points, x)
        shape = jnp.broadcast_shapes(points.shape, x.shape)
        x, y, sigma = (jnp.broadcast_to(a, shape) for a in (x, points, sigma))
        return self.box.log_kernel(x, y, sigma), self.box.scaled_score(x, y, sigma)


@pytree_dataclass
class ReflectedCells(_Mixture):
    """Uniform cells in a box: discrete data, dequantised.

    Attributes:
      points: ``(K, *event)``, the lower corners of the cells.
      width: of every cell along every axis, a scalar; the cells must lie in the box.
      weights: ``(K,)`` positive, normalised on use; None for equal ones.
      box: where they live.
    """

    points: ArrayLike
    width: ArrayLike
    weights: ArrayLike | None = None
    box: Box = Box()

    def __post_init__(self) -> None:
        check_number("points", self.points)
        check_number("width", self.width, above=0)
        self.box.check(self.points, "points")
        # Corners such as 1 - 1/3 + 1/3 may round to just above 1.
        self.box.check(np.asarray(self.points) + np.asarray(self.width) * (1 - 1e-6), "cells")
        if self.weights is not None:
            check_number("weights", self.weights, above=0)

    def _factors(self, x: Array, sigma: Array) -> tuple[Array, Array]:
        """The kernel integrated over a cell: by images below sigma = L, by cosines above."""
        low, length = (jnp.asarray(a, x.dtype) for a in (self.box.low, self.box.length))
        start = (self._rows(self.points, x) - low) / length
        width = jnp.asarray(self.width, x.dtype) / length
        position, scaled = (x - low) / length, sigma / length
        density, slope = cell_density(position, start, width, scaled)
        floor = jnp.finfo(x.dtype).tiny
        return jnp.log(jnp.maximum(density, floor) / length), slope / jnp.maximum(density, floor)

    def _within(self, key: Key, points: Array) -> Array:
        return points + self.width * jax.random.uniform(key, points.shape, points.dtype)


def cell_density(
    x: Array, start: ArrayLike, width: ArrayLike, sigma: ArrayLike
) -> tuple[Array, Array]:
    """The law on [0, 1] of a uniform cell blurred with sigma.

    Args:
      x: where, in [0, 1].
      start, width: of the cell, broadcastable to x.
      sigma: noise level, > 0, broadcastable to x.

    Returns:
      Density, and sigma times its derivative.
    """
    x, start, width, sigma = jnp.broadcast_arrays(x, start, width, sigma)
    small = sigma <= 1.0
    by_images = _cell_by_images(x, start, width, jnp.where(small, sigma, 1.0))
    by_cosines = _cell_by_cosines(x, start, width, jnp.where(small, 1.0, sigma))
    return tuple(jnp.where(small, a, b) for a, b in zip(by_images, by_cosines, strict=True))


def _cell_by_images(x: Array, start: Array, width: Array, sigma: Array) -> tuple[Array, Array]:
    """Density and sigma times its derivative on [0, 1], sigma <= 1: sums of normal integrals."""
    reach = math.ceil(_REACH / 2)
    shift = 2 * jnp.arange(-reach, reach + 1, dtype=x.dtype).reshape(-1, *(1,) * x.ndim)
    x, start, width, sigma = (value[None] for value in (x, start, width, sigma))
    left = jnp.concatenate([start + shift, shift - start - width])
    a, b = (left - x) / sigma, (left + width - x) / sigma
    # Both ends on the lower side, where the difference is not one of numbers near 1.
    upper, lower = jnp.where(a > 0, -a, b), jnp.where(a > 0, -b, a)
    density = (normal.cdf(upper) - normal.cdf(lower)) / width
    slope = (normal.pdf(a) - normal.pdf(b)) / width
    return jnp.sum(density, axis=0), jnp.sum(slope, axis=0)


def _cell_by_cosines(x: Array, start: Array, width: Array, sigma: Array) -> tuple[Array, Array]:
    """The same for sigma >= 1."""
    density, slope = 1.0, 0.0
    for k in (1, 2, 3):
        # The mean of cos(pi k y) over the cell.
        mean = jnp.cos(math.pi * k * (start + width / 2)) * jnp.sinc(k * width / 2)
        amplitude = 2 * jnp.exp(-0.5 * jnp.square(math.pi * k * sigma)) * mean
        density = density + amplitude * jnp.cos(math.pi * k * x)
        slope = slope - sigma * math.pi * k * amplitude * jnp.sin(math.pi * k * x)
    return density, slope
