"""Grids of noise levels: the time steps of EDM Table 1 and those of later work.

Every grid is ``(N+1,)`` float64 NumPy, strictly decreasing, and ends in 0.  Any
array of that form is as good: `as_sigmas` checks one and returns it verbatim.
`edm_jax.schedules.karras_sigmas` is EDM's own grid.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edm_jax import names, schedules
from edm_jax.arguments import check_grid, check_number, check_range
from edm_jax.precond import Preconditioning, check_preconditioning
from edm_jax.schedules import append_zero, finish_grid, karras_sigmas, ramp
from edm_jax.typing import ArrayLike

# sigma_vp(eps_s) and sigma_vp(1) with the constants of Table 1.
VP_SIGMA_MIN, VP_SIGMA_MAX = (
    float(np.sqrt(np.expm1(0.5 * schedules.VP_BETA_D * t**2 + schedules.VP_BETA_MIN * t)))
    for t in (schedules.VP_EPS_S, 1.0)
)


def as_sigmas(sigmas: ArrayLike) -> np.ndarray:
    """A user's own grid, verbatim, after checking it.

    Args:
      sigmas: ``(N+1,)`` levels, strictly decreasing, last entry 0.

    Returns:
      The same numbers as float64.

    Raises:
      ValueError: naming the first entry that breaks a rule.
    """
    check_grid(sigmas)
    return np.array(sigmas, np.float64)


def vp_sigmas(
    num_steps: int,
    *,
    sigma_min: float = VP_SIGMA_MIN,
    sigma_max: float = VP_SIGMA_MAX,
    eps_s: float = schedules.VP_EPS_S,
) -> np.ndarray:
    """sigma_vp(t_i), t_i = 1 + i/(N-1) (eps_s - 1) (EDM Table 1, VP).

    The constants of sigma_vp are fitted so that t = eps_s and t = 1 meet the range
    (`VPSchedule.fit`); for the default range they are those of Table 1.

    Args:
      num_steps: N, at least 1.
      sigma_min, sigma_max: ends of the range.
      eps_s: last time.

    Returns:
      ``(N+1,)``, last entry 0.
    """
    check_range(num_steps, sigma_min, sigma_max)
    vp = schedules.VPSchedule.fit(sigma_min, sigma_max, eps_s)
    t = 1 + ramp(num_steps) * (eps_s - 1)
    sigmas = np.sqrt(np.expm1(0.5 * vp.beta_d * t**2 + vp.beta_min * t))
    return finish_grid(sigmas, sigma_min, sigma_max)


def log_linear_sigmas(
    num_steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> np.ndarray:
    """Levels spaced evenly in ln sigma: sigma_max (sigma_min/sigma_max)^(i/(N-1))."""
    return polyexponential_sigmas(num_steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=1.0)


def ve_sigmas(num_steps: int, *, sigma_min: float = 0.02, sigma_max: float = 100.0) -> np.ndarray:
    """sqrt(sigma_max^2 (sigma_min^2 / sigma_max^2)^(i/(N-1))) (EDM Table 1, VE).

    The same levels as `log_linear_sigmas`, with the range of the VE networks.
    """
    return log_linear_sigmas(num_steps, sigma_min=sigma_min, sigma_max=sigma_max)


def polyexponential_sigmas(
    num_steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 1.0
) -> np.ndarray:
    """exp(r^rho (ln sigma_max - ln sigma_min) + ln sigma_min), r from 1 to 0.

    Args:
      num_steps: N, at least 1.
      sigma_min, sigma_max: ends of the range.
      rho: 1 spaces the levels evenly in ln sigma; larger crowds them to sigma_min.

    Returns:
      ``(N+1,)``, last entry 0.
    """
    check_range(num_steps, sigma_min, sigma_max)
    check_number("rho", rho, above=0)
    low, high = np.log(sigma_min), np.log(sigma_max)
    sigmas = np.exp((1 - ramp(num_steps)) ** rho * (high - low) + low)
    return finish_grid(sigmas, sigma_min, sigma_max, f"rho={rho}")


def iddpm_sigmas(
    num_steps: int,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 81.0,
    levels: np.ndarray | None = None,
) -> np.ndarray:
    """Evenly indexed entries of the iDDPM table within a range (EDM Table 1, iDDPM).

    The entries in [sigma_min, sigma_max] are indexed by (len-1)/(N-1) i, rounded
    half to even.  The default range keeps u_8 .. u_999, the paper's j_0 = 8.

    Args:
      num_steps: N, from 1 to the number of entries in the range.
      sigma_min, sigma_max: inclusive ends of the range.
      levels: ``(M+1,)`` table; by default `schedules.iddpm_levels` in float64.

    Returns:
      ``(N+1,)``, last entry 0.
    """
    check_range(num_steps, sigma_min, sigma_max)
    if levels is None:
        levels = schedules.iddpm_levels()
    check_grid(levels, name="levels")
    levels = np.asarray(levels, np.float64)
    inside = levels[(sigma_min <= levels) & (levels <= sigma_max)]
    if num_steps > len(inside):
        raise ValueError(
            f"num_steps must be at most {len(inside)}, the number of levels of the table in "
            f"[{sigma_min}, {sigma_max}], got {num_steps}"
        )
    index = np.rint((len(inside) - 1) * ramp(num_steps)).astype(int)
    return append_zero(inside[index])


GRIDS: dict[str, Callable[..., np.ndarray]] = {
    "edm": karras_sigmas,
    "vp": vp_sigmas,
    "ve": ve_sigmas,
    "iddpm": iddpm_sigmas,
    "log_linear": log_linear_sigmas,
    "polyexponential": polyexponential_sigmas,
}

# Default noise range of each grid (those of the functions above).
RANGES: dict[str, tuple[float, float]] = {
    "edm": (0.002, 80.0),
    "vp": (VP_SIGMA_MIN, VP_SIGMA_MAX),
    "ve": (0.02, 100.0),
    "iddpm": (0.002, 81.0),
    "log_linear": (0.002, 80.0),
    "polyexponential": (0.002, 80.0),
}


# ------------------------------------------------------- what a network can be asked


def clamp_range(
    sigma_min: float, sigma_max: float, preconditioning: Preconditioning | None
) -> tuple[float, float]:
    """The part of [sigma_min, sigma_max] that the network supports."""
    if preconditioning is None:
        return sigma_min, sigma_max
    check_preconditioning(preconditioning)
    low = max(sigma_min, preconditioning.sigma_min)
    high = min(sigma_max, preconditioning.sigma_max)
    if not low < high:
        raise ValueError(
            f"the noise range [{sigma_min}, {sigma_max}] lies outside that of the "
            f"{preconditioning.name} network, [{preconditioning.sigma_min}, "
            f"{preconditioning.sigma_max}]"
        )
    return low, high


def round_grid(
    sigmas: ArrayLike, preconditioning: Preconditioning, *, merge: bool = False
) -> np.ndarray:
    """The grid with every positive level rounded to one the network knows.

    Args:
      sigmas: ``(N+1,)`` grid ending in 0, inside the network's range; one that was
        rounded before stays as it is.
      preconditioning: of the network; only iDDPM's rounds.
      merge: drop repeated levels.  A grid finer than the network's table repeats
        some; a step between equal levels does nothing but cost network calls.

    Returns:
      ``(N+1,)``, or shorter if levels were merged; last entry 0.
    """
    check_preconditioning(preconditioning)
    check_grid(sigmas, repeats=preconditioning.rounds)
    sigmas = np.array(sigmas, np.float64)
    check_in_range(sigmas, preconditioning)
    if not preconditioning.rounds:
        return sigmas
    rounded = preconditioning.round_known(sigmas[:-1])
    if merge:
        rounded = rounded[np.append(True, np.diff(rounded) < 0)]
    return append_zero(rounded)


def check_in_range(sigmas: ArrayLike, preconditioning: Preconditioning) -> None:
    """Raise ValueError if a positive level lies outside the network's range."""
    positive = np.asarray(sigmas, np.float64)
    positive = positive[positive > 0]
    # A float32 ulp of slack: ranges are stored in float32 tables.
    low, high = preconditioning.sigma_min * (1 - 1e-6), preconditioning.sigma_max * (1 + 1e-6)
    if positive.size and not (low <= positive.min() and positive.max() <= high):
        raise ValueError(
            f"sigmas span [{positive.min()}, {positive.max()}], outside the range "
            f"[{preconditioning.sigma_min}, {preconditioning.sigma_max}] of the "
            f"{preconditioning.name} network; clamp it with clamp_range or make_sigmas"
        )


def make_sigmas(
    name: str,
    num_steps: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    preconditioning: Preconditioning | None = None,
    merge: bool = False,
    **options: float | np.ndarray,
) -> np.ndarray:
    """A named grid for a given network: clamp the range, space the levels, round them.

    Args:
      name: one of GRIDS.
      num_steps: N.
      sigma_min, sigma_max: wanted range; by default that of the grid (RANGES).
      preconditioning: of the network; clamps the range first, rounds afterwards, so
        a rounded level may lie just outside the wanted range (EDM section C.3).  The ``iddpm``
        grid takes its entries from the network's own table.
      merge: as in round_grid.
      **options: of the grid (rho, eps_s, levels).

    Returns:
      ``(N+1,)`` float64, last entry 0; equal neighbours only if the network rounds.

    Raises:
      ValueError: for an unknown name or option, or an empty range.
    """
    grid = names.lookup(GRIDS, name, "grid of time steps")
    known = [n for n in grid.__kwdefaults__ if not n.startswith("sigma")]
    for option in options:
        if option not in known:
            raise ValueError(f"the {name} grid has no option {option!r}; it has {known}")
    low, high = RANGES[name]
    low = low if sigma_min is None else sigma_min
    high = high if sigma_max is None else sigma_max
    check_range(num_steps, low, high)
    low, high = clamp_range(low, high, preconditioning)
    if preconditioning is not None and preconditioning.levels is not None and "levels" in known:
        options = {"levels": preconditioning.levels} | options
    sigmas = grid(num_steps, sigma_min=low, sigma_max=high, **options)
    return sigmas if preconditioning is None else round_grid(sigmas, preconditioning, merge=merge)


def resample_sigmas(sigmas: ArrayLike, num_steps: int) -> np.ndarray:
    """A given grid brought to N steps, piecewise linear in ln sigma over the index.

    Grids optimised for a few step counts (Align Your Steps, Sabour et al. 2024) are
    used at others this way.

    Args:
      sigmas: ``(K+1,)`` grid ending in 0.
      num_steps: N; N = K returns the grid itself.

    Returns:
      ``(N+1,)``, with the first and the last positive level of the given grid.
    """
    positive = as_sigmas(sigmas)[:-1]
    whole = isinstance(num_steps, int | np.integer) and num_steps >= 1
    if not whole or (len(positive) == 1 and num_steps > 1):
        raise ValueError(
            f"cannot bring a grid of {len(positive)} positive levels to num_steps={num_steps}; "
            "need at least 2 levels and an integer num_steps >= 1"
        )
    if num_steps == len(positive):
        return append_zero(positive)
    resampled = np.exp(np.interp(ramp(num_steps), ramp(len(positive)), np.log(positive)))
    return finish_grid(resampled, positive[-1], positive[0])
