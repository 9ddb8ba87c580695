"""Linear multistep sampling: Adams-Bashforth in sigma on an uneven grid."""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax.samplers import loop
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import SamplerInfo
from edm_jax.samplers.rows import Rows
from edm_jax.typing import Array, ArrayLike, DenoiseFn


def lms_rows(sigmas: ArrayLike, order: int = 4) -> Rows:
    """x' = x + sum_j b_j d_{i-j} with b_j the integral of a Lagrange polynomial.

    The polynomial interpolates the last min(i + 1, order) slopes d = (x - D) / sigma
    and is integrated from sigma_i to sigma_{i+1}, the step to 0 included.

    Args:
      sigmas: ``(N+1,)`` grid.
      order: 1 to 4.

    Returns:
      Rows with K = order, on slopes.
    """
    xp, (sigmas,) = rows_lib.concrete(sigmas)
    num_steps = sigmas.shape[0] - 1
    start, stop = sigmas[:-1], sigmas[1:]
    # Four Gauss-Legendre nodes integrate polynomials up to degree 7 exactly.
    points, weights = np.polynomial.legendre.leggauss(4)
    middle, half = (start + stop) / 2, (stop - start) / 2
    taus = middle[:, None] + half[:, None] * points.astype(start.dtype)[None]
    # nodes[j] = sigma_{i-j}; where there is none, distinct values that no row uses.
    nodes = []
    for lag in range(order):
        pad = sigmas[0] * xp.arange(lag + 1, 1, -1, dtype=start.dtype)
        nodes.append(xp.concatenate([pad, start])[:num_steps])
    available = np.minimum(np.arange(num_steps) + 1, order)
    columns = []
    for j in range(order):
        column = xp.zeros_like(start)
        for count in range(j + 1, order + 1):
            basis = xp.ones_like(taus)
            for other in set(range(count)) - {j}:
                gap = (nodes[j] - nodes[other])[:, None]
                basis = basis * (taus - nodes[other][:, None]) / gap
            integral = half * xp.sum(basis * weights.astype(start.dtype)[None], axis=1)
            column = xp.where(available == count, integral, column)
        columns.append(column)
    return Rows(xp.ones_like(start), xp.stack(columns, axis=1))


def sample_lms(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    *,
    order: int = 4,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """Linear multistep sampling; N network calls.

    Measured orders are 2.0, 3.0 and 3.9 for order 2, 3 and 4, against the flow to 0: the
    last step is integrated like any other instead of returning D.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0, N >= order; may be
        traced.
      order: 1 (Euler) to 4.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    if not isinstance(order, int | np.integer) or order not in (1, 2, 3, 4):
        raise ValueError(f"order must be 1, 2, 3 or 4, got {order}")
    loop.check_sigmas(sigmas, min_steps=order)
    x = jnp.asarray(x, loop.state_dtype(x))
    rows = lms_rows(sigmas, order)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, slopes=True, **options)


PROMISES = tuple(
    SamplerInfo(f"lms_{p}", sample_lms, order=p, min_steps=p, presets={"order": p}, ends="flow")
    for p in (2, 3, 4)
)
