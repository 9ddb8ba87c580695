"""The training loss at fixed noise levels (EDM Fig. 5a)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import losses
from edm_jax.domains.box import Box
from edm_jax.model import Model
from edm_jax.noise import WeightFn, edm_weight
from edm_jax.precond import Preconditioning, precondition
from edm_jax.typing import ArrayLike, PyTree


@functools.partial(jax.jit, static_argnames=("net", "preconditioning"))
def _denoise(
    variables: PyTree,
    x: jax.Array,
    sigma: jax.Array,
    rows: jax.Array | None,
    *,
    net: Any,
    preconditioning: Preconditioning,
) -> jax.Array:
    """One program for all weights of a network."""
    return precondition(functools.partial(net.apply, variables), preconditioning)(x, sigma, rows)


def loss_at_levels(
    model: Model,
    images: np.ndarray,
    sigmas: ArrayLike,
    labels: ArrayLike | None = None,
    weight: WeightFn = edm_weight,
    *,
    seed: int = 0,
) -> np.ndarray:
    """Weighted loss per element of some images at every noise level.

    That of a reflected model compares with D* (`edm_jax.reflected`), at levels of its own.

    The same seed adds the same noise for every model, so that two can be compared.

    Args:
      model: the denoiser.
      images: ``(n, H, W, C)`` in [-1, 1].
      sigmas: ``(S,)``.
      labels: of the images, as `Model.label_rows` takes them; None for an unconditional model.
      weight: lambda(sigma).
      seed: of the noise.

    Returns:
      ``(S, n)`` float32.
    """
    y = jnp.asarray(images, jnp.float32)
    rows = model.label_rows(labels, len(y)) if model.num_classes else None
    key = jax.random.key(seed, impl="threefry2x32")
    levels = []
    for i, sigma in enumerate(np.asarray(sigmas, np.float32)):
        noise = jax.random.normal(jax.random.fold_in(key, i), y.shape)
        x, target = y + sigma * noise, y
        if model.kind == "reflected":
            x = Box().corrupt(y, sigma, noise)
            target = Box().target(x, y, sigma)
        denoised = _denoise(
            model.variables,
            x,
            sigma,
            rows,
            net=model.net,
            preconditioning=model.preconditioning,
        )
        loss = losses.sum_per_image(jnp.square(denoised - target)) / y[0].size
        levels.append(np.asarray(weight(sigma) * loss))
    return np.stack(levels)
