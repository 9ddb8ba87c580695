"""Upscale models: coarse values first, then their refinement, each in any order.

Values are numbers of S digits in base b.  Level s keeps the s leading digits:

    level_s(v) = floor(v / b^(S-s)) b^(S-s)        level_0 = 0, level_S = v
    digit_s(v) = floor(v / b^(S-1-s)) mod b        stage s refines level_s to level_{s+1}

Stage s is an order-agnostic model over all variables in which an unknown one shows its
coarse value (Hoogeboom et al. 2022, section 4).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from edm_jax.ardm.orders import check_order, per_variable
from edm_jax.ardm.outputs import gumbel_argmax, pick
from edm_jax.typing import Array, ArrayLike

PARAMETERIZATIONS = ("data", "direct")


def num_stages(num_values: int, base: int) -> int:
    """The smallest S with base^S >= num_values."""
    # In integers: ln 125 / ln 5 in floating point rounds to more than 3.
    stages, reach = 0, 1
    while reach < num_values:
        stages, reach = stages + 1, reach * base
    return stages


def level(x: Array, stage: ArrayLike, base: int, stages: int) -> Array:
    """level_s(x): all but the ``stage`` leading digits set to zero.

    Args:
      x: integers, any shape.
      stage: s in 0..S, broadcast against x.
      base, stages: b and S.
    """
    unit = _power(base, stages - jnp.asarray(stage), stages)
    return x // unit * unit


def digit(x: Array, stage: ArrayLike, base: int, stages: int) -> Array:
    """digit_s(x), the one that stage s = 0..S-1 adds; arguments as of `level`."""
    return x // _power(base, stages - 1 - jnp.asarray(stage), stages) % base


def _power(base: int, exponent: Array, most: int) -> Array:
    return jnp.asarray([base**e for e in range(most + 1)], jnp.int32)[exponent]


@dataclasses.dataclass(frozen=True)
class Upscale:
    """The model from coarse to fine.

    Attributes:
      num_values: K, at least 2.
      base: b, at least 2.
      parameterization: how outputs describe a digit.  ``data``: K logits per variable, of
        which the probabilities of all values below a child add up,
        p(child | past) = P(values below child) / P(values below past).  ``direct``: b logits for
        each stage, for large K.  Where K is no power of b the latter gives mass to values
        beyond K - 1 in the likelihood; draws leave them out, so that the likelihood stays a
        lower bound of the model that is drawn from.
      augmented: show coarse values as symbols of their own, numbered after the K values
        and ending in the absorbing one, instead of as members of 0..K-1.
      order: ``random``, or ``raster`` in every stage.
    """

    num_values: int
    base: int = 4
    parameterization: str = "data"
    augmented: bool = False
    order: str = "random"

    def __post_init__(self) -> None:
        check_order(self.order)
        for name, value in (("num_values", self.num_values), ("base", self.base)):
            if not isinstance(value, int) or value < 2:
                raise ValueError(f"{name} must be an integer of at least 2, got {value!r}")
        if self.parameterization not in PARAMETERIZATIONS:
            raise ValueError(
                f"parameterization must be one of {', '.join(PARAMETERIZATIONS)}, got "
                f"{self.parameterization!r}"
            )
        if self.augmented and self.parameterization != "data":
            raise ValueError("augmented symbols need parameterization='data', got 'direct'")

    @property
    def num_stages(self) -> int:
        """S."""
        return num_stages(self.num_values, self.base)

    def _symbol_offsets(self) -> list[int]:
        """First symbol of each level 0..S; one more entry, their number."""
        sizes = [-(-self.num_values // self.base**e) for e in range(self.num_stages + 1)]
        starts = [sum(sizes[:e]) for e in range(self.num_stages + 1)]
        return [*reversed(starts), sum(sizes)]

    @property
    def num_inputs(self) -> int:
        """K, or the number of all symbols."""
        return self._symbol_offsets()[-1] if self.augmented else self.num_values

    def num_outputs(self, channels: int) -> int:
        """K, or S b, for each channel."""
        direct = self.num_stages * self.base
        return channels * (self.num_values if self.parameterization == "data" else direct)

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Every channel is a variable."""
        return shape

    def level(self, x: Array, stage: ArrayLike) -> Array:
        """level_s(x), stage broadcast against x."""
        return level(x, stage, self.base, self.num_stages)

    def digit(self, x: Array, stage: ArrayLike) -> Array:
        """digit_s(x), stage broadcast against x."""
        return digit(x, stage, self.base, self.num_stages)

    def symbol(self, x: Array, stage: ArrayLike) -> Array:
        """What stands for level_s(x) at the input of the network."""
        value = self.level(x, stage)
        if not self.augmented:
            return value
        left = self.num_stages - jnp.asarray(stage)
        offset = jnp.asarray(self._symbol_offsets()[:-1], jnp.int32)[jnp.asarray(stage)]
        return value // _power(self.base, left, self.num_stages) + offset

    def start(self, shape: tuple[int, ...]) -> Array:
        """Zero everywhere: no digit is known."""
        return jnp.zeros(shape, jnp.int32)

    def shown(self, x: Array, known: Array, stage: Array) -> Array:
        """level_{s+1} where known, level_s elsewhere."""
        stage = per_variable(stage, x)
        return jnp.where(known, self.symbol(x, stage + 1), self.symbol(x, stage)).astype(jnp.int32)

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A uniform per value, or per digit."""
        return (*shape, self.num_values if self.parameterization == "data" else self.base)

    def log_prob(self, outputs: Array, x: Array, stage: Array) -> Array:
        """ln p(level_{s+1}(x) | level_s(x)) for every variable."""
        stage = per_variable(stage, x)
        if self.parameterization == "direct":
            log_probs = jax.nn.log_softmax(self._digit_logits(outputs, x.shape, stage))
            return pick(log_probs, self.digit(x, stage))
        logits = outputs.reshape(*x.shape, self.num_values).astype(jnp.float32)
        child = self._below(x, stage + 1)
        mass = jnp.where(child, logits, -jnp.inf)
        total = jnp.where(self._below(x, stage), logits, -jnp.inf)
        return jax.nn.logsumexp(mass, axis=-1) - jax.nn.logsumexp(total, axis=-1)

    def draw(self, outputs: Array, x: Array, uniform: Array, stage: Array) -> Array:
        """level_{s+1} of every position given its level_s."""
        stage = per_variable(stage, x)
        past = self.level(x, stage)
        if self.parameterization == "direct":
            unit = _power(self.base, self.num_stages - 1 - stage, self.num_stages)
            digits = jnp.arange(self.base).reshape((1,) * x.ndim + (-1,))
            children = past[..., None] + unit[..., None] * digits
            logits = self._digit_logits(outputs, x.shape, stage)
            allowed = jnp.where(children < self.num_values, logits, -jnp.inf)
            return pick(children, gumbel_argmax(allowed, uniform))
        # A full value among those below the past, of which the next digit is kept: the same
        # distribution as drawing the child, without summing over its values.
        logits = outputs.reshape(*x.shape, self.num_values).astype(jnp.float32)
        allowed = jnp.where(self._below(x, stage), logits, -jnp.inf)
        return self.level(gumbel_argmax(allowed, uniform), stage + 1)

    def _digit_logits(self, outputs: Array, shape: tuple[int, ...], stage: Array) -> Array:
        """Row ``stage`` of the outputs ``(*shape, S b)``: ``(*shape, b)`` float32."""
        rows = outputs.reshape(*shape, self.num_stages, self.base).astype(jnp.float32)
        return jnp.take_along_axis(rows, stage[..., None, None], axis=-2)[..., 0, :]

    def _below(self, x: Array, stage: Array) -> Array:
        """``(*x.shape, K)``: which values agree with x in the leading ``stage`` digits."""
        values = jnp.arange(self.num_values).reshape((1,) * x.ndim + (-1,))
        return self.level(values, stage[..., None]) == self.level(x, stage)[..., None]
