"""The discrete process of DDPM, iDDPM and ADM as tables over its time steps, in sigma form.

z_t = s x with x = y + sigma_t n and s = 1 / sqrt(1 + sigma_t^2); t = 0 already carries one
step of noise, and sigma' = sigma_{t-1} is 0 there.  Variances of z_{t-1} given z_t and y:

    small (v = 0)  the true posterior's       large (v = 1)  beta_t        ln V = v ln r + ln small

Their ratio r and the precision Q = 1/sigma'^2 - 1/sigma^2 are the same in z and in x.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from edm_jax import respacing
from edm_jax.arguments import check_grid
from edm_jax.pytree import short_repr
from edm_jax.typing import Array, ArrayLike


@short_repr
class Step(NamedTuple):
    """Numbers of time steps, each of the shape of t.

    Attributes:
      sigma: noise level.
      log_ratio: ln r = ln large - ln small.
      precision: Q, 0 at t = 0, where the bound is another.
      log_small: ln of the small variance at t = 0 in z (and x) units; 0 elsewhere.
      first: whether t = 0.
    """

    sigma: Array
    log_ratio: Array
    precision: Array
    log_small: Array
    first: Array


@short_repr
@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """The time steps of a network, or of a respaced part of them.

    Attributes:
      levels: ``(T+1,)`` strictly decreasing noise levels ending in 0, float64; entry k is
        the time step T - 1 - k.
      labels: ``(T,)`` what the network is told at time step t; None for t itself.
    """

    levels: np.ndarray
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_grid(self.levels, name="levels")
        levels = np.asarray(self.levels, np.float64)
        if len(levels) < 3:
            raise ValueError(f"a process needs at least 2 time steps, got {len(levels) - 1}")
        labels = np.arange(len(levels) - 1) if self.labels is None else np.asarray(self.labels)
        if labels.shape != (len(levels) - 1,):
            raise ValueError(f"labels must have shape ({len(levels) - 1},), got {labels.shape}")
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "labels", np.asarray(labels, np.float64))

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.levels) - 1

    @functools.cached_property
    def tables(self) -> dict[str, np.ndarray]:
        """Float64 tables over t, fields of `Step`; finite everywhere."""
        sigma = self.levels[-2::-1]
        before = np.concatenate([[np.inf], sigma[:-1]])  # infinity makes Q finite at t = 0
        gap = np.where(np.arange(len(sigma)) > 0, (sigma - before) * (sigma + before), 0)
        precision = np.zeros_like(sigma)
        precision[1:] = gap[1:] / np.square(sigma[1:] * before[1:])
        # ln(1 + 1/sigma'^2) - ln(1 + 1/sigma^2) without the cancellation at large sigma.
        log_ratio = np.log1p(precision / (1 + 1 / np.square(sigma)))
        # The released programs replace the small variance of t = 0, which is 0, by that of
        # t = 1, in the units of z; large is beta_0.
        squares = np.square(sigma[:2])
        small = squares[0] * gap[1] / (squares[1] * (1 + squares[0]))
        log_small = np.zeros_like(sigma)
        log_small[0] = np.log(small)
        log_ratio[0] = np.log(squares[0] / (1 + squares[0])) - log_small[0]
        return {
            "sigma": sigma,
            "log_ratio": log_ratio,
            "precision": precision,
            "log_small": log_small,
        }

    def at(self, t: Array, dtype: jnp.dtype = jnp.float32) -> Step:
        """The numbers of time steps t, integers of any shape; gathered, then of ``dtype``."""
        # Cast from float64 once: no digit is lost in between.
        gathered = {k: jnp.asarray(v, dtype)[t] for k, v in self.tables.items()}
        return Step(**gathered, first=jnp.asarray(t) == 0)

    def label(self, t: Array, dtype: jnp.dtype = jnp.float32) -> Array:
        """What the network is told at time steps t."""
        return jnp.asarray(self.labels, dtype)[t]

    def time_step(self, sigma: ArrayLike) -> Array:
        """The time step whose level is nearest to sigma, int32; the shape of sigma."""
        ascending = self.levels[-2::-1]
        sigma = jnp.asarray(sigma)
        middles = jnp.asarray((ascending[1:] + ascending[:-1]) / 2, sigma.dtype)
        return jnp.searchsorted(middles, sigma).astype(jnp.int32)


def ddpm_process(
    schedule: str = "cosine",
    num_levels: int = 1000,
    steps: str | int = "",
    *,
    rescale_labels: bool = False,
) -> Process:
    """The process of a published schedule.

    Args:
      schedule: "cosine" or "linear", see `respacing.ddpm_levels`.
      num_levels: M, the time steps the network was trained with.
      steps: respacing, as `respacing.respaced_indices` takes it; empty for all.
      rescale_labels: the network is told index * 1000 / M instead of the index.
    """
    levels = respacing.ddpm_levels(schedule, num_levels)
    labels = np.arange(num_levels)
    if steps:
        labels = np.unique(respacing.respaced_indices(num_levels, steps))
        levels = respacing.respaced_sigmas(levels, labels)
    return Process(levels, labels * (1000 / num_levels) if rescale_labels else labels)
