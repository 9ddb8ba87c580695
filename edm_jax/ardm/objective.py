"""The order-agnostic objective: one random step of one random order per image.

Hoogeboom et al. 2022, section 3.  With t known variables all D - t unknown ones are
predicted at once and averaged, an unbiased estimate of the bound of the order:

    L_t = E_order[ 1/(D-t) sum_{k unknown} -ln p(x_k | the t known ones) ],  -ln p(x) <= sum_t L_t
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from edm_jax.ardm import orders
from edm_jax.ardm.process import PredictFn, Process, network_predictor, num_steps, num_variables
from edm_jax.typing import Array, Key, PyTree

STEPS = ("uniform", "grid")


class Terms(NamedTuple):
    """Estimates from one step of one order, ``(B,)`` each, positive.

    Attributes:
      nll: -ln p summed over the unknown variables, in nats.
      elbo_per_t: nll / (D - t) in bits, over D: one term of the bound.
      elbo: S D elbo_per_t, an unbiased estimate of the bound, in bits per dimension.
      ce: nll in bits, over D: the unweighted cross entropy.
    """

    nll: Array
    elbo_per_t: Array
    elbo: Array
    ce: Array


def bound_terms(log_prob: Array, known: Array, t: Array, num_stages: int = 1) -> Terms:
    """The terms of the objective from the log probabilities of all variables.

    Args:
      log_prob: ``(B, *mask_shape)``, natural.
      known: bool of that shape; those variables do not enter.
      t: ``(B,)`` how many are known, at most D - 1.
      num_stages: S.
    """
    variables = math.prod(log_prob.shape[1:])
    axes = tuple(range(1, log_prob.ndim))
    nll = -jnp.sum(jnp.where(known, 0, log_prob), axis=axes)
    ce = nll / (variables * math.log(2))
    elbo_per_t = ce / (variables - t)
    return Terms(nll, elbo_per_t, num_stages * variables * elbo_per_t, ce)


def step_terms(
    predict: PredictFn, process: Process, x: Array, ranks: Array, t: Array, stage: Array
) -> Terms:
    """The terms of given steps of given orders; 1 network call.

    Args:
      predict: the model, see `edm_jax.ardm.process`.
      process: the kind of model.
      x: ``(B, ...)`` integers 0..K-1.
      ranks: ``(B, *mask_shape)``, see `orders`.
      t: ``(B,)`` int32, variables known in the stage, 0..D-1.
      stage: ``(B,)`` int32, 0..S-1.
    """
    known = ranks < orders.per_variable(t, ranks)
    outputs = predict(process.shown(x, known, stage), known, t, stage)
    return bound_terms(process.log_prob(outputs, x, stage), known, t, process.num_stages)


@dataclasses.dataclass(frozen=True)
class OrderAgnostic:
    """The training loss of an order-agnostic model: bits per dimension.

    Attributes:
      apply: ``apply(variables, x_in, time, known, stage, train=..., image_ids=..., rngs=...)``,
        the network.
      process: the kind of model.
      batch_size: images of the global batch, for the grid.
      ce_weight: of the auxiliary cross entropy; published: 0.001 for images, 0.0001 for text
        and audio.
      steps: ``uniform`` draws a step per image, ``grid`` spreads those of a batch evenly
        ("antithetic").
    """

    apply: Callable[..., Array]
    process: Process
    batch_size: int
    ce_weight: float = 0.001
    steps: str = "uniform"

    def __post_init__(self) -> None:
        if self.steps not in STEPS:
            raise ValueError(f"steps must be one of {', '.join(STEPS)}, got {self.steps!r}")

    def draw_steps(self, key: Key, keys: Key, image_ids: Array, total: int) -> Array:
        """``(B,)`` steps in 0..total-1 from the key of the batch or those of the images."""
        if self.steps == "uniform":
            return orders.uniform_steps(keys, total)
        # The grid of the whole batch, of which every image takes its own position.
        return orders.grid_steps(key, self.batch_size, total)[image_ids]

    def per_image(
        self, params: PyTree, buffers: PyTree, batch: dict[str, Array], key: Key, image_ids: Array
    ) -> tuple[Array, Array]:
        """Loss of every image of a batch.

        Args:
          params, buffers: of the network.
          batch: ``image`` integers 0..K-1, ``(B, H, W, C)`` or, for sequences, ``(B, L)``.
          key: of this step.
          image_ids: ``(B,)`` positions in the global batch; an image's order and step follow
            from the key and its position.

        Returns:
          ``(B,)`` losses in bits per dimension, elbo + ce_weight * ce, and ``(B,)`` float32
          steps s D + t.
        """
        x = batch["image"].astype(jnp.int32)
        shape = x.shape[1:]
        variables, total = num_variables(self.process, shape), num_steps(self.process, shape)
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(image_ids)
        step = self.draw_steps(jax.random.fold_in(key, 2**30), keys[:, 0], image_ids, total)
        stage, t = step // variables, step % variables
        ranks = orders.random_ranks(keys[:, 1], self.process.mask_shape(shape))
        variable_sets = {"params": params} | ({"buffers": buffers} if buffers else {})
        predict = network_predictor(
            lambda *inputs, **options: self.apply(variable_sets, *inputs, **options),
            self.process,
            shape,
            train=True,
            image_ids=image_ids,
            rngs={"dropout": jax.random.fold_in(key, 2**31)},
        )
        terms = step_terms(predict, self.process, x, ranks, t, stage)
        return terms.elbo + self.ce_weight * terms.ce, step.astype(jnp.float32)

    def elbo_per_t(self, loss: Array, step: Array, shape: tuple[int, ...]) -> Array:
        """The term of the bound that a loss of `per_image` stands for, for the profile.

        Args:
          loss, step: ``(B,)``, as `per_image` returns them.
          shape: of one image.
        """
        variables = num_variables(self.process, shape)
        unknown = variables - step % variables
        return loss / (self.process.num_stages * variables + self.ce_weight * unknown)
