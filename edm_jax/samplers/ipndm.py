"""iPNDM (Zhang & Chen 2022), known as PLMS: Adams-Bashforth weights of equal steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax import names
from edm_jax.samplers import loop
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import Measured, SamplerInfo
from edm_jax.samplers.rows import Rows
from edm_jax.typing import Array, ArrayLike, DenoiseFn

WEIGHTS = (
    np.array([1.0]),
    np.array([3.0, -1.0]) / 2,
    np.array([23.0, -16.0, 5.0]) / 12,
    np.array([55.0, -59.0, 37.0, -9.0]) / 24,
)
STARTS = {"euler": "euler", "heun": "heun"}


def ipndm_rows(sigmas: ArrayLike, order: int = 4, start: str = "euler") -> Rows:
    """x' = x + (sigma' - sigma) sum_j w_j d_{i-j}, the order growing from 1; x_N = D_{N-1}.

    Args:
      sigmas: ``(N+1,)`` grid.
      order: 1 to 4.
      start: "euler", or "heun" for a first step of two evaluations, as PNDM makes it; the
        second of them does not enter the history.

    Returns:
      N Rows on slopes, or N + 1.
    """
    xp, (sigmas,) = rows_lib.concrete(sigmas)
    num_steps = sigmas.shape[0] - 1
    twice = int(start == "heun" and num_steps > 1)
    weights = np.zeros((num_steps + twice, order + twice))
    for i in range(num_steps):
        now = WEIGHTS[0] if i == num_steps - 1 else WEIGHTS[min(i, order - 1)]
        lags = np.arange(len(now))
        # The extra slope of the first step sits between the first and the second.
        lags = lags + twice * (lags == i) * (i > 0)
        weights[i + twice * (i > 0), lags] = now
    steps, ends = sigmas[1:] - sigmas[:-1], np.ones(num_steps + twice, bool)
    levels = sigmas[:-1]
    if twice:
        weights[1, :2] = 0.5
        steps = xp.concatenate([steps[:1], steps])
        levels = xp.concatenate([levels[:2], levels[1:]])
        ends[0] = False
    return Rows(xp.ones_like(steps), steps[:, None] * weights, levels=levels, ends=ends)


def sample_ipndm(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    *,
    order: int = 4,
    start: str = "euler",
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """iPNDM; N network calls (one more with start="heun"), measured order 2.

    Its weights suppose equal steps, which leaves order 2 with a small constant on a grid
    that is smooth in its index; on rough grids (resampled ones, repeats) use sample_lms.
    Order 3 is the better choice on EDM's grid, 4 the released one.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      order: 1 (Euler) to 4, of the Adams-Bashforth weights.
      start: "euler", or "heun" for a first step of two calls as PNDM makes it.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    names.lookup(STARTS, start, "start")
    if not isinstance(order, int | np.integer) or order not in (1, 2, 3, 4):
        raise ValueError(f"order must be 1, 2, 3 or 4, got {order}")
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    rows = ipndm_rows(sigmas, order, start)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, slopes=True, **options)


def _calls(num_steps: int, options: Mapping[str, Any]) -> int:
    return num_steps + (options.get("start") == "heun" and num_steps > 1)


PROMISES = (
    SamplerInfo(
        "ipndm",
        sample_ipndm,
        order=2,
        nfe_fn=_calls,
        measured=(
            Measured(),
            Measured("order 2", {"order": 2}),
            Measured("order 3", {"order": 3}),
            Measured("heun start", {"start": "heun"}),
        ),
    ),
)
