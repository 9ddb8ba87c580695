"""Latent codes: an image taken up the probability flow, and back down; paths between codes."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import is_known
from edm_jax.likelihood import solvers
from edm_jax.likelihood.flow import check_batch, with_rows
from edm_jax.likelihood.levels import check_levels, flow_levels
from edm_jax.progress import ReportFn
from edm_jax.samplers import loop
from edm_jax.typing import Array, ArrayLike, DenoiseFn, PyTree

# Below it slerp is linear; as near to pi the circle through two points is undefined.
LEAST_ANGLE = 1e-4
# RMS of a code is 1 in a thousand elements to a few per cent, and that of one forgotten to be
# divided by S is about S.
PLAUSIBLE_RMS = 8.0


def flow_encode(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike | None = None,
    *,
    rows: PyTree | None = None,
    solver: str = "rk4",
    progress: bool | ReportFn = False,
) -> Array:
    """The code of each image: x(S) / S of the flow that starts from x(s0) = x, without noise.

    Approximately standard normal: for Gaussian data exactly N(m / S, 1 + v / S^2).

    Args:
      denoise: D(x; sigma); with ``rows`` as D(x, sigma, rows).
      x: ``(B, ...)`` images.
      sigmas: ``(N+1,)`` levels from s0 up to S (`flow_levels`); by default 32 steps from 0.002
        to 80.  May be traced.
      rows: pytree with leading axes B that the denoiser takes, such as label rows.
      solver: of `solvers.SOLVERS`.
      progress: as in `progress.scan`, in network calls.

    Returns:
      ``(B, ...)``, at least float32.
    """
    denoise = with_rows(denoise, rows)
    check_batch(x)
    sigmas = flow_levels(32) if sigmas is None else sigmas
    check_levels(sigmas, up=True)
    x = jnp.asarray(x, loop.state_dtype(x))
    evaluations, _ = solvers.plan(solver, sigmas, dtype=x.dtype)
    end, _, _ = solvers.integrate(denoise, x, evaluations, progress=progress)
    return end / jnp.asarray(sigmas[-1], x.dtype)


def flow_decode(
    denoise: DenoiseFn,
    z: Array,
    sigmas: ArrayLike | None = None,
    *,
    rows: PyTree | None = None,
    solver: str = "rk4",
    final_denoise: bool = False,
    progress: bool | ReportFn = False,
) -> Array:
    """The image of each code: the flow from x(S) = S z down to s0; inverse of `flow_encode`.

    Args:
      denoise, rows, solver, progress: as in `flow_encode`.
      z: ``(B, ...)`` codes.
      sigmas: ``(N+1,)`` levels from s0 **up** to S, the ones the code was made with.
      final_denoise: end on D(x; s0), as EDM's samplers do, instead of at s0.  It removes noise
        of deviation s0, which no eye sees, and is no part of the inverse.

    Returns:
      ``(B, ...)``, at least float32.
    """
    denoise = with_rows(denoise, rows)
    check_batch(z, "z")
    sigmas = flow_levels(32) if sigmas is None else sigmas
    check_levels(sigmas, up=True)
    z = jnp.asarray(z, loop.state_dtype(z))
    low, high = (jnp.asarray(sigmas[i], z.dtype) for i in (0, -1))
    evaluations, _ = solvers.plan(solver, sigmas[::-1], dtype=z.dtype)
    x, _, _ = solvers.integrate(denoise, z * high, evaluations, progress=progress)
    return loop.evaluate(denoise, x, low) if final_denoise else x


def slerp(a: Array, b: Array, weights: ArrayLike) -> Array:
    """Spherical interpolation: along the circle through a and b, their lengths interpolated.

        sin((1-w) O) / sin O a + sin(w O) / sin O b,     O = arccos(a.b / (|a| |b|))

    Codes of many dimensions are nearly orthogonal and equally long, so that everything between
    has their length too; a straight line would lead through codes that are too short, which
    decode to washed-out images.  Nearly parallel ones (O < 1e-4) are interpolated linearly.

    Args:
      a, b: ``(B, ...)``, the angle taken over the flattened rest.
      weights: ``(F,)``; 0 is a, 1 is b, beyond them the circle goes on.

    Returns:
      ``(F, B, ...)``.

    Raises:
      ValueError: for other shapes, a zero vector, or opposite ones, where they are known.
    """
    a, b = (jnp.asarray(v, loop.state_dtype(v)) for v in (a, b))
    weights = jnp.asarray(weights, a.dtype)
    if a.shape != b.shape or a.ndim == 0 or weights.ndim != 1:
        raise ValueError(
            f"a and b must both have shape (B, ...) and weights (F,), got {a.shape}, {b.shape} "
            f"and {weights.shape}"
        )
    event, column = tuple(range(1, a.ndim)), a.shape[:1] + (1,) * (a.ndim - 1)
    length_a, length_b = (jnp.sqrt(jnp.sum(jnp.square(v), axis=event)) for v in (a, b))
    if is_known(a, b) and not np.all(np.asarray(length_a * length_b) > 0):
        raise ValueError("a code of length 0 has no direction to interpolate from")
    unit_a, unit_b = (v / n.reshape(column) for v, n in ((a, length_a), (b, length_b)))
    # atan2 of half the difference and half the sum: the arccos loses half of the digits at 0.
    apart, along = (jnp.sqrt(jnp.sum(jnp.square(v), axis=event)) for v in
                    (unit_a - unit_b, unit_a + unit_b))  # fmt: skip
    angle = 2 * jnp.arctan2(apart, along)
    if is_known(angle) and np.any(np.asarray(angle) > math.pi - LEAST_ANGLE):
        raise ValueError(
            f"images {np.flatnonzero(np.asarray(angle) > math.pi - LEAST_ANGLE).tolist()} have "
            "opposite codes, between which no circle is the shortest; interpolate by way of a "
            "third image"
        )
    flat = angle < LEAST_ANGLE
    safe = jnp.where(flat, 1.0, angle)
    w = weights[:, None]

    def share(w: Array) -> Array:
        return jnp.where(flat[None], w, jnp.sin(w * safe[None]) / jnp.sin(safe)[None])

    spread = (weights.shape[0], *column)
    return share(1 - w).reshape(spread) * a[None] + share(w).reshape(spread) * b[None]


def check_codes(z: ArrayLike, image_shape: tuple[int, ...]) -> None:
    """Raise ValueError unless z can be codes of images of the given shape."""
    shape = tuple(np.shape(z))
    if shape[1:] != tuple(image_shape) or not shape:
        raise ValueError(
            f"codes of this model have shape (B, {', '.join(map(str, image_shape))}), got "
            f"{shape}; were they made by another model?"
        )
    check_batch(z, "codes")
    if is_known(z):
        rms = float(np.sqrt(np.mean(np.square(np.asarray(z, np.float64)))))
        if not rms < PLAUSIBLE_RMS:
            raise ValueError(
                f"codes have a root mean square of about 1, got {rms:.3g}; divide a state at "
                "sigma_max by sigma_max, and give images to encode"
            )
