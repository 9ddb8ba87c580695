"""Randomness of sampling: one key per image, made from that image's integer seed.

Nothing an image draws depends on the batch it sits in (EDM section F.3): image i is
the same for any batch size, order, padding or device count.  The three streams of
an image (latent, label, churn) are separate, so choosing a label changes no noise.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.typing import Array, ArrayLike, Key

_LATENT, _LABEL, _CHURN = 0, 1, 2


def image_keys(seeds: Iterable[int] | ArrayLike) -> Key:
    """One PRNG key per seed: ``(B,)`` integers (taken mod 2^32) -> ``(B,)`` keys."""
    if isinstance(seeds, jax.core.Tracer):
        bits = seeds.astype(jnp.uint32)
    else:
        if not isinstance(seeds, np.ndarray | jax.Array | int):
            seeds = list(seeds)
        values = np.asarray(seeds)
        if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
            raise ValueError(f"seeds must be a list of integers, got {values!r}")
        bits = (values.astype(np.int64) % 2**32).astype(np.uint32)
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
