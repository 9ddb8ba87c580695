"""Noise schedules sigma(t), signal scalings s(t), and grids of noise levels.

A schedule and a scaling are each one small value, independent of the other
(EDM Table 1, rows "Schedule" and "Scaling").  Grids are computed with NumPy in
float64 and cast where they enter a sampler: the rho = 7 warp costs a digit in
float32.  EDM's grid and iDDPM's table are here, the others in `edm_jax.grids`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import names
from edm_jax.arguments import check_range, check_scalar, is_known
from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike

# EDM Table 1, "Parameters".
VP_BETA_D = 19.9
VP_BETA_MIN = 0.1
VP_EPS_S = 1e-3
IDDPM_C_1 = 0.001
IDDPM_C_2 = 0.008
IDDPM_NUM_LEVELS = 1000


class Schedule(Protocol):
    """sigma(t) with its derivative and inverse."""

    def sigma(self, t: ArrayLike) -> Array: ...

    def sigma_dot(self, t: ArrayLike) -> Array: ...

    def inverse(self, sigma: ArrayLike) -> Array: ...


class Scaling(Protocol):
    """s as a function of sigma, so that it combines with any schedule sigma(t).

    s(t) = scale(sigma(t)) and ds/dt = scale_dot(sigma(t), dsigma/dt).
    """

    def scale(self, sigma: ArrayLike) -> Array: ...

    def scale_dot(self, sigma: ArrayLike, sigma_dot: ArrayLike) -> Array: ...


def _log1p_square(sigma: ArrayLike) -> ArrayLike:
    """ln(1 + sigma^2); in float64 NumPy where the value is not traced."""
    xp = jnp if isinstance(sigma, jax.Array) else np
    return xp.log1p(xp.square(sigma))


@pytree_dataclass
class VPSchedule:
    """sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) (EDM Table 1, VP).

    Attributes:
      beta_d, beta_min: slope and offset of the rate beta(t) = beta_min + beta_d t.
    """

    beta_d: ArrayLike = VP_BETA_D
    beta_min: ArrayLike = VP_BETA_MIN

    @classmethod
    def fit(
        cls, sigma_min: ArrayLike, sigma_max: ArrayLike, eps_s: ArrayLike = VP_EPS_S
    ) -> VPSchedule:
        """The schedule with sigma(eps_s) = sigma_min and sigma(1) = sigma_max.

        beta_min comes out slightly negative for some ranges; sigma(t) is then
        undefined below t = 2 |beta_min| / beta_d, which is less than eps_s.

        Raises:
          ValueError: if sigma(t) would not increase between eps_s and 1 (a range that
            spans too little for so small an eps_s); traced values go unchecked.
        """
        if is_known(eps_s) and not np.all((np.asarray(eps_s) > 0) & (np.asarray(eps_s) < 1)):
            raise ValueError(f"eps_s must lie between 0 and 1, got {eps_s}")
        low, high = _log1p_square(sigma_min), _log1p_square(sigma_max)
        beta_d = 2 * (low / eps_s - high) / (eps_s - 1)
        beta_min = high - 0.5 * beta_d
        if not isinstance(beta_d, jax.core.Tracer):
            # beta(t) = beta_min + beta_d t is linear, so its ends decide.
            if min(beta_min + beta_d * eps_s, beta_min + beta_d) <= 0:
                raise ValueError(
                    f"the VP schedule with sigma({eps_s}) = {sigma_min} and sigma(1) = "
                    f"{sigma_max} does not increase in between; use a smaller sigma_min, a "
                    "larger sigma_max or a larger eps_s"
                )
        return cls(beta_d, beta_min)

    def sigma(self, t: ArrayLike) -> Array:
        """Noise level at time ``t``; expm1 keeps the digits that exp - 1 loses."""
        return jnp.sqrt(jnp.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t))

    def sigma_dot(self, t: ArrayLike) -> Array:
        """dsigma/dt = (beta_min + beta_d t) (sigma + 1/sigma) / 2."""
        sigma = self.sigma(t)
        return 0.5 * (self.beta_min + self.beta_d * t) * (sigma + 1 / sigma)

    def inverse(self, sigma: ArrayLike) -> Array:
        """Time t with sigma(t) = ``sigma``."""
        # (sqrt(b^2 + 2 d L) - b) / d, rationalised: no cancellation at small sigma.
        log_term = 2 * jnp.log1p(jnp.square(sigma))
        return log_term / (jnp.sqrt(self.beta_min**2 + self.beta_d * log_term) + self.beta_min)


@pytree_dataclass
class VESchedule:
    """sigma(t) = sqrt(t) (EDM Table 1, VE)."""

    def sigma(self, t: ArrayLike) -> Array:
        """Noise level at time ``t``."""
        return jnp.sqrt(t)

    def sigma_dot(self, t: ArrayLike) -> Array:
        """dsigma/dt = 1 / (2 sqrt(t))."""
        return 0.5 / jnp.sqrt(t)

    def inverse(self, sigma: ArrayLike) -> Array:
        """t = sigma^2."""
        return jnp.square(sigma)


@pytree_dataclass
class LinearSchedule:
    """sigma(t) = t (EDM Table 1, EDM and DDIM)."""

    def sigma(self, t: ArrayLike) -> Array:
        """Noise level at time ``t``."""
        return jnp.asarray(t)

    def sigma_dot(self, t: ArrayLike) -> Array:
        """dsigma/dt = 1."""
        return jnp.ones_like(t)

    def inverse(self, sigma: ArrayLike) -> Array:
        """t = sigma."""
        return jnp.asarray(sigma)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "vp": VPSchedule,
    "ve": VESchedule,
    "linear": LinearSchedule,
}


# ------------------------------------------------------------------- signal scalings


@pytree_dataclass
class VPScaling:
    """s = 1 / sqrt(1 + sigma^2): the state keeps unit variance for unit-variance data.

    With the VP schedule it is EDM Table 1's 1 / sqrt(exp(beta_d t^2 / 2 + beta_min t)).
    """

    def scale(self, sigma: ArrayLike) -> Array:
        """s at noise level ``sigma``."""
        sigma = jnp.asarray(sigma)
        return 1 / jnp.hypot(sigma, jnp.ones_like(sigma))

    def scale_dot(self, sigma: ArrayLike, sigma_dot: ArrayLike) -> Array:
        """ds/dt = -sigma (dsigma/dt) s^3."""
        scale = self.scale(sigma)
        # Grouped so that no factor overflows: sigma s <= 1.
        return -(sigma * scale) * (sigma_dot * scale) * scale

    def inverse(self, scale: ArrayLike) -> Array:
        """The noise level at which s = ``scale``, in (0, 1]."""
        scale = jnp.asarray(scale)
        return jnp.sqrt((1 - scale) * (1 + scale)) / scale


@pytree_dataclass
class NoScaling:
    """s = 1 (EDM Table 1: VE, iDDPM and EDM).  Constant, so it has no inverse."""

    def scale(self, sigma: ArrayLike) -> Array:
        """1."""
        return jnp.ones_like(sigma)

    def scale_dot(self, sigma: ArrayLike, sigma_dot: ArrayLike) -> Array:
        """0."""
        return jnp.zeros_like(sigma)


SCALINGS: dict[str, Callable[..., Scaling]] = {"vp": VPScaling, "none": NoScaling}


# ---------------------------------------------------------------- noise-level grids


def ramp(num_steps: int) -> np.ndarray:
    """i / (N - 1) for i = 0..N-1; [0] for N = 1, where the formula divides 0 by 0."""
    return np.arange(num_steps, dtype=np.float64) / max(num_steps - 1, 1)


def append_zero(sigmas: np.ndarray) -> np.ndarray:
    """Add the final level 0 to a grid: ``(N,)`` -> ``(N+1,)``."""
    return np.append(sigmas, 0.0)


def finish_grid(
    sigmas: np.ndarray, sigma_min: float, sigma_max: float, setting: str = "the range"
) -> np.ndarray:
    """Positive levels with their exact ends and the final 0, checked to decrease.

    Args:
      sigmas: ``(N,)`` levels of a formula, from sigma_max to sigma_min.
      sigma_min, sigma_max: ends of the range; a single level is sigma_max.
      setting: what to blame if levels coincide, overflow or vanish in float64.

    Returns:
      ``(N+1,)``, last entry 0.
    """
    # The ends are exact by definition; the formulas may miss them by an ulp.
    sigmas[0] = sigma_max
    if len(sigmas) > 1:
        sigmas[-1] = sigma_min
    if not (np.all(np.isfinite(sigmas)) and np.all(np.diff(sigmas) < 0)):
        raise ValueError(
            f"{setting} is too extreme for {len(sigmas)} levels in [{sigma_min}, {sigma_max}]: "
            "some coincide or overflow in float64; use a more moderate one or fewer steps"
        )
    return append_zero(sigmas)


def karras_sigmas(
    num_steps: int,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> np.ndarray:
    """Noise levels visited by the EDM samplers (EDM Eq. 5).

        sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    Args:
      num_steps: N, at least 1; N = 1 gives the single level sigma_max.
      sigma_min, sigma_max: ends of the range, in data units (images span [-1, 1]).
      rho: warp; larger crowds the levels towards sigma_min.

    Returns:
      ``(N+1,)`` float64, strictly decreasing, last entry 0.

    Raises:
      ValueError: unless N >= 1, 0 < sigma_min < sigma_max and rho > 0, or if levels
        coincide in float64 (rho beyond about 1e13).
    """
    check_range(num_steps, sigma_min, sigma_max)
    check_scalar("rho", rho, above=0)
    with np.errstate(over="ignore", invalid="ignore"):  # finish_grid refuses what overflows
        top, bottom = (np.float64(end) ** (1 / rho) for end in (sigma_max, sigma_min))
        sigmas = (top + ramp(num_steps) * (bottom - top)) ** rho
    return finish_grid(sigmas, sigma_min, sigma_max, f"rho={rho}")


def iddpm_levels(
    num_levels: int = IDDPM_NUM_LEVELS,
    *,
    c_1: float = IDDPM_C_1,
    c_2: float = IDDPM_C_2,
    dtype: np.typing.DTypeLike = np.float64,
) -> np.ndarray:
    """The discrete noise levels u_j of iDDPM (EDM Table 1, section C.3).

        abar_j = sin^2(pi/2 * j / (M (C_2 + 1))),   u_M = 0
        u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, C_1) - 1)

    Args:
      num_levels: M.
      c_1, c_2: the constants of Table 1.
      dtype: precision of the recursion.  The published networks carry a float32
        table, up to 5e-4 away from exact arithmetic at the small end.

    Returns:
      ``(M+1,)`` of ``dtype``, strictly decreasing in j; u_0 is the largest, u_M = 0.

    Raises:
      ValueError: unless M >= 2.
    """
    if num_levels != int(num_levels) or num_levels < 2:
        raise ValueError(f"num_levels must be an integer >= 2, got {num_levels!r}")
    dtype = np.dtype(dtype).type
    j = np.arange(num_levels + 1).astype(dtype)
    abar = np.sin(dtype(0.5 * np.pi) * j / dtype(num_levels) / dtype(c_2 + 1)) ** 2
    u = np.zeros(num_levels + 1, dtype)
    for k in range(num_levels, 0, -1):
        ratio = max(abar[k - 1] / abar[k], dtype(c_1))
        u[k - 1] = np.sqrt((u[k] ** 2 + dtype(1)) / ratio - dtype(1))
    return u


def ddpm_levels(name: str = "cosine", num_levels: int = 1000) -> np.ndarray:
    """Noise levels sqrt(1/abar_j - 1) of the DDPM variance schedules.

    "linear" (Ho et al. 2020): b_j from 1e-4 to 0.02, times 1000 / M.
    "cosine" (Nichol & Dhariwal 2021): b_j = min(1 - f((j+1)/M) / f(j/M), 0.999),
    f(u) = cos^2((u + 0.008) / 1.008 * pi/2); it is iDDPM's table.

    Returns:
      ``(M+1,)`` float64, strictly decreasing, last entry 0; the network's index of
      entry k is M - 1 - k (as in `iddpm_levels`).
    """
    if not isinstance(num_levels, int | np.integer) or num_levels < 2:
        raise ValueError(f"num_levels must be an integer >= 2, got {num_levels!r}")
    if name == "linear":
        if num_levels <= 20:  # the last b_j, 20 / M, must stay below 1
            raise ValueError(
                f"num_levels must be at least 21 for the linear schedule, got {num_levels}; "
                "the cosine schedule takes fewer"
            )
        betas = np.linspace(1e-4, 0.02, num_levels) * (1000 / num_levels)
    elif name == "cosine":
        f = np.cos((np.arange(num_levels + 1) / num_levels + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    else:
        names.lookup({"linear": 0, "cosine": 0}, name, "variance schedule")
    # sigma^2 = 1/abar - 1 through logarithms: no cancellation at the small levels.
    sigmas = np.sqrt(np.expm1(-np.cumsum(np.log1p(-betas))))
    return append_zero(sigmas[::-1])
