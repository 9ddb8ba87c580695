"""Training a noisy classifier: cross entropy at random noise levels (Dhariwal & Nichol 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from edm_jax.noise import NoiseDistribution, sample_sigma
from edm_jax.precond import Preconditioning
from edm_jax.pytree import short_repr
from edm_jax.train.objective import Batch, one_hot_labels, to_unit_range
from edm_jax.typing import Array, Key, PyTree


def cross_entropy(logits: Array, rows: Array) -> Array:
    """``-sum_k rows_k log softmax(logits)_k``, ``(B,)``; logits and rows ``(B, classes)``."""
    return -jnp.sum(rows * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def is_among_top(logits: Array, labels: Array, k: int) -> Array:
    """Whether the class ``labels`` (B,) is among the k largest logits, ``(B,)`` bool."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    return jnp.sum(logits > own, axis=-1) < k


@short_repr
@dataclasses.dataclass(frozen=True)
class ClassifierObjective:
    """Cross entropy of the class of y + sigma n, the same weight at every level.

    At sigma -> infinity it tends to the entropy of the classes, ln K if they are balanced.

    Attributes:
      apply: ``apply(variables, x, c_noise) -> logits``, the network.
      preconditioning: c_in and c_noise.
      distribution: p(sigma).  It must cover the levels that are guided: `noise.LogUniform`
        over the sampler's range, or `noise.DiscreteLevels` as published; the log-normal law
        of EDM leaves both ends thin.
      num_classes: K.
      augment: None, or ``(keys, images) -> images`` in [-1, 1] with one key per image; of a
        kind that needs no augmentation labels, such as flips.
    """

    is_mean: ClassVar[bool] = True  # over the elements of an image, or no sum of them

    apply: Callable[..., Array]
    preconditioning: Preconditioning
    distribution: NoiseDistribution
    num_classes: int
    augment: Callable[[Key, Array], Array] | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(
                f"a classifier needs labelled data of at least 2 classes, got {self.num_classes}"
            )

    def per_image(
        self, params: PyTree, buffers: PyTree, batch: Batch, key: Key, image_ids: Array
    ) -> tuple[Array, Array]:
        """See `train.objective.Objective`: ``(B,)`` cross entropy in nats, and sigma."""
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))(image_ids)
        y = to_unit_range(batch["image"])
        sigma = jax.vmap(lambda k: sample_sigma(self.distribution, k, ()))(keys[:, 0])
        if self.augment is not None:
            y = self.augment(keys[:, 1], y)
        noise = jax.vmap(lambda k: jax.random.normal(k, y.shape[1:]))(keys[:, 2])
        coefs = self.preconditioning(sigma)
        column = (-1,) + (1,) * (y.ndim - 1)
        x = y + sigma.reshape(column) * noise
        variables = {"params": params} | ({"buffers": buffers} if buffers else {})
        logits = self.apply(variables, coefs.c_in.reshape(column) * x, coefs.c_noise)
        return cross_entropy(logits, one_hot_labels(batch["label"], self.num_classes)), sigma
