"""Deterministic sampling with Heun's method (EDM Algorithm 1, sigma(t) = t, s = 1)."""

from __future__ import annotations

import jax.numpy as jnp

from edm_jax.progress import ReportFn
from edm_jax.samplers import loop
from edm_jax.typing import Array, ArrayLike, DenoiseFn


def euler_step(
    denoise: DenoiseFn, x: Array, sigma: ArrayLike, sigma_next: ArrayLike
) -> tuple[Array, Array]:
    """One Euler step of dx/dsigma = (x - D(x; sigma)) / sigma; 1 network call.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigma, any shape.
      sigma, sigma_next: scalars; to sigma_next = 0 the step lands exactly on D.

    Returns:
      The state at sigma_next, and D(x; sigma); both of the shape of x.
    """
    denoised = loop.evaluate(denoise, x, sigma)
    # D + (sigma'/sigma)(x - D) is x + (sigma' - sigma) d, and exactly D at sigma' = 0.
    return denoised + (sigma_next / sigma) * (x - denoised), denoised


def heun_step(
    denoise: DenoiseFn, x: Array, sigma: ArrayLike, sigma_next: ArrayLike
) -> tuple[Array, Array]:
    """One step of Heun's method (EDM Algorithm 1, lines 4-8); 2 network calls.

        d = (x - D(x; sigma)) / sigma,   x' = x + (sigma' - sigma) d
        d' = (x' - D(x'; sigma')) / sigma',   result = x + (sigma' - sigma) (d + d') / 2

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigma, any shape.
      sigma, sigma_next: scalars; sigma_next > 0.

    Returns:
      The state at sigma_next, and D(x; sigma); both of the shape of x.
    """
    denoised = loop.evaluate(denoise, x, sigma)
    d = (x - denoised) / sigma
    x_next = x + (sigma_next - sigma) * d
    d_prime = (x_next - loop.evaluate(denoise, x_next, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (d + d_prime) / 2, denoised


def sample_heun(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    *,
    trajectory: bool = False,
    progress: bool | ReportFn = False,
    remat: bool = False,
) -> Array | loop.Trajectory:
    """Deterministic sampling (EDM Algorithm 1); 2N - 1 network calls.

    Args:
      denoise: D(x; sigma); sigma arrives as a scalar of the dtype of the state.
      x: state at noise level sigmas[0], that is sigmas[0] times standard normal
        noise; any shape.  Its dtype (at least float32) is the precision of the state.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0, as karras_sigmas
        makes them.  May be traced: new values never recompile.
      trajectory: return every state instead of the last.
      progress: show progress from inside the compiled loop (`loop.scan`).
      remat: recompute the network in the backward pass (`loop.scan`).

    Returns:
      The sample, of the shape of x, or a Trajectory.

    Raises:
      ValueError: for a grid of the wrong shape, or (where the values are known) one
        that does not decrease to 0.
    """
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    sigmas = jnp.asarray(sigmas, x.dtype)

    def step(x: Array, sigma: Array, sigma_next: Array) -> tuple[Array, Array]:
        return heun_step(denoise, x, sigma, sigma_next)

    def last_step(x: Array, sigma: Array) -> tuple[Array, Array]:
        return euler_step(denoise, x, sigma, jnp.zeros_like(sigma))

    pairs = (sigmas[:-2], sigmas[1:-1])
    return loop.scan_steps(
        step,
        last_step,
        x,
        pairs,
        (sigmas[-2],),
        trajectory=trajectory,
        progress=progress,
        remat=remat,
    )
