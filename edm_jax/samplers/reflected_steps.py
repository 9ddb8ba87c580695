"""Single steps of reflected diffusion: towards the data, and Langevin dynamics at one level.

    reflect      x' = fold(x + (1 + kappa^2)/2 v s + kappa sqrt(v) n)
    project      x' = clip(x + (1 + kappa^2)/2 v s + kappa sqrt(v) n)
    threshold    x' = clip(x + (1 + kappa^2)/2 v s) + kappa sqrt(v) n

with v = sigma^2 - sigma'^2 and s the score.  kappa = 1 is the reflected reverse SDE by Euler
and Maruyama, 0 its probability-flow ODE by Euler in sigma^2, and all in between have the
same marginals.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from edm_jax.domains.box import Box
from edm_jax.samplers import loop
from edm_jax.typing import Array, ArrayLike, DenoiseFn


def reverse_mean(
    x: Array, denoised: Array, sigma: ArrayLike, variance: ArrayLike, kappa: ArrayLike
) -> Array:
    """x + (1 + kappa^2)/2 v s with s = (D - x)/sigma^2; arguments as `reflected_step`."""
    share = 0.5 * (1 + jnp.square(kappa)) * variance / jnp.square(sigma)
    return x + (share * (denoised - x)).astype(x.dtype)


def _reflect(mean: Array, noise: Array, box: Box) -> Array:
    return box.fold(mean + noise)


def _project(mean: Array, noise: Array, box: Box) -> Array:
    return box.clip(mean + noise)


def _threshold(mean: Array, noise: Array, box: Box) -> Array:
    return box.clip(mean) + noise


BOUNDARIES: dict[str, Callable[[Array, Array, Box], Array]] = {
    "reflect": _reflect,
    "project": _project,
    "threshold": _threshold,
}


def reflected_step(
    denoise: DenoiseFn,
    x: Array,
    sigma: ArrayLike,
    variance: ArrayLike,
    noise: Array,
    *,
    box: Box,
    kappa: ArrayLike = 1.0,
    boundary: str = "reflect",
) -> tuple[Array, Array]:
    """x' = fold(x + (1 + kappa^2)/2 v s + kappa sqrt(v) n); 1 network call.

    Args:
      denoise: D(x; sigma), called inside the box only; with "threshold" x leaves the box by
        its noise, and D must be continued (`Box.lift`).
      x: state at noise level sigma.
      sigma: scalar, > 0.
      variance: v, the decrease of sigma^2, at most sigma^2; a scalar.
      noise: standard normal, of the shape of x.
      box: the domain.
      kappa: noise relative to that of the reverse SDE, at least 0.
      boundary: "reflect", or "project" or "threshold" for the other rows above.

    Returns:
      The new state and D(x; sigma), both of the shape of x.
    """
    denoised = loop.evaluate(denoise, x, sigma)
    mean = reverse_mean(x, denoised, sigma, variance, kappa)
    return BOUNDARIES[boundary](mean, kappa * jnp.sqrt(variance) * noise, box), denoised


def _image_norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True))


def langevin_move(
    x: Array,
    denoised: Array,
    sigma: ArrayLike,
    noise: Array,
    snr: ArrayLike,
    box: Box,
    max_correction: ArrayLike,
) -> Array:
    """The new state of `reflected_langevin_step`."""
    score = (denoised - x) / jnp.square(sigma)
    snr = jnp.asarray(snr, x.dtype)
    snr = snr.reshape(snr.shape + (1,) * (x.ndim - snr.ndim)) if snr.ndim else snr
    most = max_correction * jnp.square(sigma)
    # eps |s|^2 = 2 (snr |n|)^2: compared before it is divided, it cannot be infinite.
    product, size = 2 * jnp.square(snr * _image_norm(noise)), jnp.square(_image_norm(score))
    within = product < most * size
    eps = jnp.where(within, product / jnp.where(within, size, 1), most)
    eps = jnp.where(sigma > box.length, 0, eps).astype(x.dtype)
    return box.fold(x + eps * score + jnp.sqrt(2 * eps) * noise)


def reflected_langevin_step(
    denoise: DenoiseFn,
    x: Array,
    sigma: ArrayLike,
    noise: Array,
    snr: ArrayLike,
    *,
    box: Box,
    max_correction: ArrayLike = 1.0,
) -> tuple[Array, Array]:
    """A step of reflected Langevin dynamics at a fixed noise level; 1 network call.

        eps = 2 (snr |n| / |s|)^2,   x' = fold(x + eps s + sqrt(2 eps) n)

    The published eps grows without bound where the score vanishes, from sigma = L on, and
    ends in NaN.  Here it is at most ``max_correction`` sigma^2, and 0 above sigma = L, where
    the law is uniform already.  Norms are those of an image; the published program averages
    them over the batch, so that images depend on each other.

    Args:
      denoise: D(x; sigma), called inside the box only.
      x: ``(B, ...)`` state at noise level sigma, in the box.
      sigma: scalar, > 0.
      noise: standard normal, of the shape of x.
      snr: signal-to-noise ratio of the step, a scalar or ``(B,)``.
      box: the domain.
      max_correction: largest eps / sigma^2; infinity for the published step.

    Returns:
      The new state, in the box, and D(x; sigma); both of the shape of x.
    """
    denoised = loop.evaluate(denoise, x, sigma)
    return langevin_move(x, denoised, sigma, noise, snr, box, max_correction), denoised
