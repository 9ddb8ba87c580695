"""Exponential moving averages of the parameters, with half-life and ramp-up."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from edm_jax.typing import Array, ArrayLike, PyTree


def ema_beta(
    nimg: ArrayLike,
    batch_size: ArrayLike,
    halflife_nimg: ArrayLike,
    rampup_ratio: ArrayLike | None = 0.05,
) -> Array:
    """Decay of one EMA update (EDM section F.2).

        beta = 0.5^(batch / h),   h = min(halflife, nimg * ratio)

    Args:
      nimg: images seen before this step; 0 gives beta = 0, so EMA = weights.
      batch_size: images per step.
      halflife_nimg: half-life, in images.
      rampup_ratio: fraction of the images seen that bounds the half-life early in
        training; None switches the ramp off.

    Returns:
      Scalar in [0, 1).
    """
    if rampup_ratio is not None:
        halflife_nimg = jnp.minimum(halflife_nimg, nimg * rampup_ratio)
    return jnp.asarray(0.5) ** (batch_size / jnp.maximum(halflife_nimg, 1e-8))


def ema_update(ema: PyTree, params: PyTree, beta: ArrayLike) -> PyTree:
    """``params + beta * (ema - params)``, leaf by leaf."""
    return jax.tree.map(lambda e, p: p + beta * (e - p), ema, params)
