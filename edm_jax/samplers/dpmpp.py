"""DPM-Solver++ (Lu et al. 2022) in sigma form: 2M and 3M, and their SDE variants.

With lambda = -ln sigma the probability-flow ODE is dx/dlambda = D - x.  Its linear part is
solved exactly and D is extrapolated in lambda from earlier steps; `dpmpp_single` has the
single-step methods.  Networks of any scaling fit, as x = z / alpha.
"""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax import names
from edm_jax.arguments import check_number
from edm_jax.samplers import loop, path
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import Measured, SamplerInfo
from edm_jax.samplers.rows import Rows, earlier, phi
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
    noise: str = "step",
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
      noise: "step" draws anew at every step; "tree" takes all noise from one path, the same
        at any number of steps (`path`).
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    loop.check_sigmas(sigmas, min_steps=2)
    x = jnp.asarray(x, loop.state_dtype(x))
    draw = path.noise_source(key, noise_fn, x, noise, lambda: path.step_spans(sigmas, eta))
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
    noise: str = "step",
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
      noise: "step" draws anew at every step; "tree" takes all noise from one path, the same
        at any number of steps (`path`).
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    loop.check_sigmas(sigmas, min_steps=3)
    x = jnp.asarray(x, loop.state_dtype(x))
    draw = path.noise_source(key, noise_fn, x, noise, lambda: path.step_spans(sigmas, eta))
    rows = dpmpp_3m_rows(sigmas, eta=eta, s_noise=s_noise, variant="taylor", noisy=True)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)


PROMISES = (
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
