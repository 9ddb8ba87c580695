"""The training objective of reflected diffusion (Lou and Ermon 2023)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from edm_jax import losses, noise
from edm_jax.domains.box import Box
from edm_jax.noise import NoiseDistribution, WeightFn
from edm_jax.precond import CoefsFn, Preconditioning
from edm_jax.pytree import short_repr
from edm_jax.train.objective import Batch, examples, training_network
from edm_jax.typing import Array, DenoiseFn, Key, NetFn, PyTree


def scaled_score_fn(net_fn: NetFn, coefs: CoefsFn) -> DenoiseFn:
    """From a raw network to sigma times its score, (D - x)/sigma.

    Like `precond.precondition`, but D and x are never subtracted, which at small sigma would
    cost digits.  With `precond.reflected_coefs` it is F itself.

    Args:
      net_fn: ``net_fn(c_in * x, c_noise) -> F`` of the shape of x.
      coefs: sigma -> Coefs.

    Returns:
      ``(x, sigma) -> (D - x) / sigma`` for x ``(B, ...)``, sigma ``(B,)``.
    """

    def scaled_score(x: Array, sigma: Array) -> Array:
        c_skip, c_out, c_in, c_noise = coefs(sigma)
        column = sigma.shape + (1,) * (x.ndim - 1)
        f_x = net_fn(c_in.reshape(column) * x, c_noise).astype(x.dtype)
        skip, out = ((c_skip - 1) / sigma).reshape(column), (c_out / sigma).reshape(column)
        return skip * x + out * f_x

    return scaled_score


def score_matching_loss(
    scaled_score: DenoiseFn, box: Box, y: Array, sigma: Array, noise: Array, weight: WeightFn
) -> Array:
    """Weighted denoising score matching of every element, unreduced.

        x = fold(y + sigma n),   weight(sigma)/2 (sigma s(x; sigma) - sigma grad ln q(x | y))^2

    In terms of D it is weight/2 ((D - D*)/sigma)^2.  A weight of 1 is the published image
    weighting, sigma^2 |s - grad ln q|^2 with half the sum over pixels; the likelihood
    weighting is `likelihood_weight`.

    Args:
      scaled_score: ``(x, sigma) -> sigma s``, as `scaled_score_fn` makes it.
      box: the domain.
      y: ``(B, ...)`` clean data in the box.
      sigma: ``(B,)`` noise levels.
      noise: of the shape of y, standard normal.
      weight: sigma -> ``(B,)``.

    Returns:
      Of the shape of y.
    """
    if sigma.shape != y.shape[:1] or noise.shape != y.shape:
        raise ValueError(
            f"need sigma of shape (B,) and noise of the shape of y, got sigma "
            f"{sigma.shape}, noise {noise.shape}, y {y.shape}"
        )
    x = box.corrupt(y, sigma, noise)
    error = scaled_score(x, sigma) - box.scaled_score(x, y, sigma)
    return 0.5 * weight(sigma).reshape(sigma.shape + (1,) * (y.ndim - 1)) * jnp.square(error)


def image_weight(sigma: Array) -> Array:
    """1: the published weighting for image quality, sigma^2 on the score."""
    return jnp.ones_like(sigma)


@dataclasses.dataclass(frozen=True)
class LikelihoodWeight:
    """g^2 / sigma^2 = 2 ln(sigma_max / sigma_min) for ln sigma uniform between them.

    With it the mean loss is the diffusion term of the bound on -ln p, in nats
    (`edm_jax.likelihood.reflected_bound`).

    Attributes:
      sigma_min, sigma_max: ends of the distribution of levels in training.
    """

    sigma_min: float
    sigma_max: float

    def __call__(self, sigma: Array) -> Array:
        """Of the shape of sigma."""
        return jnp.full_like(sigma, 2 * math.log(self.sigma_max / self.sigma_min))


def reflected_weight(weighting: str, distribution: NoiseDistribution) -> WeightFn:
    """The weight of a name: "image", or "likelihood" for log-uniform levels.

    Raises:
      ValueError: for another name, or levels of which no weight makes the loss a bound.
    """
    if weighting == "image":
        return image_weight
    if weighting != "likelihood":
        raise ValueError(f"weighting must be 'image' or 'likelihood', got {weighting!r}")
    if not isinstance(distribution, noise.LogUniform):
        raise ValueError(
            "weighting 'likelihood' needs levels uniform in ln sigma, got "
            f"{type(distribution).__name__}; choose the loguniform noise distribution"
        )
    return LikelihoodWeight(float(distribution.sigma_min), float(distribution.sigma_max))


@short_repr
@dataclasses.dataclass(frozen=True)
class ReflectedObjective:
    """What makes up the training loss of a reflected model.

    Attributes:
      apply: ``apply(variables, x, c_noise, class_labels, augment_labels, train=...,
        image_ids=..., rngs=...)``, the network.
      preconditioning: turns it into a denoiser; `precond.reflected_preconditioning`.
      distribution: p(sigma); published: `noise.LogUniform` from 0.02 to 10 in units of [-1, 1].
      weight: on the squared error of sigma s; `image_weight` or a `LikelihoodWeight`.
      box: the domain; images arrive in [-1, 1].
      num_classes: dimension of the labels, 0 for none.
      augment: None, or ``(keys, images) -> (images, augment_labels)`` on images in [-1, 1],
        with one key per image; what it returns must be in the box again.
    """

    apply: Callable[..., Array]
    preconditioning: Preconditioning
    distribution: NoiseDistribution
    weight: WeightFn = image_weight
    box: Box = Box()
    num_classes: int = 0
    augment: Callable[[Key, Array], tuple[Array, Array]] | None = None

    def __post_init__(self) -> None:
        self.box.check([-1.0, 1.0], "images")
        if isinstance(self.distribution, noise.LogUniform):
            self.box.check_levels(self.distribution.sigma_min, self.distribution.sigma_max)

    def per_image(
        self, params: PyTree, buffers: PyTree, batch: Batch, key: Key, image_ids: Array
    ) -> tuple[Array, Array]:
        """Loss of every image of a batch; arguments as `train.objective.Objective`.

        Returns:
          ``(B,)`` half the sums of the weighted squared error over pixels, and ``(B,)`` sigma.
        """
        drawn = examples(batch, key, image_ids, self.num_classes, self.augment)
        y = drawn.images
        if self.augment is not None:
            y = self.box.clip(y)  # resampling overshoots at edges; the data must be in the box
        sigma = jax.vmap(lambda k: noise.sample_sigma(self.distribution, k, ()))(drawn.level_keys)
        net_fn = training_network(self.apply, params, buffers, drawn, key, image_ids)
        scaled_score = scaled_score_fn(net_fn, self.preconditioning)
        loss = score_matching_loss(scaled_score, self.box, y, sigma, drawn.noise, self.weight)
        return losses.sum_per_image(loss), sigma
