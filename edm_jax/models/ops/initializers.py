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
        size = math.prod(shape)
        # Few sizes, few programs: a compiler takes a second for every new size of a draw,
        # and a network has dozens of shapes.
        padded = max(4096, 1 << (size - 1).bit_length())
        draw = _unit_variance(key, padded, mode.endswith("normal"))
        return (std * draw[:size]).reshape(shape).astype(dtype)

    return init


@functools.partial(jax.jit, static_argnums=(1, 2))
def _unit_variance(key: Key, size: int, normal: bool) -> Array:
    if normal:
        return jax.random.normal(key, (size,), jnp.float32)
    return jax.random.uniform(key, (size,), jnp.float32, -math.sqrt(3), math.sqrt(3))


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
