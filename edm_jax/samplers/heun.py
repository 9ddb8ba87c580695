"""Deterministic sampling with Heun's method (EDM Algorithm 1, sigma(t) = t, s = 1)."""

from __future__ import annotations

from types import ModuleType
from typing import Unpack

import jax.numpy as jnp

from edm_jax.samplers import loop
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import SamplerInfo, two_calls
from edm_jax.samplers.rows import Rows, Stage
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


def heun_rows(xp: ModuleType, sigma: ArrayLike, sigma_next: ArrayLike) -> Rows:
    """`heun_step` as coefficients, for every step; the last goes to 0 and is Euler's.

        u = (sigma'/sigma) x + (1 - sigma'/sigma) D_0,              D_1 = D(u; sigma')
        result = u + w (D_0 - D_1),    w = (sigma' - sigma) / (2 sigma')

    Args:
      xp: array module of the coefficients.
      sigma: ``(N,)`` level at the start of each step.
      sigma_next: ``(N,)`` level at its end, the last one 0.

    Returns:
      2N - 1 Rows.
    """
    now, after = sigma[:-1], sigma_next[:-1]
    keep, w = after / now, (after - now) / (2 * after)
    predict = Stage(now, keep, [1 - keep])
    correct = Stage(after, keep, [1 - keep + w, -w])
    return rows_lib.staged(xp, [predict, correct], sigma[-1])


def sample_heun(
    denoise: DenoiseFn, x: Array, sigmas: ArrayLike, **options: Unpack[loop.LoopOptions]
) -> Array | loop.Trajectory:
    """Deterministic sampling (EDM Algorithm 1); 2N - 1 network calls.

    Args:
      denoise: D(x; sigma); sigma arrives as a scalar of the dtype of the state.
      x: state at noise level sigmas[0], that is sigmas[0] times standard normal
        noise; any shape.  Its dtype (at least float32) is the precision of the state.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0, as karras_sigmas
        makes them.  May be traced: new values never recompile.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.

    Raises:
      ValueError: for a grid of the wrong shape, or (where the values are known) one
        that does not decrease to 0.
    """
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    xp, (levels,) = rows_lib.concrete(sigmas)
    rows = heun_rows(xp, levels[:-1], levels[1:])
    return rows_lib.sample_rows(denoise, x, sigmas, rows, **options)


PROMISES = (SamplerInfo("heun", sample_heun, order=2, nfe_fn=two_calls),)
