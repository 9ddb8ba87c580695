"""The variational bound of the reverse process: no ODE, one network call per noise level.

For data x (Kingma et al. 2021, in EDM's variables), with the prior N(0, S^2) and a decoder:

    -ln P(x) <= |x|^2 / (2 S^2)  +  int_{ln s0}^{ln S} E |x - D(x + sigma e; sigma)|^2 / sigma^2
                dtau  +  E[-ln P(x | x + s0 e)]

The integral is the denoising loss with weight 1 / sigma^2, evenly over tau = ln sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from edm_jax import seeds
from edm_jax.arguments import check_number, is_known
from edm_jax.likelihood.flow import check_batch, with_rows
from edm_jax.likelihood.quantisation import decoder_cost
from edm_jax.progress import ReportFn, scan
from edm_jax.pytree import short_repr
from edm_jax.samplers import loop
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key, PyTree


@short_repr
class Bound(NamedTuple):
    """Per image, in nats.

    Attributes:
      log_likelihood: ``(B,)`` an unbiased estimate of the lower bound of ln P(x).
      standard_error: ``(B,)`` of the estimate, from differences between neighbouring strata,
        and hence rather too large.
      step_difference: ``(B,)`` the estimate less that from one level in two.
      prior, diffusion, reconstruction: ``(B,)`` the three terms of -log_likelihood.
    """

    log_likelihood: Array
    standard_error: Array
    step_difference: Array
    prior: Array
    diffusion: Array
    reconstruction: Array


def stratified_levels(
    key: Key, index: Array, count: int, sigma_min: Array, sigma_max: Array, batch: int
) -> Array:
    """``(B,)`` levels, even in ln sigma within stratum ``index`` of ``count``."""
    place = (index + seeds.uniform(key, (batch,), sigma_min.dtype)) / count
    return sigma_min * jnp.exp(place * jnp.log(sigma_max / sigma_min))


def check_num_levels(num_levels: int) -> None:
    """Raise ValueError unless a number of strata is even and at least 2."""
    if num_levels != int(num_levels) or num_levels < 2 or num_levels % 2:
        raise ValueError(
            f"num_levels must be an even integer >= 2, got {num_levels}: the error is estimated "
            "from pairs of strata"
        )


def integral(
    term: Callable[[Array, Key], Array],
    key: Key,
    sigma_min: Array,
    sigma_max: Array,
    num_levels: int,
    batch: int,
    progress: bool | ReportFn = False,
) -> tuple[Array, Array, Array]:
    """The integral of a noisy term over ln sigma, one level drawn in each of equal strata.

    Args:
      term: ``(sigma (B,), key) -> (B,)``, an unbiased estimate at each image's level.
      key: ``(B,)`` keys, one per image, or one key.
      sigma_min, sigma_max: the ends, scalars of the term's dtype.
      num_levels: strata, an even number.
      batch: B.
      progress: as in `progress.scan`.

    Returns:
      ``(B,)`` each of the estimate, its standard error, and what the estimate from one level
      in two gives more.
    """

    def at_level(state: tuple, k: Array) -> tuple[tuple, Array]:
        at = seeds.bound_key(key, k)
        level_key = seeds.bound_key(at, 0)
        sigma = stratified_levels(level_key, k, num_levels, sigma_min, sigma_max, batch)
        return state, term(sigma, seeds.bound_key(at, 1))

    _, terms = scan(at_level, (), (jnp.arange(num_levels),), progress)
    width = jnp.log(sigma_max / sigma_min)
    value = width * jnp.mean(terms, axis=0)
    pairs = terms.reshape(num_levels // 2, 2, batch)
    gaps = pairs[:, 0] - pairs[:, 1]
    # Var of the mean of K independent terms, each pair's variances estimated by its gap.
    error = width * jnp.sqrt(jnp.sum(jnp.square(gaps), axis=0)) / num_levels
    # One of each pair, chosen at random, is a stratified estimate from half the levels.
    coins = seeds.uniform(seeds.bound_key(key, num_levels), (batch, num_levels // 2)) < 0.5
    half = width * jnp.mean(jnp.where(coins.T, pairs[:, 0], pairs[:, 1]), axis=0)
    return value, error, half - value


def elbo(
    denoise: DenoiseFn,
    x: Array,
    key: Key,
    *,
    sigma_min: ArrayLike = 0.002,
    sigma_max: ArrayLike = 80.0,
    num_levels: int = 128,
    levels: ArrayLike | None = None,
    index: Array | None = None,
    table: ArrayLike | None = None,
    rows: PyTree | None = None,
    progress: bool | ReportFn = False,
) -> Bound:
    """A Monte Carlo estimate of the variational bound, stratified over ln sigma.

    Args:
      denoise: D(x; sigma), called with sigma ``(B,)``; with ``rows`` as D(x, sigma, rows).
      x: ``(B, ...)`` data, any shape.
      key: ``(B,)`` keys, one per image, or one key.
      sigma_min, sigma_max: s0 and S, may be traced.
      num_levels: K, even: strata of equal width in ln sigma, with one level and one network
        call of each image in each.
      levels: ``(L,)`` values that an element of discrete data takes, for the level decoder
        (`quantisation.decoder_nats`).  Without, the decoder is N(z, s0^2), and what is bounded
        is the density of the model's data plus noise of deviation s0.
      index: ``(B, ...)`` integers with ``x == levels[index]``; by default the nearest.
      table: ``(M,)`` noise levels that the network knows, if it rounds (iDDPM): the estimate
        then evaluates D at the nearest of them.
      rows: pytree with leading axes B that the denoiser takes, such as label rows.
      progress: as in `progress.scan`.

    Returns:
      Bound.

    Raises:
      ValueError: for a guided denoiser, an odd or small num_levels, or a bad range.
    """
    denoise = with_rows(denoise, rows)
    check_batch(x)
    check_num_levels(num_levels)
    check_number("sigma_min", sigma_min, above=0)
    if is_known(sigma_min, sigma_max):
        check_number("sigma_max", sigma_max, above=float(sigma_min))
    x = jnp.asarray(x, loop.state_dtype(x))
    low, high = jnp.asarray(sigma_min, x.dtype), jnp.asarray(sigma_max, x.dtype)
    batch, size = x.shape[0], math.prod(x.shape[1:])
    event = tuple(range(1, x.ndim))
    seeds.check_keys(key, x.shape)

    def term(sigma: Array, key: Key) -> Array:
        """|x - D|^2 / sigma^2."""
        if table is not None:
            sigma = _nearest(sigma, jnp.asarray(table, x.dtype))
        noise = seeds.normal(key, x.shape, x.dtype)
        column = sigma.reshape((batch,) + (1,) * len(event))
        error = (x - loop.evaluate(denoise, x + column * noise, sigma)) / column
        return jnp.sum(jnp.square(error), axis=event)

    diffusion, error, difference = integral(term, key, low, high, num_levels, batch, progress)
    prior = 0.5 * jnp.sum(jnp.square(x / high), axis=event)
    if levels is None:
        reconstruction = size * (0.5 * math.log(2 * math.pi * math.e) + jnp.log(low))
        reconstruction = jnp.full((batch,), reconstruction, x.dtype)
    else:
        levels = jnp.asarray(levels, x.dtype)
        index = _nearest_index(x, levels) if index is None else index
        reconstruction = decoder_cost(index, levels, low).astype(x.dtype)
    total = -(prior + diffusion + reconstruction)
    return Bound(total, error, difference, prior, diffusion, reconstruction)


def _nearest_index(values: Array, ascending: Array) -> Array:
    middles = (ascending[1:] + ascending[:-1]) / 2
    return jnp.searchsorted(middles, values)


def _nearest(values: Array, ascending: Array) -> Array:
    return ascending[_nearest_index(values, ascending)]
