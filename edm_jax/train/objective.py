"""What training minimises: a loss of every image, which is all the training step knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from edm_jax import losses
from edm_jax.losses import one_hot_labels
from edm_jax.noise import NoiseDistribution, WeightFn, sample_sigma
from edm_jax.precond import Preconditioning, precondition
from edm_jax.pytree import short_repr
from edm_jax.typing import Array, Key, NetFn, PyTree

Batch = dict[str, Array]


@runtime_checkable
class Objective(Protocol):
    """A training loss; reflected, autoregressive and classifying models have their own.

    Its loss is a sum over the elements of an image, unless an attribute ``is_mean`` is true:
    then it is logged as it is.  One whose levels are no noise levels has ``level_edges``, 21 of
    them, for the running loss per level.  One that learns from its own losses (a resampler of noise
    levels, a profile of losses) also has `StatefulObjective`'s methods.
    """

    def per_image(
        self, params: PyTree, buffers: PyTree, batch: Batch, key: Key, image_ids: Array
    ) -> tuple[Array, Array]:
        """Loss of every image of a batch.

        Args:
          params, buffers: of the network.
          batch: ``image`` uint8 ``(B, H, W, C)`` and, for conditional networks, ``label``.
          key: of this step.
          image_ids: ``(B,)`` positions in the global batch; an image's random numbers
            follow from the key and its position.

        Returns:
          ``(B,)`` losses, whose mean is minimised, and ``(B,)`` levels (sigma, or whatever
          the running loss is told by).
        """
        ...


@runtime_checkable
class StatefulObjective(Objective, Protocol):
    """An objective with a history, which is saved and restored with the training state.

    One whose history says something of the model has ``told(state)``: JSON values for the
    description in a checkpoint.
    """

    def initial_state(self) -> PyTree:
        """The history of no steps; arrays of fixed shapes."""
        ...

    def with_state(self, state: PyTree) -> Objective:
        """The objective at a history."""
        ...

    def update(self, state: PyTree, loss: Array, level: Array) -> PyTree:
        """The history after a step of the whole batch: ``(B,)`` losses and levels of it."""
        ...


def to_unit_range(images: Array) -> Array:
    """uint8 0..255 -> float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


@short_repr
class Examples(NamedTuple):
    """A batch as a network is trained on it.

    Attributes:
      level_keys: ``(B,)``, a key per image for its noise level.
      images: ``(B, H, W, C)`` float32 in [-1, 1], augmented.
      noise: standard normal, of the shape of images.
      labels: ``(B, num_classes)``, or None.
      augment_labels: what the network is told of the augmentation, or None.
    """

    level_keys: Key
    images: Array
    noise: Array
    labels: Array | None
    augment_labels: Array | None


def examples(
    batch: Batch,
    key: Key,
    image_ids: Array,
    num_classes: int,
    augment: Callable[[Key, Array], tuple[Array, Array]] | None,
) -> Examples:
    """Draw what does not depend on the objective; an image has three keys of its own."""
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))(image_ids)
    y = to_unit_range(batch["image"])
    augment_labels = None
    if augment is not None:
        y, augment_labels = augment(keys[:, 1], y)
    noise = jax.vmap(lambda k: jax.random.normal(k, y.shape[1:]))(keys[:, 2])
    labels = one_hot_labels(batch["label"], num_classes) if num_classes else None
    return Examples(keys[:, 0], y, noise, labels, augment_labels)


def training_network(
    apply: Callable[..., Array],
    params: PyTree,
    buffers: PyTree,
    drawn: Examples,
    key: Key,
    image_ids: Array,
) -> NetFn:
    """``net_fn(x, c_noise)`` on some examples, with dropout."""
    variables = {"params": params} | ({"buffers": buffers} if buffers else {})

    def net_fn(x: Array, c_noise: Array) -> Array:
        return apply(
            variables,
            x,
            c_noise,
            drawn.labels,
            drawn.augment_labels,
            train=True,
            image_ids=image_ids,
            rngs={"dropout": jax.random.fold_in(key, 2**31)},
        )

    return net_fn


@short_repr
@dataclasses.dataclass(frozen=True)
class DenoisingObjective:
    """The choices of EDM Table 1 that make up a training loss.

    Attributes:
      apply: ``apply(variables, x, c_noise, class_labels, augment_labels, train=...,
        image_ids=..., rngs=...)``, the network.
      preconditioning: turns it into a denoiser.
      distribution: p(sigma).
      weight: lambda(sigma).
      num_classes: dimension of the labels, 0 for none.
      augment: None, or ``(keys, images) -> (images, augment_labels)`` on images in
        [-1, 1], with one key per image.
    """

    apply: Callable[..., Array]
    preconditioning: Preconditioning
    distribution: NoiseDistribution
    weight: WeightFn
    num_classes: int = 0
    augment: Callable[[Key, Array], tuple[Array, Array]] | None = None

    def per_image(
        self, params: PyTree, buffers: PyTree, batch: Batch, key: Key, image_ids: Array
    ) -> tuple[Array, Array]:
        """See `Objective`: ``(B,)`` sums of the weighted squared error over pixels, and sigma."""
        drawn = examples(batch, key, image_ids, self.num_classes, self.augment)
        sigma = jax.vmap(lambda k: sample_sigma(self.distribution, k, ()))(drawn.level_keys)
        net_fn = training_network(self.apply, params, buffers, drawn, key, image_ids)
        denoise = precondition(net_fn, self.preconditioning)
        loss = losses.denoising_loss(denoise, drawn.images, sigma, drawn.noise, self.weight)
        return losses.sum_per_image(loss), sigma
