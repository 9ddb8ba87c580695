"""Likelihood of reflected models: the variational bound, and what the flow needs.

For data y of a box, with the kernel q and D* of it,

    -ln P(y) <= KL(q(x_S | y) || uniform) + int_{ln s0}^{ln S} E |D - D*|^2 / sigma^2 dtau
                + E[-ln P(y | x_s0)],        tau = ln sigma

The integral is the training loss with the likelihood weighting.  The probability flow needs
nothing new: it runs on the lift of D, with `UniformPrior` as the law at S,

    flow_log_likelihood(box.lift(denoise), x, sigmas, prior=UniformPrior(box))

Both speak of data blurred with s0, which is never 0.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from edm_jax import seeds
from edm_jax.arguments import check_number
from edm_jax.domains.box import Box, column
from edm_jax.likelihood.bound import Bound, check_num_levels, integral
from edm_jax.likelihood.flow import with_rows
from edm_jax.progress import ReportFn
from edm_jax.pytree import pytree_dataclass
from edm_jax.samplers import loop
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key, PyTree

# The chi-squared series has as many terms as matter at sigma = L/2.
_TERMS = (1, 2, 3, 4)


@pytree_dataclass
class UniformPrior:
    """The uniform law on a box, in the form in which the probability flow takes its prior.

    Attributes:
      box: the domain.
    """

    box: Box = Box()

    def log_ratio(self, x: Array, sigma_max: Array) -> Array:
        """ln p(x; S) without -d (ln(2 pi) / 2 + ln S): ``(B, ...)`` -> ``(B,)``."""
        normal = 0.5 * math.log(2 * math.pi) + jnp.log(jnp.asarray(sigma_max, x.dtype))
        return self.box.prior_log_density(x) + math.prod(x.shape[1:]) * normal


def prior_divergence(y: Array, sigma_max: ArrayLike, box: Box = Box()) -> Array:
    """A bound of KL(q(x_S | y) || uniform) that is tight for S above L.

    KL <= ln(1 + chi^2), where chi^2 of the cosine series is 2 sum_k E_k^2 cos(pi k y)^2.

    Args:
      y: ``(B, ...)`` data in the box.
      sigma_max: S, at least L/2.
      box: the domain.

    Returns:
      ``(B,)`` nats.
    """
    angle = math.pi / box.length * (y - box.low)
    scaled = math.pi / box.length * jnp.asarray(sigma_max, y.dtype)
    chi = sum(2 * jnp.exp(-jnp.square(k * scaled)) * jnp.square(jnp.cos(k * angle)) for k in _TERMS)
    return jnp.sum(jnp.log1p(chi), axis=tuple(range(1, y.ndim)))


def level_nats(
    x: Array,
    y: Array,
    sigma: ArrayLike,
    levels: ArrayLike,
    *,
    box: Box = Box(),
    weights: ArrayLike | None = None,
) -> Array:
    """-ln P(y | x) of the decoder that knows which levels there are, element by element.

        P(y | x) = w_y q(x | y; sigma) / sum_l w_l q(x | l; sigma)

    Args:
      x: data at noise level sigma, in the box.
      y: clean data, of the shape of x, every element one of the levels.
      sigma: noise level, > 0.
      levels: ``(K,)`` values that an element of y can have.
      box: the domain.
      weights: ``(K,)`` of the levels; None for equal ones, as every practical decoder has.

    Returns:
      Of the shape of x, nats.
    """
    levels = jnp.asarray(levels, x.dtype)
    weights = jnp.ones_like(levels) if weights is None else jnp.asarray(weights, x.dtype)

    def add(total: Array, level: tuple[Array, Array]) -> tuple[Array, None]:
        value, log_weight = level
        each = log_weight + box.log_kernel(x, jnp.full_like(x, value), sigma)
        return jnp.logaddexp(total, each), None

    # One level at a time: 256 of them beside a batch of images would be large.
    start = jnp.full_like(x, -jnp.inf)
    total, _ = jax.lax.scan(add, start, (levels, jnp.log(weights)))
    nearest = jnp.argmin(jnp.abs(y.reshape(-1, 1) - levels[None]), axis=-1).reshape(y.shape)
    return total - jnp.log(weights)[nearest] - box.log_kernel(x, y, sigma)


def diffusion_nats(
    denoise: DenoiseFn, y: Array, sigma: Array, noise: Array, box: Box = Box()
) -> Array:
    """|D - D*|^2 / sigma^2 of each image at a corrupted x: ``(B,)``.

    Args:
      denoise: D(x; sigma).
      y: ``(B, ...)`` data in the box.
      sigma: ``(B,)`` noise levels.
      noise: standard normal, of the shape of y.
      box: the domain.
    """
    x = box.corrupt(y, sigma, noise)
    scaled = (loop.evaluate(denoise, x, sigma) - x) / column(sigma, x)
    error = scaled - box.scaled_score(x, y, sigma)
    return jnp.sum(jnp.square(error), axis=tuple(range(1, y.ndim)))


def reflected_bound(
    denoise: DenoiseFn,
    y: Array,
    key: Key,
    *,
    sigma_min: ArrayLike = 0.02,
    sigma_max: ArrayLike = 10.0,
    num_levels: int = 128,
    levels: ArrayLike | None = None,
    rows: PyTree | None = None,
    box: Box = Box(),
    progress: bool | ReportFn = False,
) -> Bound:
    """A Monte Carlo estimate of the variational bound, stratified over ln sigma.

    Args:
      denoise: D(x; sigma) with sigma ``(B,)``; with ``rows`` as D(x, sigma, rows).
      y: ``(B, ...)`` data in the box.
      key: ``(B,)`` keys, one per image.
      sigma_min, sigma_max: s0 and S, the ends of what the model was trained on.
      num_levels: strata, and network calls; an even number.
      levels: ``(K,)`` values that an element of y can have, v/127.5 - 1 for bytes; then
        the bound is one of a probability.  None: the decoder is the kernel, and what is
        bounded is the density of the model's data blurred with s0.
      rows: pytree with leading axes B that the denoiser takes, such as label rows.
      box: the domain.
      progress: as in `progress.scan`.

    Returns:
      Bound; bits per dimension are -log_likelihood / (d ln 2).

    Raises:
      ValueError: for data outside the box, levels of noise that do not fit it, or an odd
        number of strata.
    """
    check_num_levels(num_levels)
    check_number("sigma_min", sigma_min, above=0)
    box.check(y)
    box.check_levels(sigma_min, sigma_max)
    denoise = with_rows(denoise, rows)
    y = jnp.asarray(y, loop.state_dtype(y))
    seeds.check_keys(key, y.shape)
    low, high = jnp.asarray(sigma_min, y.dtype), jnp.asarray(sigma_max, y.dtype)
    batch = y.shape[0]

    def term(sigma: Array, key: Key) -> Array:
        """|D - D*|^2 / sigma^2."""
        return diffusion_nats(denoise, y, sigma, seeds.normal(key, y.shape, y.dtype), box)

    diffusion, error, difference = integral(term, key, low, high, num_levels, batch, progress)
    prior = prior_divergence(y, high, box)
    last = seeds.bound_key(key, num_levels + 1)
    x = box.corrupt(y, low, seeds.normal(last, y.shape, y.dtype))
    if levels is None:
        nats = -box.log_kernel(x, y, low)
    else:
        nats = level_nats(x, y, low, levels, box=box)
    reconstruction = jnp.sum(nats.reshape(batch, -1), axis=1)
    total = -(prior + diffusion + reconstruction)
    return Bound(total, error, difference, prior, diffusion, reconstruction)
