"""Training noise: distributions p(sigma) and loss weights lambda(sigma) (EDM Table 1).

Each distribution separates its random draw from the map to a noise level, so that
recorded draws can be replayed, and is a pytree of numbers that may be traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import schedules
from edm_jax.arguments import check_grid, check_number, is_known
from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike, Key

WeightFn = Callable[[Array], Array]


class NoiseDistribution(Protocol):
    """p(sigma): how training noise levels are drawn."""

    def base_draw(self, key: Key, shape: tuple[int, ...]) -> Array: ...

    def sigma(self, draw: Array) -> Array: ...


def sample_sigma(distribution: NoiseDistribution, key: Key, shape: tuple[int, ...]) -> Array:
    """Noise levels of shape ``shape`` from p(sigma), float32."""
    return distribution.sigma(distribution.base_draw(key, shape))


@pytree_dataclass
class LogNormal:
    """ln sigma ~ N(p_mean, p_std^2) (EDM Table 1, EDM)."""

    p_mean: ArrayLike = -1.2
    p_std: ArrayLike = 1.2

    def __post_init__(self) -> None:
        check_number("p_mean", self.p_mean)
        check_number("p_std", self.p_std, above=0)

    def base_draw(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Standard normal draws."""
        return jax.random.normal(key, shape)

    def sigma(self, draw: Array) -> Array:
        """exp(p_mean + p_std * draw)."""
        return jnp.exp(self.p_mean + self.p_std * draw)


@pytree_dataclass
class UniformTime:
    """t ~ U(eps_t, 1), sigma = sigma_vp(t) (EDM Table 1, VP)."""

    beta_d: ArrayLike = schedules.VP_BETA_D
    beta_min: ArrayLike = schedules.VP_BETA_MIN
    eps_t: ArrayLike = 1e-5

    def __post_init__(self) -> None:
        check_number("beta_d", self.beta_d, above=0)
        check_number("beta_min", self.beta_min, least=0)
        check_number("eps_t", self.eps_t, above=0, most=1)

    def base_draw(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Uniform draws in [0, 1)."""
        return jax.random.uniform(key, shape)

    def sigma(self, draw: Array) -> Array:
        """sigma_vp(1 + draw * (eps_t - 1))."""
        schedule = schedules.VPSchedule(self.beta_d, self.beta_min)
        return schedule.sigma(1 + draw * (self.eps_t - 1))


@pytree_dataclass
class LogUniform:
    """ln sigma ~ U(ln sigma_min, ln sigma_max) (EDM Table 1, VE)."""

    sigma_min: ArrayLike = 0.02
    sigma_max: ArrayLike = 100.0

    def __post_init__(self) -> None:
        check_number("sigma_min", self.sigma_min, above=0)
        check_number("sigma_max", self.sigma_max, above=0)
        if is_known(self.sigma_min, self.sigma_max) and not np.all(
            np.asarray(self.sigma_min) < np.asarray(self.sigma_max)
        ):
            raise ValueError(
                f"sigma_min must be below sigma_max, got {self.sigma_min} and {self.sigma_max}"
            )

    def base_draw(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Uniform draws in [0, 1)."""
        return jax.random.uniform(key, shape)

    def sigma(self, draw: Array) -> Array:
        """sigma_min * (sigma_max / sigma_min)^draw."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** draw


@pytree_dataclass
class DiscreteLevels:
    """sigma = u_j, j ~ U{0..M-1} (EDM Table 1, iDDPM).

    Attributes:
      levels: ``(M+1,)`` table whose last entry 0 is never drawn.
    """

    levels: ArrayLike = dataclasses.field(
        default_factory=lambda: schedules.iddpm_levels().astype(np.float32)
    )

    def __post_init__(self) -> None:
        if is_known(self.levels):
            check_grid(self.levels, name="levels")

    def base_draw(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Uniform integers j in [0, M)."""
        return jax.random.randint(key, shape, 0, np.shape(self.levels)[0] - 1)

    def sigma(self, draw: Array) -> Array:
        """u_j."""
        return jnp.asarray(self.levels)[draw]


def discrete_levels(schedule: str = "cosine", num_levels: int = 1000) -> DiscreteLevels:
    """`DiscreteLevels` of a published table, `schedules.ddpm_levels`, in float32."""
    return DiscreteLevels(schedules.ddpm_levels(schedule, num_levels).astype(np.float32))


def edm_weight(sigma: ArrayLike, sigma_data: ArrayLike = 0.5) -> Array:
    """lambda = (sigma^2 + sd^2) / (sigma sd)^2 = 1 / c_out^2 (EDM Table 1)."""
    # A sum of squares of reciprocals neither overflows nor underflows.
    return jnp.square(1 / jnp.asarray(sigma)) + 1 / jnp.square(sigma_data)


def inverse_square_weight(sigma: ArrayLike) -> Array:
    """lambda = 1 / sigma^2 (EDM Table 1, VP, VE and iDDPM)."""
    return jnp.square(1 / jnp.asarray(sigma))


@pytree_dataclass
class EdmWeight:
    """`edm_weight` of a standard deviation of the data."""

    sigma_data: ArrayLike = 0.5

    def __post_init__(self) -> None:
        check_number("sigma_data", self.sigma_data, above=0)

    def __call__(self, sigma: ArrayLike) -> Array:
        return edm_weight(sigma, self.sigma_data)


@pytree_dataclass
class InverseSquareWeight:
    """`inverse_square_weight`, which has no constants."""

    def __call__(self, sigma: ArrayLike) -> Array:
        return inverse_square_weight(sigma)


DISTRIBUTIONS: dict[str, Callable[..., NoiseDistribution]] = {
    "lognormal": LogNormal,
    "uniform_time": UniformTime,
    "loguniform": LogUniform,
    "discrete": discrete_levels,
}

WEIGHTS: dict[str, Callable[..., WeightFn]] = {
    "edm": EdmWeight,
    "inverse_square": InverseSquareWeight,
}
