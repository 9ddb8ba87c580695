"""Noise levels along which the probability flow is integrated, for a given network."""

from __future__ import annotations

import numpy as np

from edm_jax.arguments import check_number, check_range, check_scalar
from edm_jax.grids import clamp_range, karras_sigmas
from edm_jax.precond import Preconditioning
from edm_jax.typing import ArrayLike

# The ends that EDM's samplers have (EDM Table 1), and hence their flow.
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


def noise_range(
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    preconditioning: Preconditioning | None = None,
) -> tuple[float, float]:
    """The ends s0 and S of the flow, on levels that the network knows.

    Args:
      sigma_min, sigma_max: asked for; None for EDM's 0.002 and 80, moved into the range of the
        network.
      preconditioning: of the network; None for a denoiser that knows every level.

    Returns:
      s0 and S; the nearest levels of its table for a network that knows one only (iDDPM).

    Raises:
      ValueError: unless 0 < s0 < S < inf, or if a level asked for is one that the network does
        not know.
    """
    low, high = clamp_range(SIGMA_MIN, SIGMA_MAX, preconditioning)
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        if value is None:
            continue
        check_scalar(name, value, above=0)
        # A float32 ulp of slack: ranges are stored in float32 tables.
        if preconditioning is not None and not (
            preconditioning.sigma_min * (1 - 1e-6)
            <= value
            <= preconditioning.sigma_max * (1 + 1e-6)
        ):
            raise ValueError(
                f"{name} must lie within the noise levels of the {preconditioning.name} network, "
                f"[{preconditioning.sigma_min:g}, {preconditioning.sigma_max:g}], got {value:g}; "
                "leave it out for the part of EDM's range that the network knows"
            )
    low, high = low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max
    check_range(1, low, high)
    if preconditioning is not None and preconditioning.rounds:
        low, high = preconditioning.round_known([low, high])
        if not low < high:
            raise ValueError(
                f"sigma_min and sigma_max are nearest to the same level {low:g} of the "
                f"{preconditioning.name} network; choose them further apart"
            )
    return float(low), float(high)


def flow_levels(
    num_steps: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float | None = None,
    preconditioning: Preconditioning | None = None,
) -> np.ndarray:
    """N + 1 noise levels from s0 up to S, evenly spaced in ln sigma.

    The integrand of the log density lives in ln sigma; the rho = 7 grid, tuned for the error of
    images, has most of its levels where that integrand is nearly constant.

    Args:
      num_steps: N >= 1.
      sigma_min, sigma_max: see `noise_range`.
      rho: space the levels as EDM's samplers do instead (EDM Eq. 5), 7 as published.
      preconditioning: of the network.  If it knows a table of levels only (iDDPM), the grid
        consists of entries of it, and has fewer than N steps where the table is coarser.

    Returns:
      ``(N+1,)`` float64, strictly increasing.
    """
    low, high = noise_range(sigma_min, sigma_max, preconditioning)
    check_range(num_steps, low, high)
    if rho is None:
        levels = np.exp(np.linspace(np.log(low), np.log(high), num_steps + 1))
    else:
        check_number("rho", rho, above=0)
        levels = karras_sigmas(num_steps + 1, sigma_min=low, sigma_max=high, rho=rho)[-2::-1]
    levels = np.array(levels, np.float64)
    levels[0], levels[-1] = low, high
    if preconditioning is not None and preconditioning.rounds:
        levels = np.unique(preconditioning.round_known(levels))
    return levels


def known_levels(preconditioning: Preconditioning) -> np.ndarray:
    """Ascending table of levels that a network knows; its two ends if it knows all between."""
    if not preconditioning.rounds:
        return np.array([preconditioning.sigma_min, preconditioning.sigma_max])
    # A grid finer than any table, rounded to it.
    low, high = preconditioning.sigma_min, preconditioning.sigma_max
    fine = np.exp(np.linspace(np.log(low), np.log(high), 2**16))
    return np.unique(preconditioning.round_known(fine))


def every_second(levels: ArrayLike) -> np.ndarray:
    """The grid of half as many steps: every second level, and both ends."""
    levels = np.asarray(levels, np.float64)
    if len(levels) < 3:
        raise ValueError(
            f"a grid of {len(levels) - 1} step(s) cannot be halved, which the estimate of the "
            "solver's error needs; use num_steps of 2 or more"
        )
    half = levels[::2]
    return half if len(levels) % 2 else np.append(half, levels[-1])


def check_levels(levels: ArrayLike, *, up: bool) -> None:
    """Raise ValueError unless known levels are ``(N+1,)``, positive and strictly monotone."""
    shape = np.shape(levels)
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(
            f"sigmas must have shape (N+1,) with N >= 1, got {shape}; build it with flow_levels"
        )
    check_number("sigmas", levels, above=0, cure="the flow ends at a positive level")
    order = np.asarray(levels, np.float64) if isinstance(levels, np.ndarray | list) else None
    if order is None:
        return
    steps = np.diff(order if up else order[::-1])
    if not np.all(steps > 0):
        direction = "increase from sigma_min to sigma_max" if up else "decrease"
        raise ValueError(
            f"sigmas must {direction} strictly, got {order[0]:g} .. {order[-1]:g}; "
            "build them with flow_levels" + ("" if up else " and reverse them")
        )
