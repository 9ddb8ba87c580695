"""Preconditioning: from a raw network F to a denoiser D (EDM Eq. 7 and Table 1).

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))

The coefficients of each method are one function of sigma.  A `Preconditioning`
bundles them with the range of noise levels the network knows, and with its
rounding, which samplers respect (EDM section C.3).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import schedules
from edm_jax.arguments import check_grid, check_number
from edm_jax.pytree import short_repr
from edm_jax.typing import Array, ArrayLike, DenoiseFn, NetFn


@short_repr
class Coefs(NamedTuple):
    """The four preconditioning coefficients, each of the shape of sigma."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


CoefsFn = Callable[[Array], Coefs]


def _at_least_float32(sigma: ArrayLike) -> Array:
    sigma = jnp.asarray(sigma)
    return sigma.astype(jnp.promote_types(sigma.dtype, jnp.float32))


def edm_coefs(sigma: ArrayLike, sigma_data: ArrayLike = 0.5) -> Coefs:
    """EDM coefficients (EDM Table 1, last column).

        c_skip = sd^2 / (sigma^2 + sd^2)     c_out = sigma sd / sqrt(sigma^2 + sd^2)
        c_in = 1 / sqrt(sigma^2 + sd^2)      c_noise = ln(sigma) / 4

    Args:
      sigma: noise level, > 0, any shape.
      sigma_data: sd, the standard deviation of the data.

    Returns:
      Coefs of the shape of sigma.
    """
    sigma = _at_least_float32(sigma)
    # hypot: no overflow or underflow of the squares at the ends of the range, and sigma
    # over the square root as a form that has its limits at 0 and infinity.
    total = jnp.hypot(sigma, jnp.asarray(sigma_data, sigma.dtype))
    return Coefs(
        c_skip=jnp.square(sigma_data / total),
        c_out=sigma_data / jnp.hypot(jnp.ones_like(sigma), sigma_data / sigma),
        c_in=1 / total,
        c_noise=jnp.log(sigma) / 4,
    )


def vp_coefs(
    sigma: ArrayLike,
    beta_d: ArrayLike = schedules.VP_BETA_D,
    beta_min: ArrayLike = schedules.VP_BETA_MIN,
    num_levels: int = 1000,
) -> Coefs:
    """VP coefficients (EDM Table 1, first column); c_noise = (M - 1) t(sigma).

    Args:
      sigma: noise level, > 0, any shape.
      beta_d, beta_min: constants of the VP schedule.
      num_levels: M, the number of levels the network's time embedding spans.

    Returns:
      Coefs of the shape of sigma.
    """
    sigma = _at_least_float32(sigma)
    t = schedules.VPSchedule(beta_d, beta_min).inverse(sigma)
    return Coefs(
        c_skip=jnp.ones_like(sigma),
        c_out=-sigma,
        c_in=1 / jnp.hypot(sigma, jnp.ones_like(sigma)),
        c_noise=(num_levels - 1) * t,
    )


def ve_coefs(sigma: ArrayLike) -> Coefs:
    """VE coefficients (EDM Table 1, second column); c_noise = ln(sigma / 2).

    Args:
      sigma: noise level, > 0, any shape.

    Returns:
      Coefs of the shape of sigma.
    """
    sigma = _at_least_float32(sigma)
    ones = jnp.ones_like(sigma)
    return Coefs(c_skip=ones, c_out=sigma, c_in=ones, c_noise=jnp.log(sigma / 2))


def reflected_coefs(sigma: ArrayLike) -> Coefs:
    """Coefficients of reflected diffusion on [-1, 1]; c_noise = ln(sigma) / 4.

    D = x + sigma F makes F the score times sigma, whose target has unit variance at small
    sigma and vanishes by itself at large sigma, where D tends to x.  x never leaves the
    box, so that c_in is 1.

    Args:
      sigma: noise level, > 0, any shape.

    Returns:
      Coefs of the shape of sigma.
    """
    sigma = _at_least_float32(sigma)
    ones = jnp.ones_like(sigma)
    return Coefs(c_skip=ones, c_out=sigma, c_in=ones, c_noise=jnp.log(sigma) / 4)


def round_to_levels(sigma: ArrayLike, levels: ArrayLike) -> tuple[Array, Array]:
    """The entry of a decreasing table nearest to sigma (EDM section C.3).

    Args:
      sigma: noise level, any shape.
      levels: ``(M+1,)`` strictly decreasing table.

    Returns:
      The nearest level, in the dtype of sigma, and its index j; both of the shape
      of sigma.  Of two equally near levels the larger is taken.
    """
    sigma = _at_least_float32(sigma)
    levels = jnp.asarray(levels)
    # Comparing with the midpoints needs one searchsorted instead of a (.., M+1) table.
    ascending = levels[::-1].astype(sigma.dtype)
    midpoints = (ascending[1:] + ascending[:-1]) / 2
    position = jnp.searchsorted(midpoints, sigma, side="right")
    return ascending[position], (levels.shape[0] - 1) - position


def iddpm_coefs(sigma: ArrayLike, levels: ArrayLike) -> Coefs:
    """iDDPM coefficients (EDM Table 1, third column).

    c_noise = M - 1 - argmin_j |u_j - sigma|; c_in and c_out use sigma unrounded.

    Args:
      sigma: noise level, > 0, any shape.
      levels: ``(M+1,)`` table u, as `schedules.iddpm_levels` makes it.

    Returns:
      Coefs of the shape of sigma.
    """
    sigma = _at_least_float32(sigma)
    _, index = round_to_levels(sigma, levels)
    return Coefs(
        c_skip=jnp.ones_like(sigma),
        c_out=-sigma,
        c_in=1 / jnp.hypot(sigma, jnp.ones_like(sigma)),
        c_noise=(np.shape(levels)[0] - 2 - index).astype(sigma.dtype),
    )


def precondition(net_fn: NetFn, coefs: CoefsFn) -> DenoiseFn:
    """Wrap a raw network into a denoiser (EDM Eq. 7).

    Args:
      net_fn: ``net_fn(c_in * x, c_noise, *args, **kwargs) -> F``.  F has the shape
        of x, or more channels on its last axis, of which the first are used (iDDPM
        networks predict a variance as well).
      coefs: sigma -> Coefs; a `Preconditioning` is one.

    Returns:
      ``denoise(x, sigma, *args, **kwargs)``: x of shape ``(B, ...)`` or any other,
      sigma a scalar or ``(B,)``; arguments after sigma go to the network untouched.
      The result has the shape of x and at least float32 precision.
    """

    def denoise(x: Array, sigma: ArrayLike, *args: Any, **kwargs: Any) -> Array:
        return _denoised_and_rest(net_fn, coefs, x, sigma, args, kwargs)[0]

    return denoise


def precondition_with_variance(net_fn: NetFn, coefs: CoefsFn) -> Callable[..., Any]:
    """Wrap a network that predicts a variance as well (Nichol and Dhariwal 2021).

    Args:
      net_fn: as in `precondition`; F has twice the channels of x.
      coefs: sigma -> Coefs.

    Returns:
      ``denoise(x, sigma, *args, **kwargs) -> (D, v)``, as ``samplers.ddpm`` takes it with
      ``variance="learned"``: v = (the other channels of F + 1) / 2, of the shape of x, is
      where the variance lies between small (0) and large (1); not clamped.

    Raises (when called):
      ValueError: F has another number of channels.
    """

    def denoise(x: Array, sigma: ArrayLike, *args: Any, **kwargs: Any) -> tuple[Array, Array]:
        denoised, rest = _denoised_and_rest(net_fn, coefs, x, sigma, args, kwargs)
        if rest.shape != denoised.shape:
            raise ValueError(
                "variance='learned' needs a network with twice the channels of the image, got "
                f"{rest.shape[-1]} more than its {x.shape[-1]}; use variance='small' or 'large'"
            )
        return denoised, (rest.astype(denoised.dtype) + 1) / 2

    return denoise


def _denoised_and_rest(
    net_fn: NetFn, coefs: CoefsFn, x: Array, sigma: ArrayLike, args: Any, kwargs: Any
) -> tuple[Array, Array]:
    """D(x; sigma), and the channels of F beyond those of x."""
    x = _at_least_float32(x)
    sigma = jnp.asarray(sigma).astype(x.dtype)
    if sigma.ndim > 1 or (sigma.ndim == 1 and sigma.shape[0] not in (1, x.shape[0])):
        raise ValueError(
            f"sigma must be a scalar or have shape ({x.shape[0] if x.ndim else 1},) "
            f"for x of shape {x.shape}, got {sigma.shape}"
        )
    c_skip, c_out, c_in, c_noise = coefs(sigma)
    column = sigma.shape + (1,) * (x.ndim - sigma.ndim)  # broadcasts over an image
    f_x = net_fn(c_in.reshape(column) * x, c_noise, *args, **kwargs)
    rest = f_x
    if x.ndim:
        f_x, rest = f_x[..., : x.shape[-1]], f_x[..., x.shape[-1] :]
    return c_skip.reshape(column) * x + c_out.reshape(column) * f_x.astype(x.dtype), rest


def _identity(sigma: ArrayLike) -> Array:
    return jnp.asarray(sigma)


@short_repr
@dataclasses.dataclass(frozen=True)
class Preconditioning:
    """Coefficients plus what a sampler must know of the network behind them.

    Attributes:
      name: ``edm``, ``vp``, ``ve``, ``iddpm`` or ``reflected``.
      coefs: sigma -> Coefs.
      sigma_min, sigma_max: range of noise levels the network was made for.
      round_sigma: maps a noise level to the nearest one the network knows.
      channel_multiplier: output channels of F per image channel.
    """

    name: str
    coefs: CoefsFn
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    round_sigma: Callable[[ArrayLike], Array] = _identity
    channel_multiplier: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < self.sigma_max:
            raise ValueError(
                f"the noise range of a network needs 0 <= sigma_min < sigma_max, got "
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )

    @property
    def rounds(self) -> bool:
        """Whether the network knows a table of noise levels only."""
        return self.round_sigma is not _identity

    @property
    def levels(self) -> np.ndarray | None:
        """``(M+1,)`` table of the only levels that the network knows; None if it knows all."""
        return getattr(self.coefs, "keywords", {}).get("levels")

    @property
    def sigma_data(self) -> float | None:
        """Deviation of the data that the coefficients were made for; None where they ask none."""
        return getattr(self.coefs, "keywords", {}).get("sigma_data")

    def round_known(self, sigmas: ArrayLike) -> np.ndarray:
        """`round_sigma` of levels that are numbers, as numbers, even while a caller is traced.

        Args:
          sigmas: of any shape, not traced.

        Returns:
          float64 of that shape.
        """
        with jax.ensure_compile_time_eval():
            return np.asarray(self.round_sigma(np.asarray(sigmas, np.float64)), np.float64)

    def __call__(self, sigma: ArrayLike) -> Coefs:
        return self.coefs(sigma)


def edm_preconditioning(
    sigma_data: float = 0.5, sigma_min: float = 0.0, sigma_max: float = math.inf
) -> Preconditioning:
    """EDM preconditioning, by default for every noise level (EDM Table 1)."""
    check_number("sigma_data", sigma_data, above=0)
    coefs = functools.partial(edm_coefs, sigma_data=sigma_data)
    return Preconditioning("edm", coefs, sigma_min, sigma_max)


def vp_preconditioning(
    beta_d: float = schedules.VP_BETA_D,
    beta_min: float = schedules.VP_BETA_MIN,
    num_levels: int = 1000,
    eps_t: float = 1e-5,
) -> Preconditioning:
    """VP preconditioning; its range is sigma(eps_t)..sigma(1) (EDM Table 1)."""
    check_number("beta_d", beta_d, above=0)
    check_number("beta_min", beta_min, least=0)
    check_number("eps_t", eps_t, above=0, most=1)
    check_number("num_levels", num_levels, least=2)
    coefs = functools.partial(vp_coefs, beta_d=beta_d, beta_min=beta_min, num_levels=num_levels)
    ends = [math.sqrt(math.expm1(0.5 * beta_d * t**2 + beta_min * t)) for t in (eps_t, 1)]
    return Preconditioning("vp", coefs, *ends)


def ve_preconditioning(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Preconditioning:
    """VE preconditioning (EDM Table 1)."""
    return Preconditioning("ve", ve_coefs, sigma_min, sigma_max)


def reflected_preconditioning(sigma_min: float = 0.02, sigma_max: float = 10.0) -> Preconditioning:
    """Preconditioning of reflected diffusion on [-1, 1] (`edm_jax.reflected`).

    The published range, 0.01 to 5, is in units of [0, 1]: twice that here.
    """
    return Preconditioning("reflected", reflected_coefs, sigma_min, sigma_max)


def iddpm_preconditioning(
    num_levels: int = schedules.IDDPM_NUM_LEVELS,
    c_1: float = schedules.IDDPM_C_1,
    c_2: float = schedules.IDDPM_C_2,
    levels: np.ndarray | None = None,
    schedule: str = "cosine",
) -> Preconditioning:
    """iDDPM preconditioning with rounding to its table of levels (EDM Table 1).

    Args:
      num_levels: M; ignored if ``levels`` is given.
      c_1, c_2: constants of the cosine table; ignored if ``levels`` is given.
      levels: ``(M+1,)`` table u of an imported network.
      schedule: "cosine", iDDPM's table, or "linear", that of DDPM and of ADM from 128x128 on
        (`schedules.ddpm_levels`); ignored if ``levels`` is given.

    Raises:
      ValueError: for another schedule, or too few levels.
    """
    if levels is None and schedule == "cosine":
        levels = schedules.iddpm_levels(num_levels, c_1=c_1, c_2=c_2, dtype=np.float32)
    elif levels is None:
        levels = schedules.ddpm_levels(schedule, num_levels).astype(np.float32)
    check_grid(levels, name="levels")
    return Preconditioning(
        "iddpm",
        functools.partial(iddpm_coefs, levels=levels),
        sigma_min=float(levels[-2]),
        sigma_max=float(levels[0]),
        round_sigma=lambda sigma: round_to_levels(sigma, levels)[0],
        channel_multiplier=2,
    )


def check_preconditioning(value: Any) -> None:
    """Raise ValueError unless value is a Preconditioning."""
    if not isinstance(value, Preconditioning):
        raise ValueError(
            f"preconditioning must be a Preconditioning, got {value!r}; use "
            "precond.ve_preconditioning(), ..."
        )


PRECONDITIONINGS: dict[str, Callable[..., Preconditioning]] = {
    "edm": edm_preconditioning,
    "vp": vp_preconditioning,
    "ve": ve_preconditioning,
    "iddpm": iddpm_preconditioning,
    "reflected": reflected_preconditioning,
}
