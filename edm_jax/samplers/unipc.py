"""UniPC (Zhao et al. 2023): a predictor-corrector of any order at N network calls.

The corrector reuses the network call that the next predictor makes anyway, so it
raises the order by one for free.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax import names
from edm_jax.samplers import loop
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import SamplerInfo
from edm_jax.samplers.rows import CorrectedRows, Rows, earlier, phi
from edm_jax.typing import Array, ArrayLike, DenoiseFn

VARIANTS = {"bh1": "bh1", "bh2": "bh2"}


def _difference_weights(
    xp: ModuleType, ratios: list[ArrayLike], betas: list[ArrayLike], size: int
) -> list[ArrayLike]:
    """rho with sum_k r_k^(j-1) rho_k = beta_j, j = 1..size, for every step."""
    powers = [xp.stack([r**j for r in ratios[:size]], axis=-1) for j in range(size)]
    matrix, right = xp.stack(powers, axis=-2), xp.stack(betas[:size], axis=-1)[..., None]
    solution = xp.linalg.solve(matrix, right)[..., 0]
    return [solution[..., k] for k in range(size)]


def _order_rows(
    xp: ModuleType, h: ArrayLike, order: int, variant: str, *, corrector: bool
) -> tuple[list[ArrayLike], ArrayLike]:
    """b_0 .. b_{p-1} and the weight of the new D, for one order at every step."""
    past, ratios = xp.zeros_like(h), []
    for lag in range(1, order):
        past = past + earlier(xp, h, lag)
        ratios.append(-past / h)
    scale = -h if variant == "bh1" else xp.expm1(-h)
    betas = [-h * phi(xp, j + 1, -h) * math.factorial(j) / scale for j in range(1, order + 1)]
    if corrector:
        half = [xp.full_like(h, 0.5)]
        rho = half if order == 1 else _difference_weights(
            xp, [*ratios, xp.ones_like(h)], betas, order
        )  # fmt: skip
        new = -scale * rho[-1]
    else:
        half = [xp.full_like(h, 0.5)] * (order - 1)
        rho = half if order < 3 else _difference_weights(xp, ratios, betas, order - 1)
        new = xp.zeros_like(h)
    b = [-scale * rho[k] / ratios[k] for k in range(order - 1)]
    return [-xp.expm1(-h) - sum(b) - new, *b], new


def unipc_rows(
    sigmas: ArrayLike,
    *,
    order: int = 3,
    variant: str = "bh2",
    lower_order_final: bool = True,
    corrector: bool = True,
) -> CorrectedRows:
    """Coefficients of UniPC on one grid.

    Args:
      sigmas: ``(N+1,)`` grid.
      order: p, 1 to 3.
      variant: "bh1" (advised below 10 unguided steps) or "bh2".
      lower_order_final: lower the order again over the last steps.
      corrector: False leaves the predictor alone (UniP).
    """
    num_steps = np.shape(sigmas)[0] - 1
    xp, (sigmas,) = rows_lib.concrete(sigmas)
    h = rows_lib.log_steps(xp, sigmas)
    orders = rows_lib.step_orders(num_steps, order, lower_order_final)

    def select(corrector: bool) -> tuple[list[ArrayLike], ArrayLike]:
        b, new = [xp.zeros_like(h) for _ in range(order)], xp.zeros_like(h)
        for p in range(1, order + 1):
            b_p, new_p = _order_rows(xp, h, p, variant, corrector=corrector)
            b = [
                xp.where(orders == p, b_p[k] if k < p else 0.0, column)
                for k, column in enumerate(b)
            ]
            new = xp.where(orders == p, new_p, new)
        return b, new

    predict = rows_lib.to_zero(xp, xp.exp(-h), select(False)[0])
    b, new = select(corrector)
    # Step i corrects the result of step i - 1; the first has nothing to correct.
    one, zero = xp.ones(1, h.dtype), xp.zeros(1, h.dtype)
    columns = [xp.concatenate([zero, column]) for column in b]
    correct = Rows(xp.concatenate([one, xp.exp(-h)]), xp.stack(columns, axis=1))
    return CorrectedRows(predict, correct, xp.concatenate([zero, new]))


def sample_unipc(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    *,
    order: int = 3,
    variant: str = "bh2",
    lower_order_final: bool = True,
    corrector: bool = True,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """UniPC of order p; N network calls, measured order p + 1 (p without corrector).

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0, N >= order; may be
        traced.
      order: p, 1 to 3.
      variant: "bh1" (advised below 10 unguided steps) or "bh2".
      lower_order_final: lower the order again over the last steps.
      corrector: False leaves the predictor alone (UniP).
      **options: of the loop, `loop.LoopOptions`; states of a Trajectory are the corrected
        ones, denoised images those of the predicted states.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    names.lookup(VARIANTS, variant, "variant")
    if not isinstance(order, int | np.integer) or order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    loop.check_sigmas(sigmas, min_steps=order)
    x = jnp.asarray(x, loop.state_dtype(x))
    table = unipc_rows(
        sigmas,
        order=order,
        variant=variant,
        lower_order_final=lower_order_final,
        corrector=corrector,
    )
    return rows_lib.sample_corrected(denoise, x, sigmas, table, **options)


PROMISES = tuple(
    SamplerInfo(f"unipc_{p}", sample_unipc, order=p + 1, min_steps=p, presets={"order": p})
    for p in (1, 2, 3)
)
