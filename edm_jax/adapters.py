"""Foreign networks as denoisers, and denoisers as foreign networks; exact both ways.

A network is trained on z = alpha y + std n, sees a time label, and predicts one of

    eps       n
    x0        y
    v         alpha n - std y
    score     grad log p(z) = -(z - alpha y) / std^2
    velocity  dz/dt = alpha' y + std' n

Each is linear in D and x = z / alpha, whose noise level is sigma = std / alpha, so
it is a preconditioning (EDM Eq. 7) with coefficients of its own.  What the path (the
pair alpha, std and its time label) is, and what is predicted, are chosen apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from edm_jax import names, precond, schedules
from edm_jax.arguments import check_grid, check_protocol
from edm_jax.precond import Coefs, CoefsFn, Preconditioning
from edm_jax.pytree import pytree_dataclass, short_repr
from edm_jax.typing import Array, ArrayLike, DenoiseFn, NetFn


class Path(Protocol):
    """How signal and noise are mixed: all as functions of sigma = std / alpha."""

    def alpha(self, sigma: ArrayLike) -> Array:
        """Signal scale; std = alpha sigma."""
        ...

    def label(self, sigma: ArrayLike) -> Array:
        """What the network sees as its time."""
        ...

    def sigma(self, label: ArrayLike) -> Array:
        """The noise level of a label."""
        ...

    def rates(self, sigma: ArrayLike) -> tuple[Array, Array]:
        """d alpha / dt and d std / dt, which a velocity network predicts with."""
        ...


def _vp_alpha(sigma: ArrayLike) -> Array:
    return schedules.VPScaling().scale(sigma)


@pytree_dataclass
class VPPath:
    """Variance preserving in continuous time t in (0, 1] (Song et al. 2021).

    Attributes:
      beta_d, beta_min: constants of the VP schedule.
      label_scale: the network sees label_scale times t; 999 as released.
    """

    beta_d: ArrayLike = schedules.VP_BETA_D
    beta_min: ArrayLike = schedules.VP_BETA_MIN
    label_scale: ArrayLike = 999.0

    @property
    def _schedule(self) -> schedules.VPSchedule:
        return schedules.VPSchedule(self.beta_d, self.beta_min)

    def alpha(self, sigma: ArrayLike) -> Array:
        """1 / sqrt(1 + sigma^2)."""
        return _vp_alpha(sigma)

    def label(self, sigma: ArrayLike) -> Array:
        """label_scale times t."""
        return self.label_scale * self._schedule.inverse(sigma)

    def sigma(self, label: ArrayLike) -> Array:
        """sigma_vp(label / label_scale)."""
        return self._schedule.sigma(jnp.asarray(label) / self.label_scale)

    def rates(self, sigma: ArrayLike) -> tuple[Array, Array]:
        """-beta alpha / 2 and beta alpha^2 / (2 std), with beta = beta_min + beta_d t."""
        alpha = self.alpha(sigma)
        beta = self.beta_min + self.beta_d * self._schedule.inverse(sigma)
        return -0.5 * beta * alpha, 0.5 * beta * alpha / jnp.asarray(sigma)


@pytree_dataclass
class VEPath:
    """Variance exploding: z = y + sigma n, labelled by sigma itself."""

    def alpha(self, sigma: ArrayLike) -> Array:
        """1."""
        return jnp.ones_like(sigma)

    def label(self, sigma: ArrayLike) -> Array:
        """sigma."""
        return jnp.asarray(sigma)

    def sigma(self, label: ArrayLike) -> Array:
        """The label."""
        return jnp.asarray(label)

    def rates(self, sigma: ArrayLike) -> tuple[Array, Array]:
        """0 and 1: time is sigma."""
        return jnp.zeros_like(sigma), jnp.ones_like(sigma)


@pytree_dataclass
class FlowPath:
    """Straight lines z = (1 - t) y + t n (rectified flow, flow matching).

    Attributes:
      label_scale: the network sees label_scale times its time.
      data_at_one: time runs the other way, z = t y + (1 - t) n, as does the velocity.
    """

    label_scale: ArrayLike = 1.0
    data_at_one: bool = dataclasses.field(default=False, metadata={"static": True})

    def alpha(self, sigma: ArrayLike) -> Array:
        """1 / (1 + sigma)."""
        return 1 / (1 + jnp.asarray(sigma))

    def label(self, sigma: ArrayLike) -> Array:
        """label_scale times t = sigma / (1 + sigma), or 1 - t."""
        alpha = self.alpha(sigma)
        return self.label_scale * (alpha if self.data_at_one else sigma * alpha)

    def sigma(self, label: ArrayLike) -> Array:
        """t / (1 - t)."""
        t = jnp.asarray(label) / self.label_scale
        return (1 - t) / t if self.data_at_one else t / (1 - t)

    def rates(self, sigma: ArrayLike) -> tuple[Array, Array]:
        """-1 and 1, or the reverse."""
        ones = jnp.ones_like(sigma)
        return (ones, -ones) if self.data_at_one else (-ones, ones)


@pytree_dataclass
class CosinePath:
    """z = cos(pi t / 2) y + sin(pi t / 2) n, t in (0, 1)."""

    label_scale: ArrayLike = 1.0

    def alpha(self, sigma: ArrayLike) -> Array:
        """cos(pi t / 2) = 1 / sqrt(1 + sigma^2)."""
        return _vp_alpha(sigma)

    def label(self, sigma: ArrayLike) -> Array:
        """label_scale times t = (2 / pi) atan(sigma)."""
        return self.label_scale * (2 / math.pi) * jnp.arctan(jnp.asarray(sigma))

    def sigma(self, label: ArrayLike) -> Array:
        """tan(pi t / 2)."""
        return jnp.tan(jnp.asarray(label) / self.label_scale * (math.pi / 2))

    def rates(self, sigma: ArrayLike) -> tuple[Array, Array]:
        """(pi / 2) times -std and alpha."""
        alpha = self.alpha(sigma)
        return -(math.pi / 2) * alpha * jnp.asarray(sigma), (math.pi / 2) * alpha


_NO_VELOCITY = "a discrete table has no velocity; choose eps, x0, v or score"


@short_repr
@dataclasses.dataclass(frozen=True)
class TablePath:
    """Variance preserving on M discrete levels (DDPM, iDDPM, ADM), labelled 0 .. M-1.

    Attributes:
      levels: ``(M+1,)`` decreasing table ending in 0, as `respacing.ddpm_levels` or
        `schedules.iddpm_levels` make it; entry k has label M - 1 - k.
      interpolate: give a sigma between two levels a fractional label, linear in
        ln sigma, instead of the (integer) label of the nearest level.
    """

    levels: np.ndarray
    interpolate: bool = False

    def __post_init__(self) -> None:
        check_grid(self.levels, name="levels")

    def alpha(self, sigma: ArrayLike) -> Array:
        """1 / sqrt(1 + sigma^2)."""
        return _vp_alpha(sigma)

    def _ascending(self, dtype: jnp.dtype) -> Array:
        return jnp.asarray(np.asarray(self.levels)[-2::-1], dtype)

    def label(self, sigma: ArrayLike) -> Array:
        """Index of the nearest level, int32; or fractional."""
        sigma = jnp.asarray(sigma)
        table = self._ascending(sigma.dtype)
        if self.interpolate:
            index = jnp.arange(table.shape[0], dtype=sigma.dtype)
            return jnp.interp(jnp.log(sigma), jnp.log(table), index)
        entry = precond.round_to_levels(sigma, self.levels)[1]
        return jnp.maximum(table.shape[0] - 1 - entry, 0).astype(jnp.int32)

    def sigma(self, label: ArrayLike) -> Array:
        """The level of a label."""
        label = jnp.asarray(label)
        if jnp.issubdtype(label.dtype, jnp.integer):
            return self._ascending(jnp.result_type(float))[label]
        log_table = jnp.log(self._ascending(label.dtype))
        return jnp.exp(jnp.interp(label, jnp.arange(len(log_table), dtype=label.dtype), log_table))

    def rates(self, sigma: ArrayLike) -> tuple[Array, Array]:
        """Undefined: a table of levels has no time derivative."""
        raise ValueError(_NO_VELOCITY)

    def round_sigma(self, sigma: ArrayLike) -> Array:
        """The nearest level of the table, never 0."""
        sigma = jnp.asarray(sigma)
        return precond.round_to_levels(sigma, np.asarray(self.levels)[:-1])[0]


def _eps(path: Path, sigma: Array) -> tuple[Array, Array]:
    return jnp.ones_like(sigma), -sigma


def _x0(path: Path, sigma: Array) -> tuple[Array, Array]:
    return jnp.zeros_like(sigma), jnp.ones_like(sigma)


def _v(path: Path, sigma: Array) -> tuple[Array, Array]:
    # y = (alpha z - std v) / (alpha^2 + std^2)
    share = jnp.square(_vp_alpha(sigma))
    return share, -sigma * share / path.alpha(sigma)


def _score(path: Path, sigma: Array) -> tuple[Array, Array]:
    # y = (z + std^2 score) / alpha
    return jnp.ones_like(sigma), path.alpha(sigma) * jnp.square(sigma)


def _velocity(path: Path, sigma: Array) -> tuple[Array, Array]:
    # y = (std u - std' z) / (std alpha' - std' alpha)
    alpha, (alpha_dot, std_dot) = path.alpha(sigma), path.rates(sigma)
    std = alpha * sigma
    wronskian = std * alpha_dot - std_dot * alpha
    return -std_dot * alpha / wronskian, std / wronskian


PREDICTIONS: dict[str, Callable[[Path, Array], tuple[Array, Array]]] = {
    "eps": _eps,
    "x0": _x0,
    "v": _v,
    "score": _score,
    "velocity": _velocity,
}


def prediction_coefs(prediction: str, path: Path) -> CoefsFn:
    """The coefficients that turn a prediction into D (EDM Eq. 7).

    Args:
      prediction: one of PREDICTIONS.
      path: what the network was trained on.

    Returns:
      sigma -> Coefs, with c_in = alpha and c_noise = the path's label.

    Raises:
      ValueError: for an unknown prediction, something that is no path, or a velocity
        on a discrete table.
    """
    skip_and_out = names.lookup(PREDICTIONS, prediction, "prediction")
    check_protocol(
        "path", path, ("alpha", "label", "sigma", "rates"), "use VPPath(), FlowPath(), ..."
    )
    if prediction == "velocity" and isinstance(path, TablePath):
        raise ValueError(_NO_VELOCITY)

    def coefs(sigma: ArrayLike) -> Coefs:
        sigma = jnp.asarray(sigma)
        sigma = sigma.astype(jnp.promote_types(sigma.dtype, jnp.float32))
        c_skip, c_out = skip_and_out(path, sigma)
        return Coefs(c_skip, c_out, path.alpha(sigma), path.label(sigma))

    return coefs


def adapt(net_fn: NetFn, prediction: str, path: Path) -> DenoiseFn:
    """A foreign network as a denoiser.

    Args:
      net_fn: ``net_fn(z, label, *args) -> prediction``, of the shape of z.
      prediction: what it predicts, one of PREDICTIONS.
      path: what it was trained on.

    Returns:
      ``denoise(x, sigma, *args)`` with x = z / alpha, as every sampler here takes it.
    """
    return precond.precondition(net_fn, prediction_coefs(prediction, path))


def unadapt(denoise: DenoiseFn, prediction: str, path: Path) -> NetFn:
    """A denoiser as a foreign network: the inverse of `adapt`.

    Args:
      denoise: D(x; sigma).
      prediction: what the result is to predict, one of PREDICTIONS.
      path: of the result.

    Returns:
      ``net_fn(z, label, *args)``; label a scalar or ``(B,)``.
    """
    coefs = prediction_coefs(prediction, path)

    def net_fn(z: Array, label: ArrayLike, *args: Any, **kwargs: Any) -> Array:
        sigma = path.sigma(label)
        c_skip, c_out, c_in, _ = (
            c.reshape(c.shape + (1,) * (z.ndim - c.ndim)) for c in coefs(sigma)
        )
        x = z / c_in
        return (denoise(x, sigma, *args, **kwargs) - c_skip * x) / c_out

    return net_fn


def adapted_preconditioning(
    prediction: str, path: Path, sigma_min: float = 0.0, sigma_max: float = math.inf
) -> Preconditioning:
    """The same as data that grids and samplers respect: coefficients, range, rounding.

    Args:
      prediction: one of PREDICTIONS.
      path: what the network was trained on.
      sigma_min, sigma_max: its noise range; a TablePath brings its own.
    """
    coefs = prediction_coefs(prediction, path)
    if not isinstance(path, TablePath):
        return Preconditioning(prediction, coefs, sigma_min, sigma_max)
    ends = float(path.levels[-2]), float(path.levels[0])
    if path.interpolate:
        return Preconditioning(prediction, coefs, *ends)
    return Preconditioning(prediction, coefs, *ends, round_sigma=path.round_sigma)


def clipped(denoise: DenoiseFn, low: float = -1.0, high: float = 1.0) -> DenoiseFn:
    """A denoiser whose result is clipped to [low, high], as DDPM and DDIM programs do.

    The noise estimate (x - D) / sigma follows from the clipped D.
    """

    def clip(x: Array, sigma: ArrayLike, *args: Any, **kwargs: Any) -> Array:
        return jnp.clip(denoise(x, sigma, *args, **kwargs), low, high)

    clip.clips = True  # what follows the flow of a density refuses it
    return clip
