"""Bits per dimension of a whole DDPM: the sum of its bound over all time steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from edm_jax import names
from edm_jax.ddpm import bound
from edm_jax.ddpm.losses import PREDICTIONS, VARIANCES, fixed_v, split_output
from edm_jax.ddpm.process import Process
from edm_jax.pytree import short_repr
from edm_jax.typing import Array


@short_repr
class ChainBound(NamedTuple):
    """The bound of every image; columns are time steps, the **last one (T - 1) first**.

    Attributes:
      total: ``(B,)`` bits per dimension of the 8-bit data, an upper bound.
      prior: ``(B,)`` its part from the start of the chain.
      terms: ``(B, T)`` L_t, which with the prior sum to the total.
      x0_mse: ``(B, T)`` mean squared error of D.
      eps_mse: ``(B, T)`` mean squared error of (x - D)/sigma as an estimate of the noise.
    """

    total: Array
    prior: Array
    terms: Array
    x0_mse: Array
    eps_mse: Array


def chain_bound(
    network: Callable[[Array, Array], Array],
    y: Array,
    process: Process,
    noise_fn: Callable[[Array], Array],
    *,
    variance: str = "learned",
    prediction: str = "eps",
    clip_denoised: bool = True,
) -> ChainBound:
    """Variational bound on -log2 p(y) per dimension, one noise draw for each time step.

    A respaced process gives the bound of the shorter chain.

    Args:
      network: ``network(z, label)`` -> ``(B, ..., C or 2C)``; label is a scalar.
      y: ``(B, ..., C)`` images at levels k / 127.5 - 1.
      process: its time steps.
      noise_fn: column -> standard normal noise of the shape of y; column 0 is t = T - 1.
      variance, prediction: as in `ddpm.losses.LossKind`.
      clip_denoised: clip D to [-1, 1], as the released program does by default.

    Returns:
      ChainBound.
    """
    names.lookup(VARIANCES, variance, "variance")
    names.lookup(PREDICTIONS, prediction, "prediction")
    num_steps, batch = process.num_steps, y.shape[0]

    def term(_: None, column: Array) -> tuple[None, tuple[Array, Array, Array]]:
        t = jnp.broadcast_to(num_steps - 1 - column, (batch,))
        step, noise = process.at(t, y.dtype), jnp.asarray(noise_fn(column), y.dtype)
        sigma = step.sigma[0]
        x = y + sigma * noise
        output = network(x / jnp.hypot(jnp.ones_like(sigma), sigma), process.label(t[0], y.dtype))
        output, v = split_output(output.astype(y.dtype), y.shape[-1], variance)
        if prediction == "eps":
            denoised, wrong = x - sigma * output, sigma * (output - noise)
        else:
            denoised, wrong = output, y - output
        if clip_denoised:
            inside = jnp.abs(denoised) <= 1
            denoised = jnp.clip(denoised, -1, 1)
            wrong = jnp.where(inside, wrong, y - denoised)  # inside, without cancellation
        v = fixed_v(variance, step, y) if v is None else v
        vb = bound.bound_term(step, y, v, step.precision[0] * jnp.square(wrong), y - wrong)
        x0_mse = bound.mean_per_image(jnp.square(wrong))
        # (x - D)/sigma - n = (y - D)/sigma
        return None, (vb, x0_mse, x0_mse / jnp.square(sigma))

    _, columns = jax.lax.scan(term, None, jnp.arange(num_steps))
    terms, x0_mse, eps_mse = (values.T for values in columns)
    prior = bound.prior_term(process, y)
    return ChainBound(prior + jnp.sum(terms, axis=1), prior, terms, x0_mse, eps_mse)
