"""Random generation orders, and which step of an order a training example shows.

An order is held as **ranks**: the rank of every variable in it, in the shape of the mask.
At step t the variables with ranks below t are known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import is_known
from edm_jax.typing import Array, ArrayLike, Key

ORDERS = ("random", "raster")


def check_order(order: str) -> None:
    """Raise ValueError for an unknown kind of order."""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")


def drawn_ranks(
    order: str, keys: Key, shape: tuple[int, ...], given: ArrayLike | None = None
) -> Array:
    """The ranks that a kind of model is trained on and drawn with.

    Args:
      order: ``random``, or ``raster``: row by row, the last axis fastest, for every image.
      keys, shape, given: as of `random_ranks`.

    Raises:
      ValueError: for variables given to a model of one order, which has not learnt to be told
        others than the first ones.
    """
    if order == "random":
        return random_ranks(keys, shape, given)
    if given is not None:
        raise ValueError(
            "values can only be given to a model of random orders, not to one of the raster order"
        )
    ranks = jnp.arange(math.prod(shape), dtype=jnp.int32).reshape(shape)
    return jnp.broadcast_to(ranks, (keys.shape[0], *shape))


def check_given(given: ArrayLike, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless given is a mask of that shape that leaves something to draw.

    Args:
      given: bool; True where a variable is known beforehand.
      shape: ``(B, *mask_shape)``.
    """
    if np.shape(given) != shape or jnp.asarray(given).dtype != jnp.bool_:
        raise ValueError(
            f"given must be a bool mask of shape {shape}, got {jnp.asarray(given).dtype} of "
            f"shape {np.shape(given)}"
        )
    if is_known(given):
        full = np.asarray(given).reshape(shape[0], -1).all(axis=1)
        if full.any():
            raise ValueError(
                f"given must leave a variable to draw, but the mask of image "
                f"{int(np.argmax(full))} knows everything; set some of it to False"
            )


def check_given_first(ranks: ArrayLike, given: ArrayLike | None) -> None:
    """Raise ValueError unless the variables given have the lowest ranks, where all is known.

    Args:
      ranks: ``(S, B, *mask_shape)``.
      given: ``(B, *mask_shape)`` bool, or None.
    """
    if given is None or not is_known(ranks, given):
        return
    mask = np.asarray(given)
    count = mask.reshape(len(mask), -1).sum(axis=1).reshape((-1,) + (1,) * (mask.ndim - 1))
    if not np.array_equal(np.asarray(ranks) < count, np.broadcast_to(mask, np.shape(ranks))):
        raise ValueError(
            "ranks must put the given variables first; draw them with random_ranks(..., given)"
        )


def random_ranks(keys: Key, shape: tuple[int, ...], given: ArrayLike | None = None) -> Array:
    """Ranks of all variables in an order drawn uniformly, one order per image.

    Args:
      keys: ``(B,)``, one per image.
      shape: of the mask of one image, D variables.
      given: None, or ``(B, *shape)`` bool: these variables get the lowest ranks (in random
        order), so that sampling from ``t = their number`` on is conditional on them.

    Returns:
      ``(B, *shape)`` int32, a permutation of 0..D-1 for each image.
    """
    size = math.prod(shape)
    draw = jax.vmap(lambda key: jax.random.permutation(key, size))
    ranks = draw(keys).astype(jnp.int32)
    if given is not None:
        later = jnp.where(jnp.asarray(given).reshape(ranks.shape), 0, size)
        # The inverse of an order is its ranks, and the order sorts by (given first, rank).
        ranks = ranks_of_order(jnp.argsort(ranks + later, axis=-1))
    return ranks.reshape(-1, *shape)


def ranks_of_order(order: ArrayLike) -> Array:
    """The inverse permutation: ``order[i]`` is the variable drawn as the i-th.

    Args:
      order: ``(..., D)`` integers.

    Returns:
      ``(..., D)`` int32 with ``ranks[order[i]] = i``.
    """
    return jnp.argsort(jnp.asarray(order), axis=-1).astype(jnp.int32)


def per_variable(values: ArrayLike, like: Array) -> Array:
    """``(B,)`` or () -> ``(B or 1, 1, ..)`` of the rank of ``like``, to broadcast against it."""
    return jnp.asarray(values).reshape((-1,) + (1,) * (like.ndim - 1))


def uniform_steps(keys: Key, num_steps: int) -> Array:
    """``(B,)`` int32, uniform on 0..num_steps-1, one key per image."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_steps))(keys)


def step_grid(draws: Array, batch_size: int, num_steps: int) -> Array:
    """The steps of a batch that base draws stand for: ``u_j + spacing * i``, i fastest.

    Args:
      draws: ``(batch_size / g,)`` integers below ``num_steps / g``, g = gcd of both sizes.

    Returns:
      ``(batch_size,)`` int32.
    """
    points = math.gcd(batch_size, num_steps)
    offsets = jnp.arange(points, dtype=jnp.int32) * (num_steps // points)
    return (draws[:, None] + offsets[None, :]).reshape(-1)


def grid_steps(key: Key, batch_size: int, num_steps: int) -> Array:
    """Steps of one batch, spread evenly ("antithetic"); each is uniform by itself.

    With coprime sizes this is `uniform_steps`: choose a batch that shares a large factor
    with the number of steps.

    Args:
      key: of the batch.
      batch_size: B, images of the whole batch.
      num_steps: of the model.

    Returns:
      ``(B,)`` int32 in 0..num_steps-1, in random order.
    """
    draw_key, order_key = jax.random.split(key)
    points = math.gcd(batch_size, num_steps)
    draws = jax.random.randint(draw_key, (batch_size // points,), 0, num_steps // points)
    return jax.random.permutation(order_key, step_grid(draws, batch_size, num_steps))


def check_ranks(ranks: ArrayLike, shape: Sequence[int]) -> None:
    """Raise ValueError unless ranks are integers of that shape, a permutation per image."""
    ranks_shape, shape = np.shape(ranks), tuple(shape)
    if ranks_shape != shape:
        raise ValueError(
            f"ranks must have the shape of the mask, {shape}, got {ranks_shape}; draw them with "
            "random_ranks, or invert an order with ranks_of_order"
        )
    if is_known(ranks):
        rows = np.sort(np.asarray(ranks).reshape(shape[0], -1), axis=1)
        if not np.array_equal(rows, np.broadcast_to(np.arange(rows.shape[1]), rows.shape)):
            raise ValueError(
                f"ranks must hold each of 0..{rows.shape[1] - 1} once per image; draw them with "
                "random_ranks, or invert an order with ranks_of_order"
            )


def stage_ranks(ranks: ArrayLike, stages: int, shape: Sequence[int]) -> Array:
    """Ranks for each stage, ``(S, *shape)`` int32; known ones are checked.

    Args:
      ranks: ``shape`` for all stages, or ``(S, *shape)``.
      stages: S.
      shape: ``(B, *mask_shape)``.
    """
    shape = tuple(shape)
    each = jnp.asarray(ranks)
    if each.ndim == len(shape):
        check_ranks(ranks, shape)
        each = each[None]
    elif each.ndim != len(shape) + 1 or each.shape[0] != stages:
        raise ValueError(
            f"ranks must have shape {shape}, or ({stages}, ...) with one set for each stage, got "
            f"{each.shape}"
        )
    else:
        for one in each:
            check_ranks(one, shape)
    return jnp.broadcast_to(each, (stages, *shape)).astype(jnp.int32)
