"""The order-agnostic objective: one random step of one random order per image.

Hoogeboom et al. 2022, section 3.  With t known variables all D - t unknown ones are
predicted at once and averaged, an unbiased estimate of the bound of the order:

    L_t = E_order[ 1/(D-t) sum_{k unknown} -ln p(x_k | the t known ones) ],  -ln p(x) <= sum_t L_t

A model of one order has no such choice of the next variable: with t known it is that of rank t
alone, L_t = -ln p(x_t | x_0 .. x_{t-1}), and -ln p(x) is their sum.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from edm_jax.ardm import orders
from edm_jax.ardm.process import PredictFn, Process, network_predictor, num_steps, num_variables
from edm_jax.ardm.profile import LossProfile
from edm_jax.arguments import check_number
from edm_jax.losses import one_hot_labels
from edm_jax.pytree import short_repr
from edm_jax.typing import Array, Key, PyTree

STEPS = ("uniform", "grid")


@short_repr
class Terms(NamedTuple):
    """Estimates from one step of one order, ``(B,)`` each, positive.

    Attributes:
      nll: -ln p summed over the unknown variables, in nats; of one order, over those drawn next.
      elbo_per_t: nll for each of these in bits, over D: one term of the bound.
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
      t: ``(B,)`` how many these are, at most D - 1.
      num_stages: S.
    """
    variables = math.prod(log_prob.shape[1:])
    axes = tuple(range(1, log_prob.ndim))
    nll = -jnp.sum(jnp.where(known, 0, log_prob), axis=axes)
    ce = nll / (variables * math.log(2))
    elbo_per_t = ce / (variables - t)
    return Terms(nll, elbo_per_t, num_stages * variables * elbo_per_t, ce)


def step_terms(
    predict: PredictFn,
    process: Process,
    x: Array,
    ranks: Array,
    t: Array,
    stage: Array,
    t_next: Array | None = None,
) -> Terms:
    """The terms of given steps of given orders; 1 network call.

    Of random orders all unknown variables count, any of which could have come next; of one order
    those of ranks t .. t_next - 1.

    Args:
      predict: the model, see `edm_jax.ardm.process`.
      process: the kind of model.
      x: ``(B, ...)`` integers 0..K-1.
      ranks: ``(B, *mask_shape)``, see `orders`.
      t: ``(B,)`` int32, variables known in the stage, 0..D-1.
      stage: ``(B,)`` int32, 0..S-1.
      t_next: ``(B,)`` int32, known after the step, more than t; None: one more.
    """
    known = ranks < orders.per_variable(t, ranks)
    outputs = predict(process.shown(x, known, stage), known, t, stage)
    log_prob, stages = process.log_prob(outputs, x, stage), process.num_stages
    if process.order == "random":
        return bound_terms(log_prob, known, t, stages)
    t_next = t + 1 if t_next is None else t_next
    apart = known | (ranks >= orders.per_variable(t_next, ranks))
    return bound_terms(log_prob, apart, ranks[0].size - (t_next - t), stages)


def to_levels(images: Array, num_values: int) -> Array:
    """uint8 0..255 -> 0..K-1, the nearest of K grey levels; exact inverse of `to_uint8`."""
    if num_values == 256:
        return images.astype(jnp.int32)
    return jnp.round(images.astype(jnp.float32) * ((num_values - 1) / 255)).astype(jnp.int32)


def to_uint8(x: Array, num_values: int) -> Array:
    """0..K-1 -> uint8, spread over 0..255; K at most 256."""
    return jnp.round(x.astype(jnp.float32) * (255 / (num_values - 1))).astype(jnp.uint8)


@short_repr
@dataclasses.dataclass(frozen=True)
class OrderAgnostic:
    """The training loss of an order-agnostic model, in bits per dimension.

    Its history is the `LossProfile` of the run, from which policies are made.  The loss does
    not depend on it.

    Attributes:
      apply: ``apply(variables, x_in, time, known, stage, train=..., image_ids=..., rngs=...)``,
        the network.
      process: the kind of model.
      shape: of one example, ``(H, W, C)`` or ``(L,)``.
      batch_size: images of the global batch, for the grid.
      ce_weight: of the auxiliary cross entropy, at least 0; published: 0.001 for images, 0.0001
        for text and audio.
      steps: ``uniform`` draws a step per image, ``grid`` spreads those of a batch evenly
        ("antithetic").
      levels: whether the data are pixels 0..255, of which the nearest of K levels count;
        otherwise they are the values themselves.
      num_classes: dimension of the labels, 0 for none.
    """

    is_mean: ClassVar[bool] = True  # over the elements of an image, or no sum of them

    apply: Callable[..., Array]
    process: Process
    shape: tuple[int, ...]
    batch_size: int
    ce_weight: float = 0.001
    steps: str = "uniform"
    levels: bool = False
    num_classes: int = 0

    def __post_init__(self) -> None:
        if self.steps not in STEPS:
            raise ValueError(f"steps must be one of {', '.join(STEPS)}, got {self.steps!r}")
        check_number("ce_weight", self.ce_weight, least=0)

    @property
    def level_edges(self) -> tuple[float, ...]:
        """Of the bins of the running loss: 22 equal shares of all steps."""
        total = num_steps(self.process, self.shape)
        return tuple(total * i / 22 - 0.5 for i in range(1, 22))

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
          batch: ``image`` integers ``(B, H, W, C)`` or, for sequences, ``(B, L)``; ``label``
            where there are classes.
          key: of this step.
          image_ids: ``(B,)`` positions in the global batch; an image's order and step follow
            from the key and its position.

        Returns:
          ``(B,)`` losses in bits per dimension, elbo + ce_weight * ce, and ``(B,)`` float32
          steps s D + t.
        """
        x, shape = batch["image"], self.shape
        x = to_levels(x, self.process.num_values) if self.levels else x.astype(jnp.int32)
        variables, total = num_variables(self.process, shape), num_steps(self.process, shape)
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(image_ids)
        step = self.draw_steps(jax.random.fold_in(key, 2**30), keys[:, 0], image_ids, total)
        stage, t = step // variables, step % variables
        ranks = orders.drawn_ranks(self.process.order, keys[:, 1], self.process.mask_shape(shape))
        variable_sets = {"params": params} | ({"buffers": buffers} if buffers else {})
        predict = network_predictor(
            lambda *inputs, **options: self.apply(variable_sets, *inputs, **options),
            self.process,
            shape,
            rows=one_hot_labels(batch["label"], self.num_classes) if self.num_classes else None,
            train=True,
            image_ids=image_ids,
            rngs={"dropout": jax.random.fold_in(key, 2**31)},
        )
        terms = step_terms(predict, self.process, x, ranks, t, stage)
        return terms.elbo + self.ce_weight * terms.ce, step.astype(jnp.float32)

    def initial_state(self) -> LossProfile:
        """The profile of no steps."""
        return LossProfile.zeros(num_steps(self.process, self.shape))

    def with_state(self, state: LossProfile) -> OrderAgnostic:
        """The same objective: the profile only watches."""
        return self

    def update(self, state: LossProfile, loss: Array, level: Array) -> LossProfile:
        """The profile after a step of the whole batch: losses and steps as `per_image` has them."""
        return state.update(level.astype(jnp.int32), self.elbo_per_t(loss, level))

    def told(self, state: LossProfile) -> dict[str, Any]:
        """What a description holds: ``loss_per_step``, which policies are made of, ``levels``."""
        process = self.process
        profile = state.loss_per_step(process.num_values, num_variables(process, self.shape))
        losses = [float(f"{value:.6g}") for value in profile]
        return {"loss_per_step": losses, "levels": self.levels}

    def elbo_per_t(self, loss: Array, step: Array) -> Array:
        """The term of the bound that a loss of `per_image` stands for.

        Args:
          loss, step: ``(B,)``, as `per_image` returns them.
        """
        variables = num_variables(self.process, self.shape)
        counted = variables - step % variables if self.process.order == "random" else 1
        return loss / (self.process.num_stages * variables + self.ce_weight * counted)
