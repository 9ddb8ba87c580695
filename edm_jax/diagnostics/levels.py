"""A model at every noise level: its error, that of the ideal denoiser, its gradients."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import exact
from edm_jax.model import Model
from edm_jax.noise import WeightFn
from edm_jax.pytree import short_repr
from edm_jax.typing import Array, ArrayLike, PyTree

# Points that no image is near: they fill a class up to a common size and weigh nothing.
_FAR = 1e4
CHUNK = 1024


@short_repr
class Levels(NamedTuple):
    """Of some images at every noise level; RMS over images and elements, in data units.

    Attributes:
      sigmas: ``(S,)``.
      error: of D against the clean image, ``(S,)``.
      ideal_error: the same of the ideal denoiser of the training images, which knows them by
        heart: no model that has to do with unseen images should reach it at low levels.
      from_ideal: of D against the ideal denoiser.
      loss: ``(S, n)`` weighted loss per element of every image.
      gradient: norm of the gradient of the mean weighted loss, ``(S,)``.
    """

    sigmas: np.ndarray
    error: np.ndarray
    ideal_error: np.ndarray
    from_ideal: np.ndarray
    loss: np.ndarray
    gradient: np.ndarray


def ideal_denoiser_points(points: np.ndarray, size: int) -> exact.FiniteData:
    """The ideal denoiser of some images, padded to ``size`` and to whole chunks."""
    chunk = min(CHUNK, size)
    total = -(-size // chunk) * chunk
    filler = np.full((total - len(points), *points.shape[1:]), _FAR, np.float32)
    return exact.FiniteData(np.concatenate([points, filler]), chunk=chunk)


@jax.jit
def _ideal(data: exact.FiniteData, x: Array, sigma: Array) -> Array:
    return data.denoise(x, sigma)


@functools.partial(jax.jit, static_argnames="weight")
def _of_model(
    model: Model, y: Array, noise: Array, sigma: Array, rows: Array | None, *, weight: WeightFn
) -> tuple[Array, Array, Array]:
    """D, weighted loss per image, norm of the gradient of their mean."""

    def loss(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
        denoise = model.denoiser({**model.variables, "params": params})
        denoised = denoise(y + sigma * noise, jnp.broadcast_to(sigma, y.shape[:1]), rows)
        axes = tuple(range(1, y.ndim))
        each = weight(sigma) * jnp.mean(jnp.square(denoised - y), axis=axes)
        return jnp.mean(each), (denoised, each)

    gradient, (denoised, each) = jax.grad(loss, has_aux=True)(model.params)
    total = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient))
    return denoised, each, jnp.sqrt(total)


def measure(
    model: Model,
    images: np.ndarray,
    sigmas: ArrayLike,
    training: np.ndarray,
    weight: WeightFn,
    *,
    labels: np.ndarray | None = None,
    training_labels: np.ndarray | None = None,
    seed: int = 0,
) -> Levels:
    """Errors, losses and gradients of a model on some images at every level.

    The ideal denoiser of a labelled model is that of the training images of the label:
    D(x; sigma) = sum_k y_k softmax_k(-|x - y_k|^2 / (2 sigma^2))  (EDM section B.3).

    Args:
      model: a denoiser.
      images: ``(n, H, W, C)`` in [-1, 1].
      sigmas: ``(S,)``.
      training: ``(K, H, W, C)`` in [-1, 1].
      weight: lambda(sigma) of the loss.
      labels, training_labels: ``(n,)`` and ``(K,)`` classes, or None without.
      seed: of the noise.
    """
    y = jnp.asarray(images, jnp.float32)
    rows = None if labels is None else model.label_rows(labels, len(y))
    groups = _by_label(len(images), labels, training, training_labels)
    key = jax.random.key(seed, impl="threefry2x32")
    columns: list[tuple[Array, ...]] = []
    for i, sigma in enumerate(np.asarray(sigmas, np.float32)):
        noise = jax.random.normal(jax.random.fold_in(key, i), y.shape)
        denoised, each, norm = _of_model(model, y, noise, sigma, rows, weight=weight)
        ideal = _ideal_of(groups, np.asarray(y + sigma * noise), sigma)
        errors = [_rms(denoised - y), _rms(ideal - y), _rms(denoised - ideal)]
        columns.append((*errors, np.asarray(each), float(norm)))
    error, ideal_error, from_ideal, loss, gradient = (
        np.array(c) for c in zip(*columns, strict=True)
    )
    return Levels(np.asarray(sigmas, float), error, ideal_error, from_ideal, loss, gradient)


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def _by_label(
    count: int,
    labels: np.ndarray | None,
    training: np.ndarray,
    training_labels: np.ndarray | None,
) -> list[tuple[np.ndarray, exact.FiniteData]]:
    """Positions of the images of a label, and the ideal denoiser of its training images."""
    if labels is None or training_labels is None:
        return [(np.arange(count), ideal_denoiser_points(training, len(training)))]
    size = max(int(np.sum(training_labels == label)) for label in np.unique(labels))
    return [
        (
            np.flatnonzero(labels == label),
            ideal_denoiser_points(training[training_labels == label], size),
        )
        for label in np.unique(labels)
    ]


def _ideal_of(
    groups: list[tuple[np.ndarray, exact.FiniteData]], x: np.ndarray, sigma: float
) -> np.ndarray:
    """The ideal D of every image; groups are padded to one size, so that one program serves."""
    size = max(len(index) for index, _ in groups)
    ideal = np.empty_like(x)
    for index, data in groups:
        padded = np.resize(index, size)
        ideal[index] = np.asarray(_ideal(data, x[padded], sigma))[: len(index)]
    return ideal
