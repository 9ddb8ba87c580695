"""Time steps drawn by the size of their loss (Nichol & Dhariwal 2021, for L_vlb).

    p_t = (1 - q) w_t / sum w + q/T,   w_t = sqrt(mean of the last K squared losses of t)

The importance weight 1/(T p_t) keeps the expected loss.  Until every time step has K
entries all are equally likely.  What has been seen is a small state beside the weights; its
update is a function of (state, time steps, losses) in the order of the global batch, so it is
the same on any mesh and after any interruption.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from edm_jax.arguments import check_number
from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, Key


@pytree_dataclass
class LossHistory:
    """The last losses of every time step, as rings.

    Attributes:
      losses: ``(T, K)`` float32; entry number i of a time step is in column i mod K.
      counts: ``(T,)`` int32, entries that a time step ever had.
    """

    losses: Array
    counts: Array

    def ordered(self) -> Array:
        """``(T, K)`` losses, oldest first, of time steps that have K entries."""
        size = self.losses.shape[1]
        columns = (self.counts[:, None] + jnp.arange(size)[None]) % size
        return jnp.take_along_axis(self.losses, columns, axis=1)


def _inverse_cumulative(probabilities: Array, u: Array) -> Array:
    cumulative = jnp.cumsum(probabilities)
    t = jnp.searchsorted(cumulative / cumulative[-1], u, side="right")
    return jnp.minimum(t, probabilities.shape[0] - 1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class LossSecondMoment:
    """The resampler: constants and pure functions of a LossHistory.

    Attributes:
      num_steps: T.
      history: K, losses that are remembered of each time step.
      uniform_prob: q, the share that is always drawn uniformly.
    """

    num_steps: int
    history: int = 10
    uniform_prob: float = 0.001

    def __post_init__(self) -> None:
        check_number("num_steps", self.num_steps, least=1)
        check_number("history", self.history, least=1)
        check_number("uniform_prob", self.uniform_prob, above=0, most=1)

    def init(self, dtype: jnp.dtype = jnp.float32) -> LossHistory:
        """No losses yet."""
        return LossHistory(
            jnp.zeros((self.num_steps, self.history), dtype),
            jnp.zeros((self.num_steps,), jnp.int32),
        )

    def probabilities(self, state: LossHistory) -> Array:
        """p_t, ``(T,)``; uniform until every time step has K entries."""
        weights = jnp.sqrt(jnp.mean(jnp.square(state.losses), axis=1))
        total = jnp.sum(weights)
        warm = jnp.all(state.counts >= self.history) & (total > 0)
        shares = jnp.where(warm, weights / jnp.where(warm, total, 1), 1 / self.num_steps)
        mixed = (1 - self.uniform_prob) * shares + self.uniform_prob / self.num_steps
        return jnp.where(warm, mixed, 1 / self.num_steps)

    def draw(self, state: LossHistory, u: Array) -> Array:
        """Time steps from uniform numbers in [0, 1), by the inverse of the cumulative p.

        (In float32 the sum has steps of 6e-8, a quarter of the least p_t of T = 4000.)
        """
        return _inverse_cumulative(self.probabilities(state), u)

    def importance(self, state: LossHistory, t: Array) -> Array:
        """1/(T p_t), the shape of t."""
        return 1 / (self.num_steps * self.probabilities(state)[t])

    def update(self, state: LossHistory, t: Array, losses: Array) -> LossHistory:
        """Enter the losses of a batch, one by one in its order.

        Args:
          state: before.
          t: ``(B,)`` time steps; one that occurs more than once is entered as often.
          losses: ``(B,)`` of the images, without importance weights.  Those that are not
            finite are left out: they would spoil p for K visits.
        """
        size, num_steps = self.history, self.num_steps
        t = jnp.where(jnp.isfinite(losses), t, num_steps)  # out of range: dropped below
        order = jnp.argsort(t, stable=True)
        t, losses = t[order], losses[order]
        first = jnp.searchsorted(t, t, side="left")
        rank = jnp.arange(t.shape[0]) - first
        number = jnp.searchsorted(t, t, side="right") - first
        column = (state.counts[jnp.minimum(t, num_steps - 1)] + rank) % size
        # Of more than K entries of a time step the last K remain: every cell is set once.
        row = jnp.where(rank >= number - size, t, num_steps)
        kept = state.losses.at[row, column].set(losses.astype(state.losses.dtype), mode="drop")
        return LossHistory(kept, state.counts.at[t].add(1, mode="drop"))

    def uniform_draws(self, keys: Key) -> Array:
        """One uniform number per key."""
        return jax.vmap(lambda key: jax.random.uniform(key, ()))(keys)
