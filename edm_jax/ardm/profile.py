"""The loss of every step, followed through training: what policies are made from."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike

MOMENTUM = 0.95  # of the release


@pytree_dataclass
class LossProfile:
    """Exponential averages of elbo_per_t, one for each of the S D steps.

    Attributes:
      value: ``(S D,)`` float32, bits per dimension over D; 0 where no step was seen.
      count: ``(S D,)`` int32, how many values went into each.
    """

    value: Array
    count: Array

    @classmethod
    def zeros(cls, num_steps: int) -> LossProfile:
        """The profile before any step."""
        return cls(jnp.zeros(num_steps), jnp.zeros(num_steps, jnp.int32))

    def update(self, step: Array, value: Array, momentum: ArrayLike = MOMENTUM) -> LossProfile:
        """The profile after the steps of a batch, as if they came one after the other.

        The first value of a step is taken as it is.  Values that are not finite do not count.

        Args:
          step: ``(B,)`` integers below S D.
          value: ``(B,)`` elbo_per_t.
          momentum: weight of the past.
        """
        step, position = step.astype(jnp.int32), jnp.arange(step.shape[0])
        good = jnp.isfinite(value)
        value = jnp.where(good, value, 0)
        same = (step[:, None] == step[None, :]) & good[:, None] & good[None, :]
        earlier = jnp.sum(same & (position[None, :] < position[:, None]), axis=1)
        later = jnp.sum(same & (position[None, :] > position[:, None]), axis=1)
        first = (self.count[step] == 0) & (earlier == 0)
        weight = jnp.where(first, 1, 1 - momentum) * momentum**later * good
        added = jnp.zeros_like(self.count).at[step].add(good.astype(jnp.int32))
        kept = self.value * jnp.asarray(momentum, self.value.dtype) ** added
        return LossProfile(kept.at[step].add(weight * value), self.count + added)

    def loss_per_step(self, num_values: int, num_variables: int) -> np.ndarray:
        """L_t, ``(S D,)`` float64; steps not seen yet count as the uniform code.

        Args:
          num_values: K.
          num_variables: D.
        """
        unseen = math.log2(num_values) / num_variables
        count, value = np.asarray(self.count), np.asarray(self.value, np.float64)
        return np.where(count > 0, value, unseen)
