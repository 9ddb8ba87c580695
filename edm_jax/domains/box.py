"""Domains of reflected diffusion, as small objects of pure functions; the box is one.

Reflected Diffusion Models (Lou and Ermon 2023) add noise that is reflected at the faces of
a domain.  On a box that is heat flow of the even, periodic extension of the data, so in
terms of

    D(x; sigma) = x + sigma^2 grad ln p(x; sigma)

every formula of EDM holds word for word.  What differs from diffusion on the whole space
is named by the `Domain` protocol:

                    whole space               box
    corrupt         y + sigma n               fold(y + sigma n)
    target          y                         D*(x, y; sigma)
    lift            D                         D continued evenly about every face
    prior           sigma_max n               uniform on the box
    fold            x                         the point of the box that x reflects to

A sampler runs on ``domain.lift(denoise)``, starts at ``domain.prior(noise)`` and ends with
``domain.fold``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import check_number, is_known
from edm_jax.domains import kernel
from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike, DenoiseFn


class Domain(Protocol):
    """Where the data live, and how noise behaves there."""

    def corrupt(self, y: Array, sigma: ArrayLike, noise: Array) -> Array: ...

    def target(self, x: Array, y: Array, sigma: ArrayLike) -> Array: ...

    def lift(self, denoise: DenoiseFn) -> DenoiseFn: ...

    def prior(self, noise: Array) -> Array: ...

    def prior_log_density(self, x: Array) -> Array: ...

    def fold(self, v: Array) -> Array: ...


def _float(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def column(sigma: ArrayLike, x: Array) -> Array:
    """sigma, a scalar or of leading axes of x, with trailing axes to broadcast against x."""
    sigma = jnp.asarray(sigma, x.dtype)
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))


@pytree_dataclass
class Box:
    """The box [low, high]^d with reflecting faces; every element is a coordinate.

    Noise levels are in its units: on [-1, 1] they are twice those on [0, 1], in which the
    paper and its program count.

    In what follows x, y and v are arrays of one shape, and sigma is a scalar or has the
    shape of their leading axes, ``(B,)`` for a level per image.

    Attributes:
      low, high: ends of every coordinate's interval, scalars.

    Raises:
      ValueError: unless low < high.
    """

    low: ArrayLike = -1.0
    high: ArrayLike = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_number(f"{field.name} of a box", getattr(self, field.name))
            if np.ndim(getattr(self, field.name)):
                raise ValueError(
                    f"{field.name} of a box must be a scalar, the same for every coordinate, got "
                    f"shape {np.shape(getattr(self, field.name))}; scale the data"
                )
        if is_known(self.low, self.high) and not self.low < self.high:
            raise ValueError(
                f"a box needs low < high, got low={self.low}, high={self.high}; images are "
                "in [-1, 1]"
            )

    @property
    def length(self) -> ArrayLike:
        """L = high - low."""
        return self.high - self.low

    def _ends(self, like: Array) -> tuple[Array, Array]:
        return jnp.asarray(self.low, like.dtype), jnp.asarray(self.high, like.dtype)

    # ------------------------------------------------------------------- folding

    def _cell(self, v: Array) -> tuple[Array, Array, Array]:
        """Whether v is in the box; whether in an even cell; its offset in a pair of cells."""
        low, high = self._ends(v)
        offset = jnp.mod(v - low, 2 * (high - low))
        inside = (low <= v) & (v <= high)
        return inside, inside | (offset < high - low), offset

    def fold(self, v: Array) -> Array:
        """The point of the box that v reflects to, however far away.

            low + | ((v - low + L) mod 2L) - L |

        The identity inside, even about every face, of period 2L; its derivative is 1 or -1.
        A value loses as many digits as |v| exceeds L, and infinity becomes NaN.
        """
        v = _float(v)
        low, high = self._ends(v)
        inside, even, offset = self._cell(v)
        folded = jnp.where(even, low + offset, high - (offset - (high - low)))
        # The ends of the box are not always a sum of each other and the rounded length.
        folded = jnp.where(folded < low, low, jnp.where(folded > high, high, folded))
        return jnp.where(inside, v, folded)

    def sign(self, v: Array) -> Array:
        """+1 where folding keeps the direction of v, -1 where it turns it round.

        On the faces of the box itself, which belong to two cells, it is +1.
        """
        v = _float(v)
        return jnp.where(self._cell(v)[1], 1, -1).astype(v.dtype)

    def clip(self, v: Array) -> Array:
        """The nearest point of the box."""
        v = _float(v)
        return jnp.clip(v, *self._ends(v))

    # ------------------------------------------------------------------- process

    def corrupt(self, y: Array, sigma: ArrayLike, noise: Array) -> Array:
        """x at noise level sigma from clean data y: fold(y + sigma n), exactly the process.

        Args:
          y: clean data in the box.
          sigma: noise level, >= 0.
          noise: standard normal, of the shape of y.
        """
        y = _float(y)
        return self.fold(y + column(sigma, y) * noise.astype(y.dtype))

    def log_kernel(self, x: Array, y: Array, sigma: ArrayLike) -> Array:
        """ln q(x | y; sigma) of every coordinate; sum them for that of an image."""
        x = _float(x)
        return kernel.log_density(x, jnp.asarray(y, x.dtype), column(sigma, x), *self._ends(x))

    def scaled_score(self, x: Array, y: Array, sigma: ArrayLike) -> Array:
        """sigma times the gradient of ln q(x | y; sigma) by x, that is (D* - x) / sigma."""
        x = _float(x)
        return kernel.scaled_score(x, jnp.asarray(y, x.dtype), column(sigma, x), *self._ends(x))

    def score(self, x: Array, y: Array, sigma: ArrayLike) -> Array:
        """The gradient of ln q(x | y; sigma) by x."""
        x = _float(x)
        return self.scaled_score(x, y, sigma) / column(sigma, x)

    def target(self, x: Array, y: Array, sigma: ArrayLike) -> Array:
        """What D(x; sigma) is regressed on (`kernel.target`); it may leave the box."""
        x = _float(x)
        return kernel.target(x, jnp.asarray(y, x.dtype), column(sigma, x), *self._ends(x))

    # ------------------------------------------------------------------ sampling

    def lift(self, denoise: DenoiseFn) -> DenoiseFn:
        """D continued from the box to the whole space, evenly about every face.

            D_lift(v; sigma) = v + sign(v) (D(fold(v); sigma) - fold(v))

        A sampler that runs on it and folds its result follows the reflected process; the
        state is not folded in between, so multistep methods keep a consistent history.

        Args:
          denoise: ``denoise(x, sigma, ...)``, only ever called inside the box.

        Returns:
          ``(v, sigma, ...) -> D_lift``; inside the box D itself, up to rounding.
        """

        def lifted(v: Array, sigma: ArrayLike, *args: Any, **kwargs: Any) -> Array:
            v = _float(v)
            x = self.fold(v)
            return v + self.sign(v) * (denoise(x, sigma, *args, **kwargs) - x)

        return lifted

    def prior(self, noise: Array) -> Array:
        """Standard normal noise -> a start of sampling, uniform on the box.

        By the normal distribution function, so one key (and one latent) starts an image of
        this process and of diffusion on the whole space.  It is the law at any sigma_max
        from 1.5 L on, to within 1e-5 of a coordinate in total variation.
        """
        noise = _float(noise)
        low, high = self._ends(noise)
        return low + (high - low) * jax.scipy.special.ndtr(noise)

    def prior_log_density(self, x: Array) -> Array:
        """ln density of the uniform law, -d ln L: ``(B, ...)`` -> ``(B,)``."""
        x = _float(x)
        value = -math.prod(x.shape[1:]) * jnp.log(jnp.asarray(self.length, x.dtype))
        return jnp.full(x.shape[:1], value)

    # --------------------------------------------------------------------- checks

    def check(self, y: ArrayLike, name: str = "data") -> None:
        """Raise ValueError if known values lie outside the box; traced ones pass.

        Args:
          y: data, or a state of sampling.
          name: of it, for the message.
        """
        if not is_known(y, self.low, self.high):
            return
        values = np.asarray(y)
        if values.size and not (np.all(self.low <= values) and np.all(values <= self.high)):
            raise ValueError(
                f"{name} must lie in the box [{self.low:g}, {self.high:g}], got values from "
                f"{values.min():g} to {values.max():g}; scale it, or give the box its range"
            )

    def check_levels(self, sigma_min: float, sigma_max: float) -> None:
        """Raise ValueError unless known levels of noise fit the size of the box.

        The law at sigma_max must be uniform and that at sigma_min near the data.  Levels of
        [0, 1] on [-1, 1], or of EDM on either, are the usual mistake.
        """
        if not is_known(sigma_min, sigma_max, self.low, self.high):
            return
        check_number("sigma_min", sigma_min, above=0)
        check_number("sigma_max", sigma_max, above=0)
        length = float(self.length)
        unscaled = length != 1 and math.isclose(sigma_min, 0.01) and math.isclose(sigma_max, 5)
        # Total variation to the uniform law of one coordinate: 5e-3 at 1.0, 1e-5 at 1.5.
        if unscaled or not (sigma_min < 0.1 * length and length <= sigma_max <= 20 * length):
            raise ValueError(
                f"noise levels of a box of length {length:g} must satisfy sigma_min < "
                f"{0.1 * length:g} and {length:g} <= sigma_max <= {20 * length:g}, got "
                f"sigma_min={sigma_min:g}, sigma_max={sigma_max:g}; they are in units of the "
                f"box: the published 0.01 to 5 on [0, 1] are {0.01 * length:g} to "
                f"{5 * length:g} here"
            )
