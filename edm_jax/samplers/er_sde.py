"""ER-SDE (Cui et al. 2023): extended reverse-time SDEs, solved by Taylor steps in sigma."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax import names
from edm_jax.arguments import check_number
from edm_jax.samplers import loop, path
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import Measured, SamplerInfo
from edm_jax.samplers.rows import Rows
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key

FUNCTIONS = {"released": "released", "power": "power"}
_NODES = 12  # Gauss-Legendre in ln sigma: exact to rounding


def _clock(xp: ModuleType, function: str, eta: ArrayLike) -> Callable[[ArrayLike], ArrayLike]:
    """c(v) = ln(v / f(v)) of the noise function f, the clock of its noise."""
    if function == "power":
        return lambda v: -eta * xp.log(v)
    return lambda v: -xp.log(xp.exp(v**0.3) + 10)


def er_sde_rows(
    sigmas: ArrayLike,
    *,
    order: int = 3,
    function: str = "released",
    eta: ArrayLike = 1.0,
    kappa: ArrayLike = 0.0,
    s_noise: ArrayLike = 1.0,
) -> Rows:
    """Rows of ER-SDE; r = f(sigma')/f(sigma), t = sigma' - sigma.

        S = int_{sigma'}^{sigma} dv/f(v),   U = int_{sigma'}^{sigma} (v - sigma)/f(v) dv
        D' = (D_i - D_{i-1})/(sigma_i - sigma_{i-1})
        D'' = (D'_i - D'_{i-1})/((sigma_i - sigma_{i-2})/2)
        x' = r x + (1 - r) D_i + (t + f(sigma') S) [D' + kappa (sigma_i - sigma_{i-1})/2 D'']
             + (t^2/2 + f(sigma') U) D'' + sqrt(sigma'^2 - sigma^2 r^2) xi

    Args:
      sigmas: ``(N+1,)`` grid.
      order: 1 to 3; the first steps have what history there is.
      function: f, "released" for v (e^{v^0.3} + 10) or "power" for v^{1+eta}.
      eta: of "power"; 0 is the ODE, 1 the usual SDE.
      kappa: 0 as released, or 1 to take D' at sigma_i, which order 3 needs.
      s_noise: scale of the added noise.

    Returns:
      Rows with K = order.
    """
    num_steps = np.shape(sigmas)[0] - 1
    xp, (sigmas, eta, kappa, s_noise) = rows_lib.concrete(sigmas, eta, kappa, s_noise)
    now, after = sigmas[:-2], sigmas[1:-1]
    clock = _clock(xp, function, eta)
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    half = xp.log(now / after)[:, None] / 2
    v = after[:, None] * xp.exp(half * (1 + points[None].astype(now.dtype)))
    at_end = clock(after)
    # f(sigma')/f(v) d v = sigma' e^{c(v) - c(sigma')} d ln v
    weight = after[:, None] * xp.exp(clock(v) - at_end[:, None])
    measure = half * weight * weights[None].astype(now.dtype)
    # c grows; what is below rounding is none.
    gap = xp.maximum(at_end - clock(now), 0.0)
    t, r = after - now, after / now * xp.exp(-gap)
    first = t + xp.sum(measure, axis=1)
    second = xp.square(t) / 2 + xp.sum(measure * (v - now[:, None]), axis=1)

    gaps = now - rows_lib.earlier(xp, now, 1)  # sigma_i - sigma_{i-1}, negative
    one = xp.where(np.arange(num_steps - 1) > 0, gaps, -1.0)  # there is none: not used
    two = rows_lib.earlier(xp, one, 1)
    orders = rows_lib.step_orders(num_steps, order, False)
    slope = xp.where(orders >= 2, first, 0.0)
    bend = xp.where(orders >= 3, first * kappa * one / 2 + second, 0.0) * 2 / (one + two)
    b = [
        1 - r + slope / one + bend / one,
        -slope / one - bend * (1 / one + 1 / two),
        bend / two,
    ][:order]
    return rows_lib.to_zero(xp, r, b, s_noise * after * xp.sqrt(-xp.expm1(-2 * gap)))


def sample_er_sde(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    order: int = 3,
    function: str = "released",
    eta: ArrayLike = 1.0,
    kappa: ArrayLike = 0.0,
    s_noise: ArrayLike = 1.0,
    noise: str = "step",
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """ER-SDE; weak order 2, N network calls; see `er_sde_rows`.

    Its integrals are exact here; released programs sum them coarsely, up to 9e-4 off.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      key: ``(B,)`` keys, one per image, or one key.
      order: 1 to 3, of the expansion of D.
      function: noise function, "released" or "power".
      eta: of "power"; 0 is the ODE, 1 the usual SDE.
      kappa: 0 as released, with which order 3 measures 2; 1 gives 3 for the ODE.
      s_noise: scale of the added noise.
      noise: "step" draws anew at every step; "tree" takes all noise from one path, the same
        at any number of steps (`path`).
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    names.lookup(FUNCTIONS, function, "noise function")
    if not isinstance(order, int | np.integer) or order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    check_number("eta", eta, least=0)
    check_number("kappa", kappa, least=0, most=1)
    check_number("s_noise", s_noise, least=0)
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))

    def spans() -> path.Spans:
        xp, (levels, power) = rows_lib.concrete(sigmas, eta)
        clock = _clock(xp, function, power)(levels[:-1])
        return path.Spans(clock, xp.concatenate([clock[1:], clock[-1:]]))

    draw = path.noise_source(key, noise_fn, x, noise, spans)
    rows = er_sde_rows(
        sigmas, order=order, function=function, eta=eta, kappa=kappa, s_noise=s_noise
    )
    return rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)


PROMISES = (
    SamplerInfo(
        "er_sde",
        sample_er_sde,
        order=2,
        stochastic=True,
        measured=(
            Measured(),
            Measured("order 1", {"order": 1}, order=1),
            Measured("order 2", {"order": 2}),
            Measured("power", {"function": "power"}),
            Measured(
                "ODE, kappa 1",
                {"function": "power", "eta": 0.0, "kappa": 1.0},
                order=3,
                stochastic=False,
            ),
        ),
    ),
)
