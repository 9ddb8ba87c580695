"""Random initial values of weights and biases, as the EDM networks were trained from.

A layer's weight and bias come from the same distribution with the same fans, each
times a gain of its own (a gain of 0 gives exact zeros).  Standard deviations:

    xavier_uniform, xavier_normal      sqrt(2 / (fan_in + fan_out))
    kaiming_uniform, kaiming_normal    sqrt(1 / fan_in)

Uniform modes are bounded by sqrt(3) standard deviations.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from edm_jax.typing import Array, Key

Initializer = Callable[[Key, tuple[int, ...], jnp.dtype], Array]

_VARIANCE = {
    "xavier_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "xavier_normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "kaiming_uniform": lambda fan_in, fan_out: 1 / fan_in,
    "kaiming_normal": lambda fan_in, fan_out: 1 / fan_in,
}


def weight_init(mode: str, fan_in: int, fan_out: int, gain: float = 1.0) -> Initializer:
    """An initialiser ``(key, shape, dtype) -> array`` of the table above.

    Args:
      mode: a row of the table.
      fan_in, fan_out: channels times kernel area of the layer, in and out.
      gain: factor on the values.

    Raises:
      ValueError: for an unknown mode.
    """
    if mode not in _VARIANCE:
        raise ValueError(f"mode must be one of {sorted(_VARIANCE)}, got {mode!r}")
    std = gain * math.sqrt(_VARIANCE[mode](fan_in, fan_out))

    def init(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        if std == 0:
            return jnp.zeros(shape, dtype)
        return _draw(key, std, shape, dtype, mode.endswith("normal"))

    return init


# One program per shape: a network drawn eagerly compiles a few dozen small ones, in a
# fraction of the time of one that holds all its draws.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _draw(key: Key, std: float, shape: tuple[int, ...], dtype: jnp.dtype, normal: bool) -> Array:
    std = jnp.asarray(std, dtype)
    if normal:
        return std * jax.random.normal(key, shape, dtype)
    return std * jax.random.uniform(key, shape, dtype, -math.sqrt(3), math.sqrt(3))


@dataclasses.dataclass(frozen=True)
class Init:
    """How a layer starts: one distribution, a gain for the weight, one for the bias."""

    mode: str = "kaiming_normal"
    weight: float = 1.0
    bias: float = 0.0

    def kernel(self, fan_in: int, fan_out: int) -> Initializer:
        """Initialiser of the weight."""
        return weight_init(self.mode, fan_in, fan_out, self.weight)

    def offset(self, fan_in: int, fan_out: int) -> Initializer:
        """Initialiser of the bias."""
        return weight_init(self.mode, fan_in, fan_out, self.bias)
