"""Stochastic sampling: Heun steps with churn (EDM Algorithm 2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import ModuleType
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import check_number, check_protocol, is_known
from edm_jax.pytree import pytree_dataclass
from edm_jax.samplers import heun, loop, path
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import Measured, SamplerInfo, two_calls
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key

MAX_GAMMA = math.sqrt(2) - 1  # EDM Algorithm 2, line 2: never more new noise than old


@pytree_dataclass
class Churn:
    """How much noise each step adds before it denoises (EDM Algorithm 2).

    All four are traced numbers: a sweep over them costs one compilation.

    Attributes:
      s_churn: total amount; gamma = min(s_churn / N, sqrt(2) - 1) per step.
      s_tmin, s_tmax: the range of noise levels that churn, both ends inclusive.
      s_noise: standard deviation of the added noise, relative to the exact value.

    Raises:
      ValueError: for a negative number, or s_tmin above s_tmax.
    """

    s_churn: ArrayLike = 0.0
    s_tmin: ArrayLike = 0.0
    s_tmax: ArrayLike = math.inf
    s_noise: ArrayLike = 1.0

    def __post_init__(self) -> None:
        # An int, a float and a NumPy number would be as many signatures of a jitted function.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float | np.number):
                object.__setattr__(self, field.name, float(value))
            check_number(field.name, value, least=0, finite=field.name == "s_noise")
        ends = (self.s_tmin, self.s_tmax)
        numbers = all(isinstance(end, float) for end in ends) and is_known(*ends)
        if numbers and self.s_tmin > self.s_tmax:
            raise ValueError(
                f"churn needs s_tmin <= s_tmax, got {self.s_tmin} and {self.s_tmax}; "
                "s_churn=0 switches it off"
            )

    def gamma(self, sigma: ArrayLike, num_steps: int) -> Array:
        """Relative increase of the noise level, of the shape of sigma.

        In NumPy where sigma is of NumPy and the constants are known.
        """
        known = is_known(self) and not isinstance(sigma, jax.Array)
        xp = np if known else jnp
        sigma = xp.asarray(sigma)
        active = (self.s_tmin <= sigma) & (sigma <= self.s_tmax)
        gamma = xp.minimum(xp.asarray(self.s_churn, sigma.dtype) / num_steps, MAX_GAMMA)
        return xp.where(active, gamma, 0).astype(sigma.dtype)


def raise_level(
    xp: ModuleType,
    sigma: ArrayLike,
    gamma: ArrayLike,
    round_sigma: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array]:
    """sigma_hat = (1 + gamma) sigma, and the deviation of the noise that leads there.

    Args:
      xp: array module to compute with.
      sigma, gamma: any equal shapes.
      round_sigma: rounding to levels the network knows; None for none.

    Returns:
      sigma_hat and sqrt(sigma_hat^2 - sigma^2), both of the shape of sigma.
    """
    if round_sigma is not None:
        sigma_hat = round_sigma(sigma + gamma * sigma).astype(jnp.asarray(sigma).dtype)
        return sigma_hat, jnp.sqrt(jnp.maximum((sigma_hat - sigma) * (sigma_hat + sigma), 0))
    # The difference of squares, factored: it cancels, and fused into one kernel it can be
    # negative at gamma = 0.
    square = gamma * (gamma + 2)
    # The root has no derivative at 0: keep it away from there for the sake of gradients.
    root = xp.sqrt(xp.where(square > 0, square, 1))
    return sigma + gamma * sigma, sigma * xp.where(square > 0, root, 0)


def churned(
    sigmas: ArrayLike, churn: Churn, round_sigma: Callable[[Array], Array] | None = None
) -> tuple[ModuleType, ArrayLike, ArrayLike, ArrayLike]:
    """What churn does on a grid ``(N+1,)``.

    Returns:
      The array module of the rest; the raised level that each step starts from, the level
      it goes to, and the deviation of the noise it adds first, all ``(N,)``.
    """
    _, (levels,) = rows_lib.concrete(sigmas)
    gamma = churn.gamma(levels[:-1], levels.shape[0] - 1)
    xp, (levels, gamma, s_noise) = rows_lib.concrete(levels, gamma, churn.s_noise)
    raised, std = raise_level(xp, levels[:-1], gamma, round_sigma)
    xp, (raised, after, std) = rows_lib.concrete(raised, levels[1:], s_noise * std)
    return xp, raised, after, std


def add_noise(
    x: Array,
    sigma: ArrayLike,
    gamma: ArrayLike,
    s_noise: ArrayLike,
    noise: Array,
    round_sigma: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array]:
    """Raise the noise level from sigma to (1 + gamma) sigma (Algorithm 2, lines 4-6).

    Args:
      x: state at noise level sigma, any shape.
      sigma, gamma, s_noise: scalars.
      noise: standard normal, of the shape of x.
      round_sigma: rounding to levels the network knows; None for none.

    Returns:
      The noisier state and its noise level sigma_hat.
    """
    sigma_hat, std = raise_level(jnp, jnp.asarray(sigma, x.dtype), gamma, round_sigma)
    return x + std * s_noise * noise, sigma_hat


def stochastic_step(
    denoise: DenoiseFn,
    x: Array,
    sigma: ArrayLike,
    sigma_next: ArrayLike,
    gamma: ArrayLike,
    s_noise: ArrayLike,
    noise: Array,
    *,
    round_sigma: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array]:
    """Add noise, then one Heun step (EDM Algorithm 2, lines 4-11); 2 network calls.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigma, any shape.
      sigma, sigma_next: scalars; sigma_next > 0.
      gamma: relative increase of the noise level, `Churn.gamma`.
      s_noise: `Churn.s_noise`.
      noise: standard normal, of the shape of x.
      round_sigma: rounding to levels the network knows; None for none.

    Returns:
      The state at sigma_next and D(x_hat; sigma_hat); both of the shape of x.
    """
    x_hat, sigma_hat = add_noise(x, sigma, gamma, s_noise, noise, round_sigma)
    return heun.heun_step(denoise, x_hat, sigma_hat, sigma_next)


def sample_stochastic(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    churn: Churn = Churn(),
    *,
    noise: str = "step",
    noise_fn: loop.NoiseFn | None = None,
    round_sigma: Callable[[Array], Array] | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """Stochastic sampling (EDM Algorithm 2); 2N - 1 network calls, churn or not.

    With ``churn.s_churn == 0`` it equals sample_heun.

    Args:
      denoise: D(x; sigma); sigma arrives as a scalar of the dtype of the state.
      x: state at noise level sigmas[0], that is sigmas[0] times standard normal
        noise; any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      key: ``(B,)`` keys, one per image (`seeds.image_keys`), or one key for all.
      churn: the constants of the method; numbers or traced scalars.
      noise: "step" draws anew at every step; "tree" takes all noise from one path, the same
        at any number of steps (`path`).
      noise_fn: step index -> standard normal noise of the shape of x, to replay
        recorded draws; by default drawn from ``key``.
      round_sigma: rounding of raised levels to those the network knows
        (`Preconditioning.round_sigma`); None for none.  With it the grid, rounded
        too (`grids.round_grid`), may repeat levels.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory whose ``denoised`` is
      D(x_hat_i; sigma_hat_i).

    Raises:
      ValueError: for a bad grid, or if neither key nor noise_fn is given.
    """
    check_protocol("churn", churn, ("gamma",), "use Churn(s_churn)")
    repeats = round_sigma is not None
    loop.check_sigmas(sigmas, repeats=repeats)
    x = jnp.asarray(x, loop.state_dtype(x))
    spans = lambda: path.churn_spans(sigmas, repeats=repeats)  # noqa: E731
    draw = path.noise_source(key, noise_fn, x, noise, spans)
    xp, raised, after, std = churned(sigmas, churn, round_sigma)
    rows = rows_lib.raised(heun.heun_rows(xp, raised, after), std)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)


# Below the cap gamma <= sqrt(2) - 1 from N = 32, so that the order shows.
MEASURED_CHURN = Churn(10.0, 0.05, 50.0, 1.0)
PROMISES = (
    SamplerInfo(
        "edm",
        sample_stochastic,
        order=2,
        stochastic=True,
        nfe_fn=two_calls,
        measured=(Measured("churn 10", {"churn": MEASURED_CHURN}),),
    ),
)
