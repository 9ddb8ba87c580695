"""One training step: gradient, optimizer, averages and running metrics, as one program.

Random numbers follow from (seed, step, position in the global batch) alone, so the
step computes the same thing on any mesh and after any interruption.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from edm_jax.train import metrics
from edm_jax.train.averaging import Averaging
from edm_jax.train.objective import Batch, Objective, StatefulObjective
from edm_jax.train.optimizer import sanitize_gradients
from edm_jax.train.state import TrainState
from edm_jax.typing import Array, Key, PyTree


def init_state(
    variables: PyTree,
    optimizer: optax.GradientTransformation,
    averaging: Averaging,
    objective: Objective | None = None,
) -> TrainState:
    """Fresh state around initial network variables; every EMA starts as the weights.

    The state holds copies: the training step donates its buffers.  The objective matters if
    it has a history.
    """
    params = jax.tree.map(jnp.copy, variables["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        buffers=jax.tree.map(jnp.copy, variables.get("buffers", {})),
        ema={name: jax.tree.map(jnp.copy, params) for name in averaging.names()},
        opt_state=optimizer.init(params),
        metrics=metrics.zeros(),
        bad_streak=jnp.zeros((), jnp.int32),
        failed_step=jnp.full((), -1, jnp.int32),
        objective=objective.initial_state() if isinstance(objective, StatefulObjective) else {},
    )


def all_finite(tree: PyTree) -> Array:
    """Whether every number of a tree is finite; a () bool."""
    floating = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in floating]))


def _accumulate(
    gradient: Callable[[Batch, Array], tuple[PyTree, tuple[Array, Array]]],
    batch: Batch,
    image_ids: Array,
    rounds: int,
) -> tuple[PyTree, tuple[Array, Array]]:
    """Sum of the gradients of ``rounds`` parts of a batch, and the joined per-image values.

    Round r takes images r, r + rounds, ...: the axis that is split over devices stays the
    leading one, and no image moves between devices.
    """

    def split(a: Array) -> Array:
        return jnp.moveaxis(a.reshape(-1, rounds, *a.shape[1:]), 1, 0)

    def join(a: Array) -> Array:
        return jnp.moveaxis(a, 0, 1).reshape(-1)

    parts = jax.tree.map(split, (batch, image_ids))
    shapes = jax.eval_shape(gradient, *jax.tree.map(lambda a: a[0], parts))[0]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(total: PyTree, part: tuple[Batch, Array]) -> tuple[PyTree, tuple[Array, Array]]:
        grads, values = gradient(*part)
        return jax.tree.map(jnp.add, total, grads), values

    grads, values = jax.lax.scan(body, zeros, parts)
    return grads, jax.tree.map(join, values)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    averaging: Averaging,
    *,
    batch_size: int,
    log_every: int,
    loss_scaling: float = 1.0,
    micro_batch: int = 0,
    max_bad_steps: int = 1,
) -> Callable[[TrainState, Batch, Key], TrainState]:
    """The training step, to be jitted with the state donated.

    The gradient is that of loss_scaling * sum over pixels, mean over the batch.  The
    scaling is not divided out again: Adam does not see it but through its epsilon.  Rounds
    of accumulation see the same noise and dropout as the whole batch would, so the update
    is the same up to the order of sums.

    Args:
      objective: the loss.
      optimizer: as `make_optimizer` makes it.
      averaging: the EMAs.
      batch_size: global batch.
      log_every: steps per window of the running metrics.
      loss_scaling: factor on the loss before differentiation.
      micro_batch: global images per round of accumulation; 0 for all at once.
      max_bad_steps: so many steps in a row whose loss or gradient is not finite are a
        failure, which the state remembers.

    Returns:
      ``step(state, batch, key) -> state``; ``key`` is that of the run.
    """
    rounds = batch_size // (micro_batch or batch_size)

    def train_step(state: TrainState, batch: Batch, key: Key) -> TrainState:
        step_key = jax.random.fold_in(key, state.step)

        stateful = isinstance(objective, StatefulObjective)
        current = objective.with_state(state.objective) if stateful else objective

        def scalar_loss(params: PyTree, part: Batch, image_ids: Array) -> tuple[Array, Any]:
            per_image, level = current.per_image(params, state.buffers, part, step_key, image_ids)
            return jnp.sum(per_image) * (loss_scaling / batch_size), (per_image, level)

        gradient = jax.grad(scalar_loss, has_aux=True)
        image_ids = jnp.arange(batch_size)
        if rounds == 1:
            grads, (per_image, level) = gradient(state.params, batch, image_ids)
        else:
            grads, (per_image, level) = _accumulate(
                lambda part, ids: gradient(state.params, part, ids), batch, image_ids, rounds
            )
        grads, num_bad = sanitize_gradients(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        nimg = state.step.astype(jnp.float32) * batch_size
        elements = batch["image"].size // batch_size
        per_element = per_image / (1 if getattr(objective, "is_mean", False) else elements)
        bad = (num_bad > 0) | ~jnp.all(jnp.isfinite(per_image))
        bad_streak = jnp.where(bad, state.bad_streak + 1, 0)
        failed = (state.failed_step < 0) & (bad_streak >= max_bad_steps)
        return TrainState(
            step=state.step + 1,
            params=params,
            buffers=state.buffers,
            ema=averaging.update(state.ema, params, nimg, batch_size),
            opt_state=opt_state,
            metrics=metrics.add(
                state.metrics,
                metrics.of_step(
                    per_element,
                    level,
                    optax.tree.norm(grads),
                    num_bad,
                    bad,
                    metrics.edges(objective),
                ),
                fresh=state.step % log_every == 0,
            ),
            bad_streak=bad_streak,
            failed_step=jnp.where(failed, state.step + 1 - bad_streak, state.failed_step),
            objective=objective.update(state.objective, per_image, level) if stateful else {},
        )

    return train_step
