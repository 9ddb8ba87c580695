"""The denoising objective (EDM Eq. 2 and 8).

The loss gets everything as an argument (denoiser, noise level, noise, weight), so
each can be chosen alone; how they are drawn is `edm_jax.noise`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from edm_jax.noise import WeightFn
from edm_jax.typing import Array, DenoiseFn


def denoising_loss(
    denoise: DenoiseFn, y: Array, sigma: Array, noise: Array, weight: WeightFn
) -> Array:
    """Weighted squared error of every element, unreduced (EDM Eq. 8).

        lambda(sigma) (D(y + sigma n; sigma) - y)^2

    Args:
      denoise: ``denoise(x, sigma)``.
      y: ``(B, ...)`` clean data.
      sigma: ``(B,)`` noise levels.
      noise: of the shape of y, standard normal.
      weight: lambda, sigma -> weight.

    Returns:
      Of the shape of y.
    """
    if sigma.shape != y.shape[:1] or noise.shape != y.shape:
        raise ValueError(
            f"need sigma of shape (B,) and noise of the shape of y, got sigma "
            f"{sigma.shape}, noise {noise.shape}, y {y.shape}"
        )
    column = sigma.shape + (1,) * (y.ndim - 1)
    denoised = denoise(y + sigma.reshape(column) * noise, sigma)
    return weight(sigma).reshape(column) * jnp.square(denoised - y)


def sum_per_image(loss: Array) -> Array:
    """``(B, ...)`` -> ``(B,)``: the sum over everything but the batch.

    Its mean over the batch is what training differentiates (sum over pixels, mean
    over images); the mean over all elements is what is logged.
    """
    return jnp.sum(loss, axis=tuple(range(1, loss.ndim)))


def one_hot_labels(labels: Array, num_classes: int) -> Array:
    """``(B,)`` class indices -> ``(B, num_classes)`` float32; vectors pass through."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return jax.nn.one_hot(labels, num_classes)
    return labels.astype(jnp.float32)
