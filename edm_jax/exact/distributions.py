"""Distributions whose denoiser, score, density and flow are known exactly.

A test bed: a sampler run on `denoise` of one of these has no network error, so what
is left is the sampler's own.  All are pytrees of numbers, of any data shape, and
compute in the dtype of x (float64 in 64-bit mode).

x is ``(..., *event)``, where event is the shape of one data point; sigma is a scalar
or has the shape of leading axes of x.  With event = () every element of x is a data
point of its own.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import check_number
from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike, Key


class ExactDistribution(Protocol):
    """What the test bed offers of p(x; sigma), the data blurred with noise sigma."""

    def denoise(self, x: Array, sigma: ArrayLike) -> Array: ...

    def score(self, x: Array, sigma: ArrayLike) -> Array: ...

    def log_density(self, x: Array, sigma: ArrayLike) -> Array: ...

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Array: ...


def _column(sigma: ArrayLike, x: Array) -> Array:
    """sigma with trailing axes, so that it broadcasts against x."""
    sigma = jnp.asarray(sigma, x.dtype)
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))


def _rows(value: ArrayLike, x: Array) -> Array:
    """A per-event value with leading axes, so that it broadcasts against x."""
    value = jnp.asarray(value, x.dtype)
    return value.reshape((1,) * (x.ndim - value.ndim) + value.shape)


def _float(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@pytree_dataclass
class Gaussian:
    """Independent Gaussian elements.

    Attributes:
      mean: ``event``.
      std: ``event`` or a scalar, >= 0; 0 is a point mass.
    """

    mean: ArrayLike = 0.0
    std: ArrayLike = 0.5

    def __post_init__(self) -> None:
        check_number("mean", self.mean)
        check_number("std", self.std, least=0)

    def _moments(self, x: Array, sigma: ArrayLike) -> tuple[Array, Array, Array]:
        """Mean, data variance, and variance of p(x; sigma)."""
        variance = jnp.square(_rows(self.std, x))
        return _rows(self.mean, x), variance, variance + jnp.square(_column(sigma, x))

    def denoise(self, x: Array, sigma: ArrayLike) -> Array:
        """D = mean + std^2 / (std^2 + sigma^2) (x - mean), of the shape of x."""
        x = _float(x)
        mean, variance, total = self._moments(x, sigma)
        return mean + variance / total * (x - mean)

    def score(self, x: Array, sigma: ArrayLike) -> Array:
        """Gradient of log p(x; sigma), of the shape of x."""
        x = _float(x)
        mean, _, total = self._moments(x, sigma)
        return (mean - x) / total

    def log_density(self, x: Array, sigma: ArrayLike = 0.0) -> Array:
        """log p(x; sigma), of the shape of x without the event axes."""
        x = _float(x)
        mean, _, total = self._moments(x, sigma)
        terms = -0.5 * (jnp.square(x - mean) / total + jnp.log(2 * math.pi * total))
        event = tuple(range(x.ndim - np.ndim(self.mean), x.ndim))
        return jnp.sum(jnp.broadcast_to(terms, x.shape), axis=event)

    def flow(self, x: Array, sigma: ArrayLike, sigma_to: ArrayLike) -> Array:
        """Exact probability-flow solution from noise level sigma to sigma_to.

        mean + (x - mean) sqrt((std^2 + sigma_to^2) / (std^2 + sigma^2))
        """
        x = _float(x)
        mean, _, total = self._moments(x, sigma)
        _, _, total_to = self._moments(x, sigma_to)
        return mean + (x - mean) * jnp.sqrt(total_to / total)

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Array:
        """Data of shape ``(*shape, *event)``."""
        noise = jax.random.normal(key, (*shape, *np.shape(self.mean)), _float(0.0).dtype)
        return _rows(self.mean, noise) + _rows(self.std, noise) * noise


@pytree_dataclass
class GaussianMixture:
    """A mixture of isotropic Gaussians.

    Attributes:
      means: ``(K, *event)``.
      stds: ``(K,)``, or a scalar for all; 0 makes a component a point.
      weights: ``(K,)`` positive, normalised on use; None for equal ones.
    """

    means: ArrayLike
    stds: ArrayLike = 0.0
    weights: ArrayLike | None = None

    def __post_init__(self) -> None:
        check_number("means", self.means)
        check_number("stds", self.stds, least=0)
        if self.weights is not None:
            check_number("weights", self.weights, above=0)

    def _parts(self, x: Array, sigma: ArrayLike) -> tuple[Array, Array, Array, Array]:
        """Differences, variances and log weights, with the component axis in front.

        Returns:
          x - mean_k ``(K, ..., *event)``; data variance and variance of p(x; sigma)
          per component, broadcastable to it; log w_k N_k(x) ``(K, ...)``.
        """
        means = jnp.asarray(self.means, x.dtype)
        num, event_ndim = means.shape[0], means.ndim - 1
        batch = x.ndim - event_ndim
        delta = x[None] - means.reshape((num,) + (1,) * batch + means.shape[1:])
        stds = jnp.broadcast_to(jnp.asarray(self.stds, x.dtype), (num,))
        variance = jnp.square(stds).reshape((num,) + (1,) * x.ndim)
        total = variance + jnp.square(_column(sigma, x))[None]
        weights = jnp.ones(num, x.dtype) if self.weights is None else self.weights
        log_w = jax.nn.log_softmax(jnp.log(jnp.asarray(weights, x.dtype)))
        event = tuple(range(1 + batch, delta.ndim))
        size = math.prod(means.shape[1:])
        per_event = total.reshape(total.shape[: 1 + batch])
        log_p = -0.5 * (
            jnp.sum(jnp.square(delta), axis=event) / per_event
            + size * jnp.log(2 * math.pi * per_event)
        )
        return delta, variance, total, log_p + log_w.reshape((num,) + (1,) * batch)

    def _posterior(self, log_p: Array, like: Array) -> Array:
        """Probability of each component given x, broadcastable to ``like``."""
        posterior = jax.nn.softmax(log_p, axis=0)
        return posterior.reshape(posterior.shape + (1,) * (like.ndim - posterior.ndim))

    def denoise(self, x: Array, sigma: ArrayLike) -> Array:
        """D = sum_k p(k | x) (mean_k + std_k^2 / (std_k^2 + sigma^2) (x - mean_k))."""
        x = _float(x)
        delta, variance, total, log_p = self._parts(x, sigma)
        means = jnp.asarray(self.means, x.dtype)
        means = means.reshape(means.shape[:1] + (1,) * (delta.ndim - means.ndim) + means.shape[1:])
        return jnp.sum(self._posterior(log_p, delta) * (means + variance / total * delta), axis=0)

    def score(self, x: Array, sigma: ArrayLike) -> Array:
        """Gradient of log p(x; sigma), of the shape of x."""
        x = _float(x)
        delta, _, total, log_p = self._parts(x, sigma)
        return jnp.sum(self._posterior(log_p, delta) * (-delta / total), axis=0)

    def log_density(self, x: Array, sigma: ArrayLike = 0.0) -> Array:
        """log p(x; sigma), of the shape of x without the event axes."""
        return jax.nn.logsumexp(self._parts(_float(x), sigma)[-1], axis=0)

    def log_odds(self, x: Array, sigma: ArrayLike) -> Array:
        """log P(X <= x) - log P(X > x) under p(x; sigma); for event = () only."""
        if np.ndim(self.means) != 1:
            raise ValueError(
                f"log_odds needs scalar data points, means of shape (K,), got "
                f"{np.shape(self.means)}"
            )
        x = _float(x)
        delta, _, total, _ = self._parts(x, sigma)
        weights = jnp.ones(delta.shape[0]) if self.weights is None else self.weights
        log_w = jax.nn.log_softmax(jnp.log(jnp.asarray(weights, x.dtype)))
        log_w = log_w.reshape(log_w.shape + (1,) * x.ndim)
        scaled = delta / jnp.sqrt(total)
        below = jax.nn.logsumexp(log_w + jax.scipy.special.log_ndtr(scaled), axis=0)
        above = jax.nn.logsumexp(log_w + jax.scipy.special.log_ndtr(-scaled), axis=0)
        return below - above

    def flow(self, x: Array, sigma: ArrayLike, sigma_to: ArrayLike) -> Array:
        """Exact probability-flow solution from sigma to sigma_to, for scalar data.

        In one dimension the flow keeps the order of points, so it keeps the
        cumulative probability: P(X' <= x') = P(X <= x), solved by bisection to the
        precision of x.  Event shapes other than () have no closed form.

        Args:
          x: any shape.
          sigma, sigma_to: scalars, or of the shape of leading axes of x; std_k and
            sigma_to must not both be 0.

        Returns:
          Of the shape of x.
        """
        x = _float(x)
        delta, _, total, _ = self._parts(x, sigma)
        _, _, total_to, _ = self._parts(x, sigma_to)
        # Each component alone would move x here; the mixture moves it in between.
        ends = x[None] - delta + delta * jnp.sqrt(total_to / total)
        return self._where_log_odds_are(self.log_odds(x, sigma), ends, sigma_to)

    def quantile(self, p: ArrayLike, sigma: ArrayLike = 0.0) -> Array:
        """Where P(X <= x) = p under p(x; sigma); for event = () only.

        Args:
          p: any shape, between 0 and 1.
          sigma: scalar, or of the shape of leading axes of p.
        """
        p = _float(p)
        delta, _, total, _ = self._parts(jnp.zeros_like(p), sigma)
        ends = -delta + jnp.sqrt(total) * jax.scipy.special.ndtri(p)[None]
        return self._where_log_odds_are(jnp.log(p) - jnp.log1p(-p), ends, sigma)

    def _where_log_odds_are(self, target: Array, ends: Array, sigma: ArrayLike) -> Array:
        """The x between the extremes of ``ends`` (axis 0) with the given log odds."""

        def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = low + (high - low) / 2
            below = self.log_odds(middle, sigma) < target
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        low, high = jnp.min(ends, axis=0), jnp.max(ends, axis=0)
        bits = jnp.finfo(target.dtype).nmant + 12  # the bracket may be wide beside the answer
        low, high = jax.lax.fori_loop(0, bits, halve, (low, high))
        found = jax.lax.stop_gradient(low + (high - low) / 2)
        # One Newton step: no change of the value beyond rounding, but the derivative
        # of the implicit function, which bisection does not have.
        odds, slope = jax.jvp(lambda x: self.log_odds(x, sigma), (found,), (jnp.ones_like(found),))
        return found - (odds - target) / jax.lax.stop_gradient(slope)

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Array:
        """Data of shape ``(*shape, *event)``."""
        key_component, key_noise = jax.random.split(key)
        means = _float(self.means)
        num = means.shape[0]
        weights = jnp.ones(num) if self.weights is None else jnp.asarray(self.weights)
        index = jax.random.categorical(key_component, jnp.log(weights), shape=shape)
        stds = jnp.broadcast_to(jnp.asarray(self.stds, means.dtype), (num,))[index]
        noise = jax.random.normal(key_noise, (*shape, *means.shape[1:]), means.dtype)
        return means[index] + _column(stds, noise) * noise


@pytree_dataclass
class FiniteData:
    """A finite data set; its denoiser is the ideal one of EDM section B.3.

    Attributes:
      points: ``(K, *event)``, equally likely.
      chunk: how many points to compare with x at once; None for all.  Bounds the
        memory for real data sets.
    """

    points: ArrayLike
    chunk: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        check_number("points", self.points)

    def denoise(self, x: Array, sigma: ArrayLike) -> Array:
        """D = sum_k y_k softmax_k(-|x - y_k|^2 / (2 sigma^2)), of the shape of x."""
        return self._summary(x, sigma)[0]

    def score(self, x: Array, sigma: ArrayLike) -> Array:
        """Gradient of log p(x; sigma), of the shape of x."""
        x = _float(x)
        return (self.denoise(x, sigma) - x) / jnp.square(_column(sigma, x))

    def log_density(self, x: Array, sigma: ArrayLike) -> Array:
        """log p(x; sigma) for sigma > 0, of the shape of x without the event axes."""
        x = _float(x)
        size = math.prod(np.shape(self.points)[1:])
        batch = x.ndim - (np.ndim(self.points) - 1)
        sigma = _column(sigma, x.reshape(x.shape[:batch] + (-1,))[..., 0])
        log_sum = self._summary(x, sigma)[1]
        return (
            log_sum
            - math.log(np.shape(self.points)[0])
            - 0.5 * size * jnp.log(2 * math.pi * sigma**2)
        )

    def flow(self, x: Array, sigma: ArrayLike, sigma_to: ArrayLike) -> Array:
        """Exact probability-flow solution, for a single point or for scalar data.

        To sigma_to = 0 it ends on a point: the one whose share of the cumulative
        probability x falls into.  Arguments and result as `GaussianMixture.flow`.
        """
        x = _float(x)
        if np.shape(self.points)[0] == 1:
            point = _rows(jnp.asarray(self.points)[0], x)
            return point + (x - point) * (_column(sigma_to, x) / _column(sigma, x))
        mixture = GaussianMixture(self.points)
        sigma_to = _column(sigma_to, x)
        moved = mixture.flow(x, sigma, jnp.where(sigma_to > 0, sigma_to, 1))
        points = jnp.sort(_float(self.points))
        share = jax.nn.sigmoid(mixture.log_odds(x, sigma)) * points.shape[0]
        ends = points[jnp.clip(jnp.floor(share).astype(int), 0, points.shape[0] - 1)]
        return jnp.where(sigma_to > 0, moved, ends.astype(x.dtype))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Array:
        """Data points drawn with replacement, of shape ``(*shape, *event)``."""
        points = _float(self.points)
        return points[jax.random.randint(key, shape, 0, points.shape[0])]

    def _summary(self, x: Array, sigma: ArrayLike) -> tuple[Array, Array]:
        """The softmax average of the points, and the log of the sum of weights."""
        x = _float(x)
        points = jnp.asarray(self.points, x.dtype)
        event_ndim = points.ndim - 1
        batch = x.ndim - event_ndim
        chunk = self.chunk or points.shape[0]
        if points.shape[0] % chunk:
            raise ValueError(
                f"chunk must divide the number of points {points.shape[0]}, got {chunk}"
            )
        scale = -0.5 / jnp.square(_column(sigma, x))

        def add_chunk(carry: tuple, chunk_points: Array) -> tuple[tuple, None]:
            # Softmax over a stream: rescale what came before to the new maximum.
            top, total, mean = carry
            y = chunk_points.reshape((chunk,) + (1,) * batch + chunk_points.shape[1:])
            event = tuple(range(1 + batch, 1 + x.ndim))
            logits = jnp.sum(scale[None] * jnp.square(x[None] - y), axis=event)
            new_top = jnp.maximum(top, jnp.max(logits, axis=0))
            old, weights = jnp.exp(top - new_top), jnp.exp(logits - new_top[None])
            spread = weights.reshape(weights.shape + (1,) * event_ndim)
            mean = mean * old.reshape(old.shape + (1,) * event_ndim) + jnp.sum(spread * y, axis=0)
            return (new_top, total * old + jnp.sum(weights, axis=0), mean), None

        start = (
            jnp.full(x.shape[:batch], -jnp.inf, x.dtype),
            jnp.zeros(x.shape[:batch], x.dtype),
            jnp.zeros_like(x),
        )
        chunks = points.reshape((-1, chunk) + points.shape[1:])
        if chunks.shape[0] == 1:
            (top, total, mean), _ = add_chunk(start, chunks[0])
        else:
            (top, total, mean), _ = jax.lax.scan(add_chunk, start, chunks)
        return mean / total.reshape(total.shape + (1,) * event_ndim), top + jnp.log(total)
