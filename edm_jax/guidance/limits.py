"""Keeping D within the range of the data: static and dynamic thresholding.

They act on D after guidance, at every evaluation, before the solver's update; of ADM the
order is the other one (clip, then guide).  The order is that of `compose.chain`.
Latents have no range of their own: no thresholding there.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import check_number, is_known
from edm_jax.guidance import base
from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike


@pytree_dataclass
class StaticThreshold:
    """D clipped to [low, high]; `static_threshold` builds and checks it.

    Attributes:
      low, high: numbers or ``(B,)``.
    """

    low: ArrayLike = -1.0
    high: ArrayLike = 1.0

    def guide(self, denoise: base.LabelledDenoiseFn) -> base.LabelledDenoiseFn:
        """The clipped denoiser."""

        def clipped(x: Array, sigma: ArrayLike, rows: Array | None = None) -> Array:
            denoised = base.at_least_float32(denoise(x, sigma, rows))
            ends = (jnp.asarray(v, denoised.dtype) for v in (self.low, self.high))
            return jnp.clip(denoised, *(base.column(v, denoised) for v in ends))

        return clipped

    def check(self, model: Any) -> None:
        """Every model will do but a reflected one."""
        _refuse_reflected(model)

    def evaluations(self, sigma: ArrayLike) -> dict[str, int]:
        """One of the denoiser."""
        return {"denoiser": 1}


def _refuse_reflected(model: Any) -> None:
    """Raise ValueError for a reflected model: its D may leave the box, its samples cannot."""
    if getattr(model, "kind", "denoiser") == "reflected":
        raise ValueError(
            "thresholding is not for reflected models, whose D may leave the range of images and "
            "whose samples never do, got one; leave it out, at any scale of guidance"
        )


def static_threshold(low: ArrayLike = -1.0, high: ArrayLike = 1.0) -> StaticThreshold:
    """D clipped to [low, high], by default the range of images.

    Raises:
      ValueError: unless low < high.
    """
    for name, value in (("low", low), ("high", high)):
        check_number(name, value)
    if is_known(low, high) and not np.all(np.asarray(low) < np.asarray(high)):
        raise ValueError(f"static thresholding needs low < high, got low={low}, high={high}")
    return StaticThreshold(low, high)


def image_quantile(values: Array, p: ArrayLike) -> Array:
    """p-quantile of each image, ``(B, ...) -> (B,)``, linear between order statistics.

    Args:
      values: ``(B, ...)``, float32 at least (bfloat16 would be off by 0.4 percent).
      p: in [0, 1], a number or ``(B,)``; the position is p (n - 1) among n sorted values.
    """
    ordered = jnp.sort(base.at_least_float32(values).reshape(values.shape[0], -1), axis=1)
    last = ordered.shape[1] - 1
    position = jnp.broadcast_to(jnp.asarray(p, ordered.dtype) * last, ordered.shape[:1])
    below = jnp.clip(jnp.floor(position), 0, last)
    index = below.astype(jnp.int32)[:, None]
    low = jnp.take_along_axis(ordered, index, axis=1)[:, 0]
    high = jnp.take_along_axis(ordered, jnp.minimum(index + 1, last), axis=1)[:, 0]
    return low + (position - below) * (high - low)


def dynamic_clip(
    denoised: Array, percentile: ArrayLike, limit: ArrayLike = 1.0, cap: ArrayLike | None = None
) -> Array:
    """Dynamic thresholding of one D (Saharia et al. 2022).

        q = quantile of |D| over an image,  tau = min(max(q, m), cap),  clip(D, -tau, tau) m/tau

    Args:
      denoised: ``(B, ...)``.
      percentile: of q, in [0, 1].
      limit: m, the range [-m, m] of the data.
      cap: most that tau may be; None for no bound.

    Returns:
      The shape of denoised.  An image with max |D| <= m is untouched, one with q <= m only
      clipped; at q > m the whole image is scaled down.
    """
    denoised = base.at_least_float32(denoised)
    limit = jnp.asarray(limit, denoised.dtype)
    tau = jnp.maximum(image_quantile(jnp.abs(denoised), percentile), limit)
    if cap is not None:
        tau = jnp.minimum(tau, jnp.asarray(cap, denoised.dtype))
    bound = base.column(tau, denoised)
    return jnp.clip(denoised, -bound, bound) * base.column(limit / tau, denoised)


@pytree_dataclass
class DynamicThreshold:
    """D within a range that follows the image; `dynamic_threshold` builds and checks it.

    Attributes:
      percentile, limit, cap: as in `dynamic_clip`; numbers or ``(B,)``.
    """

    percentile: ArrayLike = 0.995
    limit: ArrayLike = 1.0
    cap: ArrayLike | None = None

    def guide(self, denoise: base.LabelledDenoiseFn) -> base.LabelledDenoiseFn:
        """The thresholded denoiser."""

        def thresholded(x: Array, sigma: ArrayLike, rows: Array | None = None) -> Array:
            return dynamic_clip(denoise(x, sigma, rows), self.percentile, self.limit, self.cap)

        return thresholded

    def check(self, model: Any) -> None:
        """Every model will do but a reflected one."""
        _refuse_reflected(model)

    def evaluations(self, sigma: ArrayLike) -> dict[str, int]:
        """One of the denoiser."""
        return {"denoiser": 1}


def dynamic_threshold(
    percentile: ArrayLike = 0.995, limit: ArrayLike = 1.0, cap: ArrayLike | None = None
) -> DynamicThreshold:
    """Thresholding at a quantile of each image (Saharia et al. 2022).

    Args:
      percentile: as a fraction, 0.995 for 99.5 percent.
      limit: m; the data lie in [-m, m].
      cap: most that the threshold may be, at least m; None for no bound.

    Raises:
      ValueError: for a percentile outside [0, 1] (99.5 instead of 0.995), a limit that is
        not positive, or a cap below it.
    """
    cure = "it is a fraction, 0.995 for 99.5 percent"
    check_number("percentile", percentile, least=0, most=1, cure=cure)
    check_number("limit", limit, above=0)
    if cap is not None:
        check_number("cap", cap, above=0, finite=False)
        if is_known(cap, limit) and np.any(np.asarray(cap) < np.asarray(limit)):
            raise ValueError(f"cap must be at least limit, got cap={cap}, limit={limit}")
    return DynamicThreshold(percentile, limit, cap)
