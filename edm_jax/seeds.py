"""Randomness of sampling: one key per image, made from that image's integer seed.

Nothing an image draws depends on the batch it sits in (EDM section F.3): image i is
the same for any batch size, order, padding or device count.  The streams of an image
(latent, label, churn, path, and those of its likelihood) are separate, so choosing a label changes
no noise.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Set

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.names import brief
from edm_jax.typing import Array, ArrayLike, Key

_LATENT, _LABEL, _CHURN, _PATH, _PROBE, _DEQUANTISATION, _BOUND = range(7)


def seed_bits(seeds: Iterable[int] | ArrayLike) -> np.ndarray:
    """Integers of any size and type, taken mod 2^32: ``(B,)`` uint32.

    Raises:
      ValueError: for anything that is not a list or one-dimensional array of integers.
    """
    values = _integers(seeds)
    if values is None or values.ndim != 1:
        raise ValueError(f"seeds must be a list of integers, got {brief(seeds)}")
    if values.dtype == object:  # integers beyond 64 bits
        values = np.asarray([operator.index(seed) % 2**32 for seed in values], np.int64)
    # Two's complement: the lower bits are the value mod 2^32, of negative numbers too.
    wide = np.uint64 if values.dtype.kind == "u" else np.int64
    return values.astype(wide).astype(np.uint32)


def _integers(seeds: Iterable[int] | ArrayLike) -> np.ndarray | None:
    """Integers of any width, one or several in an order, exactly; None for anything else.

    Of dtype object where 64 bits do not hold them all.
    """
    if hasattr(seeds, "dtype"):
        if not jnp.issubdtype(seeds.dtype, jnp.integer):
            return np.asarray(seeds) if seeds.dtype == object and _whole(seeds) else None
        values = np.asarray(seeds)
        # Of 4 bits and fewer: NumPy has no kind for them.
        return values if values.dtype.kind in "iu" else values.astype(np.int64)
    if isinstance(seeds, bool | str | bytes | bytearray | Set | Mapping):
        return None
    try:
        if not isinstance(seeds, Iterable):
            return np.asarray(operator.index(seeds))
        # One by one: NumPy makes floats of small integers beside some of 64 bits.
        given = list(seeds)
        found = [operator.index(seed) for seed in given]
    except TypeError:
        return None
    if any(isinstance(seed, bool) for seed in given):
        return None
    low, high = min(found, default=0), max(found, default=0)
    for kind in (np.int64, np.uint64):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.array(found, kind)
    return np.array(found, object)


def _whole(values: np.ndarray) -> bool:
    return all(isinstance(value, int | np.integer) for value in values.ravel())


def check_seeds(seeds: Iterable[int] | ArrayLike) -> np.ndarray:
    """The seeds of some images as an array, after checking them; ``(n,)`` integers.

    Raises:
      ValueError: if they are no integers, there are none, or one is negative.
    """
    values = _integers(seeds)
    if values is None or values.ndim > 1 or not values.size:
        raise ValueError(f"seeds must be a non-empty list of integers, got {brief(seeds)}")
    values = np.atleast_1d(values)
    if values.min() < 0:
        raise ValueError(f"seeds must not be negative, got {values.min()}")
    return values


def image_keys(seeds: Iterable[int] | ArrayLike) -> Key:
    """One PRNG key per seed: ``(B,)`` integers (taken mod 2^32) -> ``(B,)`` keys."""
    if isinstance(seeds, jax.core.Tracer):
        bits = seeds.astype(jnp.uint32)
    else:
        bits = seed_bits(seeds)
    # The implementation is named, not taken from the global default: a seed must
    # mean the same image in every program.
    return jax.vmap(lambda seed: jax.random.key(seed, impl="threefry2x32"))(bits)


def check_keys(key: Key, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless key is one typed key, or one for each of shape[0] images."""
    if not jnp.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        got = f"an array of {key.dtype}" if hasattr(key, "dtype") else repr(key)
        raise ValueError(
            f"need typed keys, got {got}; make them with seeds.image_keys or jax.random.key"
        )
    if key.ndim and (key.ndim != 1 or shape[:1] != key.shape):
        raise ValueError(f"need one key per image: {key.shape} keys for shape {shape}")


def normal(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Standard normal noise of shape ``shape`` from one key or from a key per image.

    Args:
      key: a scalar key, which draws the whole array; or ``(B,)`` keys, of which each
        draws one element of the leading axis.
      shape: of the result; ``shape[0] == B`` if there are B keys.
      dtype: of the result; the draw itself is float32 in any case, so that the same
        seed gives the same noise with and without 64-bit mode.
    """
    check_keys(key, shape)
    if key.ndim == 0:
        return jax.random.normal(key, shape, jnp.float32).astype(dtype)
    draw = jax.vmap(lambda k: jax.random.normal(k, shape[1:], jnp.float32))(key)
    return draw.astype(dtype)


def uniform(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Numbers in [0, 1), drawn as `normal` draws its own."""
    check_keys(key, shape)
    if key.ndim == 0:
        return jax.random.uniform(key, shape, jnp.float32).astype(dtype)
    draw = jax.vmap(lambda k: jax.random.uniform(k, shape[1:], jnp.float32))(key)
    return draw.astype(dtype)


def signs(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Random signs, -1 or 1 (Rademacher), drawn as `normal` draws its own."""
    return jnp.where(uniform(key, shape) < 0.5, -1, 1).astype(dtype)


def _stream(key: Key, index: ArrayLike) -> Key:
    fold = jax.random.fold_in
    return jax.vmap(lambda k: fold(k, index))(key) if key.ndim else fold(key, index)


def latents(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Unit-variance starting noise of shape ``shape``; multiply by sigma_0."""
    return normal(_stream(key, _LATENT), shape, dtype)


def random_labels(key: Key, num_classes: int) -> Array:
    """A uniform class index for every key: ``(B,)`` int32 in [0, num_classes)."""
    draw = jax.vmap(lambda k: jax.random.randint(k, (), 0, num_classes))
    return draw(_stream(key, _LABEL))


def churn_noise(
    key: Key, step: ArrayLike, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> Array:
    """Standard normal noise that sampler step ``step`` adds; of shape ``shape``."""
    return normal(_stream(_stream(key, _CHURN), step), shape, dtype)


def path_noise(
    key: Key, node: ArrayLike, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> Array:
    """Standard normal noise of one node of a noise path (`samplers.path`); of shape ``shape``."""
    return normal(_stream(_stream(key, _PATH), node), shape, dtype)


def probe_key(key: Key, index: ArrayLike) -> Key:
    """Keys of random probe ``index`` of a divergence, of the shape of key."""
    return _stream(_stream(key, _PROBE), index)


def dequantisation_key(key: Key, index: ArrayLike) -> Key:
    """Keys of the noise that makes 8-bit images continuous, in pass ``index``."""
    return _stream(_stream(key, _DEQUANTISATION), index)


def bound_key(key: Key, index: ArrayLike) -> Key:
    """Keys of the noise levels and the noise of a variational bound, in pass ``index``."""
    return _stream(_stream(key, _BOUND), index)
