"""DEIS (Zhang & Chen 2022): slopes interpolated in a warped noise level, integrated exactly."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax import names
from edm_jax.samplers import loop
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import Measured, SamplerInfo
from edm_jax.samplers.rows import Rows
from edm_jax.typing import Array, ArrayLike, DenoiseFn

# VP time with sigma(.001) = .002 and sigma(1) = 80, whatever the grid, as released.
_L0, _L1 = math.log1p(0.002**2), math.log1p(80.0**2)
_BETA_D = 2 * (_L0 / 0.001 - _L1) / (0.001 - 1)
_BETA_MIN = _L1 - _BETA_D / 2
# In ln sigma the integrands are smooth: this many Gauss-Legendre nodes leave rounding only.
_NODES = 32


def _log(xp: ModuleType, sigma: ArrayLike) -> ArrayLike:
    return xp.log(sigma)


def _vp_time(xp: ModuleType, sigma: ArrayLike) -> ArrayLike:
    root = xp.sqrt(_BETA_MIN**2 + 2 * _BETA_D * xp.log1p(xp.square(sigma)))
    return (root - _BETA_MIN) / _BETA_D


SPACES = {"log": _log, "vp": _vp_time}


def deis_rows(
    sigmas: ArrayLike, order: int = 3, space: str = "log", *, lower_order_final: bool = False
) -> Rows:
    """x' = x + sum_j b_j d_{i-j}, b_j the integral of L_j(tau(sigma)) from sigma_i to sigma_{i+1}.

    L_j is the Lagrange basis over tau of the last levels.  The last step returns D.

    Args:
      sigmas: ``(N+1,)`` grid.
      order: K, 1 to 4; the first steps have what history there is.
      space: tau, "log" (ln sigma) or "vp" (time of a VP schedule).
      lower_order_final: lower the order again over the last steps.

    Returns:
      Rows with K columns, on slopes.
    """
    warp = names.lookup(SPACES, space, "space")
    xp, (sigmas,) = rows_lib.concrete(sigmas)
    num_steps = sigmas.shape[0] - 1
    start, stop = sigmas[:-2], sigmas[1:-1]
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    half = xp.log(stop / start) / 2
    inside = start[:, None] * xp.exp(half[:, None] * (1 + points[None].astype(start.dtype)))
    # d sigma = sigma d ln sigma
    measure = half[:, None] * inside * weights[None].astype(start.dtype)
    taus, at_nodes = warp(xp, inside), warp(xp, sigmas[:-1])
    # Where there is no such level yet, distinct values that no row uses.
    pad = at_nodes[0] + xp.arange(order, 0, -1, dtype=start.dtype) * (xp.abs(at_nodes[0]) + 1)
    nodes = [
        xp.concatenate([pad[order - lag :], at_nodes])[: num_steps - 1] for lag in range(order)
    ]
    available = rows_lib.step_orders(num_steps, order, lower_order_final)
    columns = []
    for j in range(order):
        column = xp.zeros_like(start)
        for count in range(j + 1, order + 1):
            basis = xp.ones_like(taus)
            for other in set(range(count)) - {j}:
                gap = (nodes[j] - nodes[other])[:, None]
                basis = basis * (taus - nodes[other][:, None]) / gap
            column = xp.where(available == count, xp.sum(basis * measure, axis=1), column)
        columns.append(xp.concatenate([column, xp.zeros_like(sigmas[:1]) if j else -sigmas[-2:-1]]))
    return Rows(xp.ones_like(sigmas[:-1]), xp.stack(columns, axis=1))


def sample_deis(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    *,
    order: int = 3,
    space: str = "log",
    lower_order_final: bool = False,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """DEIS; N network calls, measured order K on EDM's grid.

    On log-linear grids the Euler start limits all orders to 2.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      order: K, 1 (Euler) to 4.
      space: where slopes are interpolated: "log" (ln sigma) or "vp" (time of a VP schedule),
        which has the larger error on EDM's grid.
      lower_order_final: lower the order again over the last steps.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    names.lookup(SPACES, space, "space")
    if not isinstance(order, int | np.integer) or order not in (1, 2, 3, 4):
        raise ValueError(f"order must be 1, 2, 3 or 4, got {order}")
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    rows = deis_rows(sigmas, order, space, lower_order_final=lower_order_final)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, slopes=True, **options)


PROMISES = (
    SamplerInfo(
        "deis",
        sample_deis,
        order=3,
        measured=(
            Measured(),
            Measured("order 2", {"order": 2}, order=2),
            Measured("vp", {"space": "vp"}),
        ),
    ),
)
