"""Distributions of one discrete variable, as the outputs of a network describe them.

Each has the same members:

    num_values                 K; values are 0..K-1
    num_outputs(channels)      outputs of the network per position
    mask_shape(shape)          shape of the mask of one example of that shape
    log_prob(outputs, x)       ln p of every variable, in the shape of the mask
    noise_shape(shape)         uniforms that one draw takes
    draw(outputs, uniform)     one value for every channel

Logarithms are natural.  ``x`` is ``(B, H, W, C)``, or ``(B, L)`` for sequences.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.typing import Array

TINY = float(np.finfo(np.float32).tiny)  # the least uniform draw: ln(-ln 0) is not finite
MIN_LOG_SCALE = -7.0
LOG_MIN_BIN = math.log(1e-12)
EDGE = 1e-5  # a logistic variable is drawn from u in [1e-5, 1 - 1e-5]


class Output(Protocol):
    """See the head of this file."""

    num_values: int

    def num_outputs(self, channels: int) -> int: ...
    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]: ...
    def log_prob(self, outputs: Array, x: Array) -> Array: ...
    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]: ...
    def draw(self, outputs: Array, uniform: Array) -> Array: ...


def gumbel_argmax(logits: Array, uniform: Array) -> Array:
    """Categorical draw: ``argmax(logits - ln(-ln u))`` over the last axis, int32.

    Args:
      logits: not normalised; ``-inf`` is never drawn.
      uniform: of that shape, in (0, 1).
    """
    noise = -jnp.log(-jnp.log(jnp.maximum(uniform, TINY)))
    return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)


def pick(log_probs: Array, index: Array) -> Array:
    """``log_probs[..., index]``: the last axis indexed by integers of the shape before it."""
    return jnp.take_along_axis(log_probs, index[..., None], axis=-1)[..., 0]


@dataclasses.dataclass(frozen=True)
class Softmax:
    """K logits per variable; those of an image are (channel, value), the value fastest.

    Attributes:
      num_values: K.
    """

    num_values: int

    def num_outputs(self, channels: int) -> int:
        """K for each channel."""
        return channels * self.num_values

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Every channel is a variable."""
        return shape

    def logits(self, outputs: Array, shape: tuple[int, ...]) -> Array:
        """Outputs of a network as ``(*shape, K)`` float32."""
        return outputs.reshape(*shape, self.num_values).astype(jnp.float32)

    def log_prob(self, outputs: Array, x: Array) -> Array:
        """ln p(x) for every variable."""
        return pick(jax.nn.log_softmax(self.logits(outputs, x.shape)), x)

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A uniform per logit."""
        return (*shape, self.num_values)

    def draw(self, outputs: Array, uniform: Array) -> Array:
        """A value for every variable, by Gumbel's trick."""
        return gumbel_argmax(self.logits(outputs, uniform.shape[:-1]), uniform)


def _log_bin(x: Array, centre: Array, inverse: Array, num_values: int) -> Array:
    """ln of the mass that a logistic puts on the bin of x; the outer bins reach to infinity.

    Args:
      x: integers 0..K-1.
      centre, inverse: mean and 1 / scale in units where 0..K-1 spans [-1, 1].
    """
    half = 1 / (num_values - 1)
    away = scaled(x, num_values) - centre
    upper, lower = inverse * (away + half), inverse * (away - half)
    # sigmoid(upper) - sigmoid(lower) as a product: the difference itself loses all digits in
    # the tails.
    below, above = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
    inner = below + above + jnp.log(-jnp.expm1(-2 * half * inverse))
    inner = jnp.maximum(inner, LOG_MIN_BIN)
    return jnp.where(x == 0, below, jnp.where(x == num_values - 1, above, inner))


def scaled(x: Array, num_values: int) -> Array:
    """0..K-1 -> [-1, 1], float32."""
    return 2 * x.astype(jnp.float32) / (num_values - 1) - 1


def _draw_logistic(
    logits: Array, centre: Array, inverse: Array, uniform: Array, num_values: int
) -> Array:
    """A value from a mixture: ``(..., M)`` each, ``(..., M + 1)`` uniforms -> integers."""
    chosen = gumbel_argmax(logits, uniform[..., :-1])
    u = EDGE + (1 - 2 * EDGE) * uniform[..., -1]
    value = pick(centre, chosen) + jnp.log(u / (1 - u)) / pick(inverse, chosen)
    value = (jnp.clip(value, -1, 1) + 1) / 2 * (num_values - 1)
    return jnp.round(value).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class DiscretizedLogistic:
    """A mixture of M logistics on bins, for many values; zero outputs are nearly uniform.

    Outputs per position: M mixture logits (shared by the channels), then for each channel M
    means and M log scales.  The means are counted from centres spread over [-1, 1], the log
    scales from -ln M.

    Attributes:
      num_values: K, at least 2.
      num_mixtures: M.
    """

    num_values: int
    num_mixtures: int = 30

    def num_outputs(self, channels: int) -> int:
        """M (1 + 2 channels)."""
        return self.num_mixtures * (1 + 2 * channels)

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Every channel is a variable."""
        return shape

    def _mixture(self, outputs: Array) -> tuple[Array, Array, Array]:
        """Logits, means and inverse scales, each ``(..., C or 1, M)``."""
        m = self.num_mixtures
        outputs = outputs.astype(jnp.float32)
        rest = outputs[..., m:].reshape(*outputs.shape[:-1], -1, 2 * m)
        centres = jnp.linspace(-1 + 1 / m, 1 - 1 / m, m)
        mean = rest[..., :m] + centres.reshape((1,) * (rest.ndim - 1) + (m,))
        log_scale = jnp.maximum(rest[..., m:] - math.log(m), MIN_LOG_SCALE)
        return outputs[..., None, :m], mean, jnp.exp(-log_scale)

    def log_prob(self, outputs: Array, x: Array) -> Array:
        """ln p(x) for every variable."""
        logits, mean, inverse = self._mixture(outputs)
        values = x.reshape(*mean.shape[:-1], 1)
        inside = _log_bin(values, mean, inverse, self.num_values)
        total = jax.nn.logsumexp(jax.nn.log_softmax(logits) + inside, axis=-1)
        return total.reshape(x.shape)

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """For every variable a uniform per mixture and one for the logistic."""
        return (*shape, self.num_mixtures + 1)

    def draw(self, outputs: Array, uniform: Array) -> Array:
        """A value for every variable: mixture, logistic, nearest bin."""
        logits, mean, inverse = self._mixture(outputs)
        noise = uniform.reshape(*mean.shape[:-1], -1)
        logits = jnp.broadcast_to(logits, mean.shape)
        drawn = _draw_logistic(logits, mean, inverse, noise, self.num_values)
        return drawn.reshape(uniform.shape[:-1])


@dataclasses.dataclass(frozen=True)
class DiscretizedLogisticRGB:
    """Three channels of a pixel as one variable: green depends on red, blue on both.

    Outputs per pixel: M mixture logits, then for each channel M means, M inverse scales
    (before softplus) and M coefficients (before tanh).  The mean of green grows by c_0 red,
    that of blue by c_1 red + c_2 green.  Each channel sums over its mixtures by itself.

    Attributes:
      num_values: K, at least 2.
      num_mixtures: M.
    """

    num_values: int
    num_mixtures: int = 30

    def num_outputs(self, channels: int) -> int:
        """10 M; there must be three channels."""
        if channels != 3:
            raise ValueError(
                f"discretized_logistic_rgb needs images of 3 channels, got {channels}; use "
                "discretized_logistic"
            )
        return 10 * self.num_mixtures

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A pixel is a variable."""
        return (*shape[:-1], 1)

    def _mixture(self, outputs: Array) -> tuple[Array, ...]:
        """Logits ``(..., M)``; means, inverse scales and coefficients ``(..., 3, M)``."""
        m = self.num_mixtures
        outputs = outputs.astype(jnp.float32)
        rest = outputs[..., m:].reshape(*outputs.shape[:-1], 3, 3 * m)
        mean, inverse, coefficients = jnp.split(rest, 3, axis=-1)
        return outputs[..., :m], mean, jax.nn.softplus(inverse), jnp.tanh(coefficients)

    def _means(self, mean: Array, coefficients: Array, red: Array, green: Array) -> list[Array]:
        """Of the three channels, ``(..., M)`` each, given scaled ``(...)`` red and green."""
        c, red, green = coefficients, red[..., None], green[..., None]
        return [
            mean[..., 0, :],
            mean[..., 1, :] + c[..., 0, :] * red,
            mean[..., 2, :] + c[..., 1, :] * red + c[..., 2, :] * green,
        ]

    def channel_log_prob(self, outputs: Array, x: Array) -> Array:
        """``(..., 3)``: ln p of every channel given those before it."""
        logits, mean, inverse, coefficients = self._mixture(outputs)
        values = scaled(x, self.num_values)
        means = self._means(mean, coefficients, values[..., 0], values[..., 1])
        inside = _log_bin(x[..., None], jnp.stack(means, axis=-2), inverse, self.num_values)
        mixture = jax.nn.log_softmax(logits)[..., None, :]
        return jax.nn.logsumexp(mixture + inside, axis=-1)

    def log_prob(self, outputs: Array, x: Array) -> Array:
        """ln p of every pixel, ``(..., 1)``."""
        return jnp.sum(self.channel_log_prob(outputs, x), axis=-1, keepdims=True)

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """For every channel a uniform per mixture and one for the logistic."""
        return (*shape, self.num_mixtures + 1)

    def draw(self, outputs: Array, uniform: Array) -> Array:
        """The three channels of every pixel, one after the other."""
        logits, mean, inverse, coefficients = self._mixture(outputs)
        drawn = [jnp.zeros(logits.shape[:-1], jnp.int32)] * 3
        for c in range(3):
            red, green = (scaled(d, self.num_values) for d in drawn[:2])
            centre = self._means(mean, coefficients, red, green)[c]
            noise = uniform[..., c, :]
            drawn[c] = _draw_logistic(logits, centre, inverse[..., c, :], noise, self.num_values)
        return jnp.stack(drawn, axis=-1)


OUTPUTS: dict[str, type[Output]] = {
    "softmax": Softmax,
    "discretized_logistic": DiscretizedLogistic,
    "discretized_logistic_rgb": DiscretizedLogisticRGB,
}
