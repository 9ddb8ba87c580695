"""What every guidance shares: its protocol, its interval, and a correction that can be off.

All but thresholding are one formula (``w`` is 1 and ``gamma`` 0 where nothing is guided):

    D_g = D + (w(sigma) - 1) (D - D_ref) + gamma(sigma) sigma^2 grad_x log p(c | x; sigma)

Written so, D comes back bit for bit where the guidance is off, and the second network is
not evaluated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import check_number, is_known
from edm_jax.pytree import pytree_dataclass, short_repr
from edm_jax.typing import Array, ArrayLike


class LabelledDenoiseFn(Protocol):
    """``D(x; sigma, c)``: x ``(B, ...)``, sigma a scalar or ``(B,)``, rows ``(B, classes)``.

    ``rows`` are the labels, one-hot; None or zeros for no label.
    """

    def __call__(self, x: Array, sigma: Array, rows: Array | None = None) -> Array: ...


@runtime_checkable
class Guidance(Protocol):
    """A pytree of numbers and models that changes a denoiser.

    ``guide`` returns a denoiser again; with its rows bound every sampler takes it.
    ``check`` raises ValueError for a model that cannot be guided so.  ``evaluations`` counts
    the evaluations per image of each network at one noise level; "denoiser" is the guided one.
    """

    def guide(self, denoise: LabelledDenoiseFn) -> LabelledDenoiseFn: ...

    def check(self, model: Any) -> None: ...

    def evaluations(self, sigma: ArrayLike) -> dict[str, int]: ...


@short_repr
@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
    """A `LabelledDenoiseFn` whose value at one place is known, and is not evaluated again there.

    For networks that return more than D, such as a variance, which guidance does not see.

    Attributes:
      denoise: evaluated anywhere else.
      place: (x, sigma, rows), told by being the same arrays.
      value: D there.
    """

    denoise: LabelledDenoiseFn
    place: tuple[Array, ArrayLike, Array | None]
    value: Array

    def __call__(self, x: Array, sigma: ArrayLike, rows: Array | None = None) -> Array:
        same = all(a is b for a, b in zip((x, sigma, rows), self.place, strict=True))
        return self.value if same else self.denoise(x, sigma, rows)


@pytree_dataclass
class Interval:
    """Noise levels at which a guidance acts: low < sigma <= high (Kynkaanniemi et al. 2024).

    sigma is the level of the evaluation: with churn the raised one, with a rounding
    network the rounded one, as samplers pass it on.

    Attributes:
      low: exclusive; a number or ``(B,)``, 0 switches it off.
      high: inclusive; a number or ``(B,)``, infinity switches it off.
    """

    low: ArrayLike = 0.0
    high: ArrayLike = math.inf

    def contains(self, sigma: ArrayLike) -> Array:
        """Whether the guidance acts at sigma; broadcast shapes, bool."""
        sigma = jnp.asarray(sigma)
        low, high = (jnp.asarray(end, sigma.dtype) for end in (self.low, self.high))
        return (low < sigma) & (sigma <= high)


def as_interval(value: Interval | tuple[ArrayLike, ArrayLike] | None) -> Interval | None:
    """An Interval of a pair (low, high); None, for all levels, stays None.

    Raises:
      ValueError: the value is no pair of numbers, or low > high.
    """
    if value is None or isinstance(value, Interval):
        interval = value
    elif isinstance(value, tuple | list) and len(value) == 2:
        interval = Interval(*value)
    else:
        raise ValueError(f"interval must be a pair (low, high) or None, got {value!r}")
    if interval is not None:
        check_number("interval low", interval.low, least=0, finite=False)
        check_number("interval high", interval.high, least=0, finite=False)
        if is_known(interval.low, interval.high) and np.any(
            np.asarray(interval.low) > np.asarray(interval.high)
        ):
            raise ValueError(
                f"interval must have low <= high, got ({interval.low}, {interval.high}); it is in "
                "noise levels, (0.19, 1.61)"
            )
    return interval


def column(value: ArrayLike, x: Array) -> Array:
    """A number or one per image, ``(B,)``, with trailing axes so that it broadcasts over x."""
    value = jnp.asarray(value)
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim)) if value.ndim else value


def at_least_float32(x: Array) -> Array:
    """x in its own precision, float32 at least: differences of close numbers follow."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def is_off(strength: ArrayLike, neutral: float) -> bool:
    """Whether the strength is known, before anything runs, to be the neutral one."""
    return is_known(strength) and bool(np.all(np.asarray(strength) == neutral))


def is_always_on(strength: ArrayLike, neutral: float, interval: Interval | None) -> bool:
    """Whether it is known that every image is guided at every level."""
    return interval is None and is_known(strength) and bool(np.all(np.asarray(strength) != neutral))


def effective(
    strength: ArrayLike, neutral: float, interval: Interval | None, sigma: ArrayLike
) -> Array:
    """The strength at a noise level: neutral outside the interval.  () or ``(B,)``."""
    strength = jnp.asarray(strength, at_least_float32(jnp.asarray(sigma)).dtype)
    if interval is None:
        return strength
    return jnp.where(interval.contains(sigma), strength, neutral)


def is_evaluated(
    strength: ArrayLike, neutral: float, interval: Interval | None, sigma: ArrayLike
) -> bool:
    """Whether any image of a batch needs the second network at known levels."""
    if interval is None:
        return not is_off(strength, neutral)
    # Ends as numbers of the levels' own precision, as `Interval.contains` compares them.
    sigma = np.asarray(sigma)
    low, high = (np.asarray(end, sigma.dtype) for end in (interval.low, interval.high))
    inside = (low < sigma) & (sigma <= high)
    return bool(np.any(inside & (np.asarray(strength) != neutral)))


def corrected(
    denoised: Array,
    strength: ArrayLike,
    neutral: float,
    interval: Interval | None,
    sigma: ArrayLike,
    direction: Callable[[], Array],
) -> Array:
    """``denoised + (strength(sigma) - neutral) direction()``, or ``denoised`` itself.

    ``direction`` is evaluated only if an image of the batch needs it: not at all where the
    strength is known to be neutral, under `jax.lax.cond` where strength, interval or sigma
    are traced.  (Under vmap a cond evaluates both branches.)

    Args:
      denoised: ``(B, ...)``, float32 at least.
      strength: w or gamma, a number or ``(B,)``.
      neutral: the strength that does nothing, 1 or 0.
      interval: where it acts.
      sigma: a scalar or ``(B,)``.
      direction: -> the shape of denoised.
    """
    if is_off(strength, neutral):
        return denoised

    def push(now: Array) -> Array:
        step = column((now - neutral).astype(denoised.dtype), denoised)
        return denoised + step * direction().astype(denoised.dtype)

    now = effective(strength, neutral, interval, sigma)
    if is_always_on(strength, neutral, interval):
        return push(now)
    on = now != neutral
    # A choice, not a product: an infinite direction must not meet the factor 0.
    return jax.lax.cond(
        jnp.any(on), lambda: jnp.where(column(on, denoised), push(now), denoised), lambda: denoised
    )


def by_correction(guidance: Any, denoise: LabelledDenoiseFn) -> LabelledDenoiseFn:
    """D plus what ``guidance.correct`` adds to it, at least float32."""

    def guided(x: Array, sigma: ArrayLike, rows: Array | None = None) -> Array:
        denoised = at_least_float32(denoise(x, sigma, rows))
        return guidance.correct(denoised, denoised, denoise, x, sigma, rows)

    return guided


def as_second(model: Any) -> Any:
    """A second model as a pytree: a plain function becomes a `jax.tree_util.Partial`."""
    if hasattr(model, "denoise") or isinstance(model, jax.tree_util.Partial):
        return model
    if not callable(model):
        raise ValueError(
            f"a second model must be a Model or a function of (x, sigma, rows), got {model!r}"
        )
    return jax.tree_util.Partial(model)


def denoise_with(model: Any, x: Array, sigma: ArrayLike, rows: Array | None) -> Array:
    """D(x; sigma, rows) of a second model."""
    denoise = model.denoise if hasattr(model, "denoise") else model
    return denoise(x, sigma, rows)


def check_second(model: Any, second: Any, what: str, *, same_labels: bool) -> None:
    """Raise ValueError unless a second model fits the first.

    Args:
      model, second: with ``image_shape`` and ``num_classes``; functions have neither and pass.
      what: the second one, for the message.
      same_labels: whether it must have the same classes.
    """
    names = ["image_shape", "num_classes"] if same_labels else ["image_shape"]
    # A classifier that guides is no Model, and of its own kind.
    names = ["kind", *names] if what != "classifier" else names
    for name in names:
        wanted, got = getattr(model, name, None), getattr(second, name, None)
        if wanted is not None and got is not None and wanted != got:
            raise ValueError(
                f"{what} must have {name} {wanted!r}, as the guided model, got {got!r}"
            )
