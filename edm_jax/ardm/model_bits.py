"""How well a loaded model codes a data set: bounds and code lengths, in bits per dimension."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm_jax.ardm.likelihood import (
    bits_per_dim,
    bound_sample,
    code_length,
    policy_bound_sample,
)
from edm_jax.ardm.objective import to_levels
from edm_jax.ardm.orders import drawn_ranks
from edm_jax.ardm.policy import stage_policies
from edm_jax.ardm.process import check_values, num_variables
from edm_jax.ardm.registry import build, model_predictor
from edm_jax.typing import Array, Key


def model_values(model: Any, images: ArrayLike) -> Array:
    """Data as the model has them: grey levels of pixels, or tokens as they are.

    Args:
      model: of kind "ardm".
      images: ``(B, H, W, C)`` pixels 0..255, or ``(B, L)`` integers.

    Raises:
      ValueError: for another shape, values outside 0..K-1, or pixels outside 0..255, such as the
        floats that `sample` returns.
    """
    images = np.asarray(images)
    if images.shape[1:] != model.image_shape:
        raise ValueError(
            f"data must have shape (B, {', '.join(map(str, model.image_shape))}), got "
            f"{images.shape}"
        )
    num_values = build(**model.description["process"]).num_values
    if model.description.get("levels", False):
        check_values(images, 256, "pixels")
        return to_levels(jnp.asarray(images), num_values)
    check_values(images, num_values, "data")
    return jnp.asarray(images, jnp.int32)


@functools.partial(jax.jit, static_argnames="exact")
def batch_bits(
    model: Any,
    x: Array,
    rows: Array | None,
    keys: Key,
    policies: Array | None = None,
    *,
    exact: bool = False,
) -> Array:
    """One estimate of every image of a batch, ``(B,)``; arguments as of `model_bits`.

    Args:
      x: values, as `model_values` makes them.
      keys: ``(B,)``, one per image.
    """
    predict, process = model_predictor(model, rows)
    if not exact:
        if policies is None:
            return bound_sample(predict, process, x, keys)
        return policy_bound_sample(predict, process, x, keys, policies)
    shape = model.image_shape
    keys = jax.vmap(lambda key: jax.random.split(key, process.num_stages))(keys)
    ranks = jnp.stack(
        [
            drawn_ranks(process.order, keys[:, stage], process.mask_shape(shape))
            for stage in range(process.num_stages)
        ]
    )
    nats = code_length(predict, process, x, ranks, policies)
    return bits_per_dim(nats, process, shape)


def model_bits(
    model: Any,
    images: ArrayLike,
    rows: ArrayLike | None = None,
    *,
    policies: ArrayLike | None = None,
    exact: bool = False,
    ids: ArrayLike | None = None,
    seed: int = 0,
    passes: int = 4,
    batch_size: int = 256,
    on_batch: Callable[[int], Any] | None = None,
) -> NDArray[np.float64]:
    """Bits per dimension of every image: unbiased estimates of the bound, or code lengths.

    An image's numbers depend on seed, pass and id alone, not on its batch.  The mean with its
    standard error is `likelihood.estimate` of the result.

    Args:
      model: of kind "ardm", as `edm_jax.load` returns it; averaged weights are published.
      images: ``(N, H, W, C)`` uint8, or ``(N, L)`` tokens.
      rows: ``(N, num_classes)`` labels, or None.
      policies: None for the model that draws one variable at a time; or the policy of every
        stage, ``(S, n + 1)``, for what that draws.
      exact: False takes one random step of one random order, one network call; True all steps of
        one random order, S n calls: an exact code length, whose mean over orders is the bound.
      ids: ``(N,)`` integers that tell the images apart; by default their positions.
      seed: of the evaluation.
      passes: over the data; published: 4 for images, 32 for audio.
      batch_size: images at a time; the last batch is padded.
      on_batch: told how many images are done.

    Returns:
      ``(passes, N)`` bits per dimension.

    Raises:
      ValueError: as `model_values`; for no images, or a policy that is none.
    """
    images = np.asarray(images)
    if not len(images) or passes < 1:
        raise ValueError(f"need at least one image and pass, got {len(images)} and {passes}")
    x = model_values(model, images)
    if policies is not None:
        process = build(**model.description["process"])
        variables = num_variables(process, model.image_shape)
        policies = stage_policies(np.asarray(policies), process.num_stages, variables)
    ids = np.arange(len(images)) if ids is None else np.asarray(ids)
    run = jax.random.key(seed, impl="threefry2x32")
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    values = np.zeros((passes, len(images)))
    size = min(batch_size, len(images))
    for start in range(0, len(images), size):
        index = np.minimum(start + np.arange(size), len(images) - 1)
        stop = min(start + size, len(images))
        given = None if rows is None else jnp.asarray(rows)[index]
        for i in range(passes):
            keys = fold(jax.random.fold_in(run, i), jnp.asarray(ids[index], jnp.uint32))
            found = batch_bits(model, x[index], given, keys, policies, exact=exact)
            values[i, start:stop] = np.asarray(found)[: stop - start]
        if on_batch is not None:
            on_batch(stop)
    return values
