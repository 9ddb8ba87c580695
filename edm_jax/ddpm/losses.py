"""Losses of DDPM, iDDPM and ADM: simple, hybrid, and the pure bound, one number per image.

    simple   mean over elements of (target - output)^2
    hybrid   simple + c L_t, with no gradient of L_t to the mean (Nichol & Dhariwal 2021)
    bound    c L_t, with gradient to mean and variance

L_t is in bits per dimension (`ddpm.bound`).  Published factors c:

    MSE 1, RESCALED_MSE T/1000 (hybrid);   KL 1, RESCALED_KL T (bound)
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from edm_jax import names
from edm_jax.arguments import check_number
from edm_jax.ddpm import bound
from edm_jax.ddpm.process import Process, Step
from edm_jax.pytree import short_repr
from edm_jax.typing import Array

LOSSES = {"simple": "simple", "hybrid": "hybrid", "bound": "bound"}
VARIANCES = {"learned": None, "small": 0.0, "large": 1.0}
PREDICTIONS = {"eps": "eps", "x0": "x0"}


@short_repr
class Losses(NamedTuple):
    """Of every image, ``(B,)``; what a loss has not is 0.

    Attributes:
      loss: what is differentiated.
      mse: its first part.
      bound: its second part, factor included.
    """

    loss: Array
    mse: Array
    bound: Array


@dataclasses.dataclass(frozen=True)
class LossKind:
    """Which loss, of which network.

    Attributes:
      loss: "simple", "hybrid" or "bound".
      variance: "learned" (the network has twice the channels, the second half o with
        v = (o + 1)/2, not clamped), "small" or "large".
      prediction: "eps" or "x0", what the first channels are.
      bound_factor: c; None for T/1000 (hybrid) and T (bound).
    """

    loss: str = "hybrid"
    variance: str = "learned"
    prediction: str = "eps"
    bound_factor: float | None = None

    def __post_init__(self) -> None:
        names.lookup(LOSSES, self.loss, "loss")
        names.lookup(VARIANCES, self.variance, "variance")
        names.lookup(PREDICTIONS, self.prediction, "prediction")
        if self.bound_factor is not None:
            check_number("bound_factor", self.bound_factor, least=0)
        if self.loss == "hybrid" and self.variance != "learned":
            raise ValueError(
                f"the hybrid loss trains a variance, got variance={self.variance!r}; the loss of "
                "a fixed one is 'simple'"
            )
        if self.loss == "simple" and self.variance == "learned":
            raise ValueError(
                "the simple loss trains no variance; use 'hybrid', or variance='small'"
            )

    def factor(self, num_steps: int) -> float:
        """c for a process of T steps."""
        if self.bound_factor is not None:
            return self.bound_factor
        return num_steps / 1000 if self.loss == "hybrid" else float(num_steps)


def split_output(output: Array, channels: int, variance: str) -> tuple[Array, Array | None]:
    """The mean output, and v if it is learned: of ``(..., 2C)`` or ``(..., C)``."""
    wanted = channels * (2 if variance == "learned" else 1)
    if variance == "learned" and output.shape[-1] != wanted:
        raise ValueError(
            f"a learned variance needs {wanted} output channels, got {output.shape[-1]}"
        )
    v = (output[..., channels:] + 1) / 2 if variance == "learned" else None
    return output[..., :channels], v


def _column(value: Array, like: Array) -> Array:
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def fixed_v(variance: str, step: Step, like: Array) -> Array:
    """v of a fixed variance; at t = 0 the released programs use the small one for both."""
    value = jnp.asarray(VARIANCES[variance], like.dtype)
    return _column(jnp.where(step.first, 0, value).astype(like.dtype), like)


def per_image_losses(
    kind: LossKind, process: Process, output: Array, y: Array, noise: Array, t: Array
) -> Losses:
    """Losses of a batch from the raw output of the network, which was called once.

    Args:
      kind: which loss.
      process: of the time steps.
      output: ``(B, ..., C or 2C)`` of the network at z = (y + sigma n)/sqrt(1 + sigma^2).
      y: ``(B, ..., C)`` images in [-1, 1], for the bound at 8-bit levels.
      noise: n, the shape of y.
      t: ``(B,)`` integers in [0, T).
    """
    step = process.at(t, y.dtype)
    mean_output, v = split_output(output.astype(y.dtype), y.shape[-1], kind.variance)
    zeros = jnp.zeros(y.shape[:1], y.dtype)
    target = noise if kind.prediction == "eps" else y
    mse = zeros
    if kind.loss != "bound":
        mse = bound.mean_per_image(jnp.square(target - mean_output))
    vb = zeros
    if kind.loss != "simple":
        if kind.loss == "hybrid":
            mean_output = jax.lax.stop_gradient(mean_output)
        if v is None:
            v = fixed_v(kind.variance, step, y)
        sigma, precision = _column(step.sigma, y), _column(step.precision, y)
        if kind.prediction == "eps":
            wrong = sigma * (mean_output - noise)  # y - D
            # sigma^2 Q is a float64 table too: no product of a large and a small number.
            share = _column(
                jnp.asarray(process.tables["precision"] * process.tables["sigma"] ** 2, y.dtype)[t],
                y,
            )
            error, mean = share * jnp.square(mean_output - noise), y - wrong
        else:
            error, mean = precision * jnp.square(y - mean_output), mean_output
        vb = kind.factor(process.num_steps) * bound.bound_term(step, y, v, error, mean)
    return Losses(mse + vb, mse, vb)
