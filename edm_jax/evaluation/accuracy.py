"""How well a classifier of noisy images tells classes apart at every noise level."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.pytree import short_repr
from edm_jax.train.classifier import cross_entropy, is_among_top
from edm_jax.train.objective import one_hot_labels
from edm_jax.typing import Array, ArrayLike, Key


@short_repr
class LevelAccuracy(NamedTuple):
    """Means over the images at every noise level, each ``(S,)`` float64.

    Attributes:
      top_1, top_5: fractions of images whose class is the most likely one, or among the five
        most likely ones; 0 to 1.
      cross_entropy: ``-ln p(class | x; sigma)`` in nats; ln K of a classifier that knows
        nothing of K balanced classes.
    """

    top_1: np.ndarray
    top_5: np.ndarray
    cross_entropy: np.ndarray


@jax.jit
def _judge(classifier: Any, y: Array, labels: Array, sigma: Array, keys: Key) -> Array:
    """``(3, B)``: top-1, top-5 and cross entropy of images at one level."""
    noise = jax.vmap(lambda key: jax.random.normal(key, y.shape[1:]))(keys)
    logits = classifier.logits(y + sigma * noise, jnp.full(len(y), sigma))
    rows = one_hot_labels(labels, logits.shape[-1])
    own = jnp.argmax(rows, axis=-1)
    top = [is_among_top(logits, own, k).astype(jnp.float32) for k in (1, 5)]
    return jnp.stack([*top, cross_entropy(logits, rows)])


def accuracy_at_levels(
    classifier: Any,
    images: np.ndarray,
    labels: ArrayLike,
    sigmas: ArrayLike,
    *,
    batch_size: int = 256,
    seed: int = 0,
) -> LevelAccuracy:
    """Accuracy and cross entropy of a classifier on noisy images y + sigma n.

    The noise of an image follows from the seed, its position and the level alone, so it is
    the same for every classifier and batch.

    Args:
      classifier: a pytree with ``logits(x, sigma) -> (B, K)``, such as `edm_jax.classifier`'s.
      images: ``(n, H, W, C)`` in [-1, 1].
      labels: ``(n,)`` classes, or ``(n, K)`` vectors, whose largest entry is the class.
      sigmas: ``(S,)`` noise levels.
      batch_size: images at a time; one program is compiled.
      seed: of the noise.

    Raises:
      ValueError: there are no images, or not as many labels.
    """
    images, labels = np.asarray(images, np.float32), np.asarray(labels)
    if len(images) == 0 or len(labels) != len(images):
        raise ValueError(f"labels must be as many as images, at least 1, got {len(labels)}")
    size = min(batch_size, len(images))
    key = jax.random.key(seed, impl="threefry2x32")
    means = []
    for level, sigma in enumerate(np.asarray(sigmas, np.float32)):
        base, found = jax.random.fold_in(key, level), []
        for start in range(0, len(images), size):
            index = np.arange(start, start + size)
            kept = np.minimum(index, len(images) - 1)  # padded with the last
            keys = jax.vmap(functools.partial(jax.random.fold_in, base))(kept)
            judged = _judge(classifier, images[kept], labels[kept], sigma, keys)
            found.append(np.asarray(judged, np.float64)[:, index < len(images)])
        means.append(np.concatenate(found, axis=1).mean(axis=1))
    return LevelAccuracy(*np.stack(means, axis=1))
