"""DPM-Solver++ (Lu et al. 2022) in sigma form: 2S, 2M, 3M, and the SDE variants of 2M, 3M.

With lambda = -ln sigma the probability-flow ODE is dx/dlambda = D - x.  Its linear
part is solved exactly and D is extrapolated in lambda, from an extra evaluation (S)
or from earlier steps (M).  Networks of any scaling fit, as x = z / alpha.
"""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax import names
from edm_jax.arguments import check_number
from edm_jax.samplers import loop
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import Measured, SamplerInfo, two_calls
from edm_jax.samplers.rows import Rows, Stage, earlier, phi
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key

VARIANTS = {"midpoint": "midpoint", "taylor": "taylor"}


def dpmpp_2m_rows(
    sigmas: ArrayLike,
    *,
    eta: ArrayLike = 0.0,
    s_noise: ArrayLike = 1.0,
    variant: str = "midpoint",
    lower_order_final: bool = False,
    noisy: bool = False,
) -> Rows:
    """Rows of the second-order multistep rule.

        a = e^-g,  Q = 1 - e^-g,  g = (1 + eta) h,  r = h_{i-1} / h
        b_0 = Q + w,  b_1 = -w,  c = s_noise sigma' sqrt(1 - e^{-2 eta h})

    with w = Q / (2 r) ("midpoint"), or (1 - Q / g) / r ("taylor").

    Args:
      sigmas: ``(N+1,)`` grid.
      eta: noise of the SDE; 0 is the ODE.
      s_noise: scale of the added noise.
      variant: how the difference of D enters.
      lower_order_final: Euler for the step before the last.
      noisy: whether to return c.

    Returns:
      Rows with K = 2.
    """
    names.lookup(VARIANTS, variant, "variant")
    check_number("eta", eta, least=0)
    check_number("s_noise", s_noise, least=0)
    num_steps = np.shape(sigmas)[0] - 1
    xp, (sigmas, eta, s_noise) = rows_lib.concrete(sigmas, eta, s_noise)
    h = rows_lib.log_steps(xp, sigmas)
    g, r = (1 + eta) * h, earlier(xp, h, 1) / h
    q = -xp.expm1(-g)
    w = q / (2 * r) if variant == "midpoint" else g * phi(xp, 2, -g) / r
    w = xp.where(rows_lib.step_orders(num_steps, 2, lower_order_final) == 2, w, 0.0)
    c = s_noise * sigmas[1:-1] * xp.sqrt(-xp.expm1(-2 * eta * h)) if noisy else None
    return rows_lib.to_zero(xp, xp.exp(-g), [q + w, -w], c)


def dpmpp_3m_rows(
    sigmas: ArrayLike,
    *,
    kappa: ArrayLike = 1.0,
    eta: ArrayLike = 0.0,
    s_noise: ArrayLike = 1.0,
    variant: str = "midpoint",
    lower_order_final: bool = False,
    noisy: bool = False,
) -> Rows:
    """Rows of the third-order multistep rule.

    Args:
      sigmas: ``(N+1,)`` grid.
      kappa: weight of the second difference.  1 is the released rule, of order 2; 2 is
        what the Taylor expansion needs, of order 3 (see sample_dpmpp_3m).
      eta, s_noise: noise, as in dpmpp_2m_rows.
      variant: of the second step, as in dpmpp_2m_rows.
      lower_order_final: lower the order again over the last steps.
      noisy: whether to return c.

    Returns:
      Rows with K = 3.
    """
    check_number("kappa", kappa, least=0)
    second = dpmpp_2m_rows(
        sigmas, eta=eta, s_noise=s_noise, variant=variant,
        lower_order_final=lower_order_final, noisy=noisy,
    )  # fmt: skip
    num_steps = np.shape(sigmas)[0] - 1
    xp, (sigmas, eta, kappa) = rows_lib.concrete(sigmas, eta, kappa)
    h = rows_lib.log_steps(xp, sigmas)
    g = (1 + eta) * h
    r0, r1 = earlier(xp, h, 1) / h, earlier(xp, h, 2) / h
    # p_2 = (e^-g - 1)/g + 1 and p_3 = p_2/g - 1/2 without their cancellation.
    p2, p3 = g * phi(xp, 2, -g), -g * phi(xp, 3, -g)
    q = r0 / (r0 + r1)
    first = p2 * (1 + q) - kappa * p3 / (r0 + r1)
    older = -p2 * q + kappa * p3 / (r0 + r1)
    b = [-xp.expm1(-g) + first / r0, -first / r0 + older / r1, -older / r1]
    third = rows_lib.step_orders(num_steps, 3, lower_order_final) == 3
    pairs = (second.b[:-1, 0], second.b[:-1, 1], xp.zeros_like(h))
    b = [xp.where(third, high, low) for high, low in zip(b, pairs, strict=True)]
    c = None if second.c is None else second.c[:-1]
    return rows_lib.to_zero(xp, xp.exp(-g), b, c)


def dpmpp_2s_step(
    denoise: DenoiseFn,
    x: Array,
    sigma: ArrayLike,
    sigma_next: ArrayLike,
    r: ArrayLike = 0.5,
) -> tuple[Array, Array]:
    """One single-step second-order step; 2 network calls.

        u = e^{-r h} x + (1 - e^{-r h}) D(x; sigma),  at sigma e^{-r h}
        result = e^-h x + (1 - e^-h) ((1 - 1/(2 r)) D(x; sigma) + 1/(2 r) D(u))

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigma, any shape.
      sigma, sigma_next: scalars, > 0.
      r: place of the second evaluation within the step, in ln sigma.

    Returns:
      The state at sigma_next and D(x; sigma), both of the shape of x.
    """
    h = jnp.log(sigma / sigma_next)
    denoised = loop.evaluate(denoise, x, sigma)
    u = jnp.exp(-r * h) * x - jnp.expm1(-r * h) * denoised
    middle = loop.evaluate(denoise, u, sigma * jnp.exp(-r * h))
    mixed = denoised + (middle - denoised) / (2 * r)
    x_next = (sigma_next / sigma) * x - jnp.expm1(-h) * mixed
    return x_next.astype(x.dtype), denoised


def dpmpp_2s_rows(sigmas: ArrayLike, r: ArrayLike = 0.5) -> Rows:
    """`dpmpp_2s_step` as coefficients; 2N - 1 Rows for a grid ``(N+1,)``."""
    xp, (sigmas, r) = rows_lib.concrete(sigmas, r)
    now, h = sigmas[:-2], rows_lib.log_steps(xp, sigmas)
    part, q, w = xp.exp(-r * h), -xp.expm1(-h), -xp.expm1(-h) / (2 * r)
    inner = Stage(now, part, [-xp.expm1(-r * h)])
    outer = Stage(now * part, xp.exp(-h), [q - w, w])
    return rows_lib.staged(xp, [inner, outer], sigmas[-2])


def sample_dpmpp_2s(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    *,
    r: ArrayLike = 0.5,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """DPM-Solver++(2S): order 2, 2N - 1 network calls.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      r: place of the second evaluation within a step, in ln sigma; above 0, at most 1.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    check_number("r", r, above=0, most=1)
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    rows = dpmpp_2s_rows(sigmas, r)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, **options)


def sample_dpmpp_2m(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    *,
    variant: str = "midpoint",
    lower_order_final: bool = False,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """DPM-Solver++(2M): order 2, N network calls.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0, N >= 2; may be traced.
      variant: "midpoint" (released) or "taylor".
      lower_order_final: Euler for the step before the last; steadier for N < 10.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    loop.check_sigmas(sigmas, min_steps=2)
    x = jnp.asarray(x, loop.state_dtype(x))
    rows = dpmpp_2m_rows(sigmas, variant=variant, lower_order_final=lower_order_final)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, **options)


def sample_dpmpp_3m(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    *,
    kappa: ArrayLike = 1.0,
    variant: str = "midpoint",
    lower_order_final: bool = False,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """DPM-Solver++(3M): N network calls.

    The released rule (kappa = 1) has order 2.  kappa = 2 is consistent to third order;
    what its first two, lower-order steps do depends on the grid: the measured order is
    3.0 on EDM's time steps, where they are small in ln sigma, and 1.95 on a log-linear
    grid from 3 to 0.05 (N = 1024).

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0, N >= 3; may be traced.
      kappa: weight of the second difference; 1 or 2.
      variant: of the second step, "midpoint" or "taylor".
      lower_order_final: lower the order again over the last steps.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    loop.check_sigmas(sigmas, min_steps=3)
    x = jnp.asarray(x, loop.state_dtype(x))
    rows = dpmpp_3m_rows(sigmas, kappa=kappa, variant=variant, lower_order_final=lower_order_final)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, **options)


def sample_dpmpp_2m_sde(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    eta: ArrayLike = 1.0,
    s_noise: ArrayLike = 1.0,
    variant: str = "midpoint",
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """DPM-Solver++(2M) for the reverse SDE; N network calls.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0, N >= 2; may be traced.
      key: ``(B,)`` keys, one per image, or one key.
      eta: noise of the SDE; 0 is sample_dpmpp_2m.
      s_noise: scale of the added noise.
      variant: "midpoint" or "taylor" (k-diffusion's "heun").
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    loop.check_sigmas(sigmas, min_steps=2)
    x = jnp.asarray(x, loop.state_dtype(x))
    draw = loop.noise_source(key, noise_fn, x)
    rows = dpmpp_2m_rows(sigmas, eta=eta, s_noise=s_noise, variant=variant, noisy=True)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)


def sample_dpmpp_3m_sde(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    eta: ArrayLike = 1.0,
    s_noise: ArrayLike = 1.0,
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """DPM-Solver++(3M) for the reverse SDE, as k-diffusion releases it; N network calls.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0, N >= 3; may be traced.
      key: ``(B,)`` keys, one per image, or one key.
      eta: noise of the SDE; 0 is sample_dpmpp_3m with variant="taylor".
      s_noise: scale of the added noise.
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    loop.check_sigmas(sigmas, min_steps=3)
    x = jnp.asarray(x, loop.state_dtype(x))
    draw = loop.noise_source(key, noise_fn, x)
    rows = dpmpp_3m_rows(sigmas, eta=eta, s_noise=s_noise, variant="taylor", noisy=True)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)


PROMISES = (
    SamplerInfo("dpmpp_2s", sample_dpmpp_2s, order=2, nfe_fn=two_calls),
    SamplerInfo("dpmpp_2m", sample_dpmpp_2m, order=2, min_steps=2),
    SamplerInfo(
        "dpmpp_3m",
        sample_dpmpp_3m,
        order=2,
        min_steps=3,
        measured=(Measured(), Measured("kappa 2", {"kappa": 2.0}, order=3)),
    ),
    SamplerInfo("dpmpp_2m_sde", sample_dpmpp_2m_sde, order=2, stochastic=True, min_steps=2),
    SamplerInfo("dpmpp_3m_sde", sample_dpmpp_3m_sde, order=2, stochastic=True, min_steps=3),
)
