"""Sampling: a scan over the calls of a policy, one order and one key per image.

Sequential sampling is the policy 0, 1, .. D; inpainting gives the known variables the lowest
ranks and begins behind them.  Values that are known never change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.ardm import orders
from edm_jax.ardm.outputs import TINY
from edm_jax.ardm.policy import stage_policies
from edm_jax.ardm.process import PredictFn, Process, check_values, num_variables
from edm_jax.arguments import is_known
from edm_jax.progress import ReportFn, report, reporter
from edm_jax.pytree import short_repr
from edm_jax.typing import Array, ArrayLike, Key

_ORDER = 0  # stream of a key and stage; call i draws from stream i + 1
UniformFn = Callable[[Array], Array]


@short_repr
class Path(NamedTuple):
    """A decoding step by step; the first state is the one before any draw.

    Attributes:
      x: ``(S n + 1, B, *shape)`` int32 states.
      known: ``(S n + 1, B, *mask_shape)`` bool: what each state knows of the digits of its stage;
        a stage begins where the one before has ended, so that the last state knows everything.
    """

    x: Array
    known: Array


def draw_step(
    predict: PredictFn,
    process: Process,
    x: Array,
    ranks: Array,
    t: ArrayLike,
    t_next: ArrayLike,
    uniform: Array,
    stage: ArrayLike = 0,
) -> Array:
    """Draw the variables of ranks t .. t_next - 1; 1 network call.

    Args:
      predict, process: the model, see `edm_jax.ardm.process`.
      x: state, ``(B, ...)`` int32; variables of ranks below t are known.
      ranks: ``(B, *mask_shape)``.
      t, t_next: scalars or ``(B,)``; equal ones draw nothing.
      uniform: ``(B, *process.noise_shape)`` in (0, 1), for all positions.
      stage: scalar.

    Returns:
      The next state.
    """
    batch = x.shape[:1]
    t, t_next = (orders.per_variable(value, ranks) for value in (t, t_next))
    known = ranks < t
    stages = jnp.full(batch, stage, jnp.int32)
    num_known = jnp.broadcast_to(t.reshape(-1), batch).astype(jnp.int32)
    # Of a network that is asked for nothing any more the time would lie outside its range.
    num_known = jnp.minimum(num_known, math.prod(ranks.shape[1:]) - 1)
    outputs = predict(process.shown(x, known, stages), known, num_known, stages)
    drawn = process.draw(outputs, x, uniform, stages)
    return jnp.where((t <= ranks) & (ranks < t_next), drawn, x)


def _check_start(policy: Array, num_given: Array) -> None:
    """Raise ValueError for a known policy that begins behind the variables given."""
    if not is_known(policy, num_given):
        return
    first, fewest = int(np.asarray(policy)[:, 0].max()), int(np.asarray(num_given).min())
    if first > fewest:
        raise ValueError(
            f"a policy must begin with 0 or the number of variables given, {fewest}, got {first}"
        )


def sample_ardm(
    predict: PredictFn,
    process: Process,
    keys: Key,
    shape: tuple[int, ...],
    policy: ArrayLike,
    *,
    ranks: ArrayLike | None = None,
    values: ArrayLike | None = None,
    given: ArrayLike | None = None,
    uniform_fn: UniformFn | None = None,
    trajectory: bool = False,
    progress: bool | ReportFn = False,
) -> Array | Path:
    """Draw one example for each key; it depends on its key alone, not on its batch.

    The program is compiled once for each (shape, n), whatever the policy says.

    Args:
      predict, process: the model, see `edm_jax.ardm.process`.
      keys: ``(B,)``, as `seeds.image_keys` makes them.
      shape: of one example, ``(H, W, C)`` or ``(L,)``.
      policy: ``(n + 1,)`` integers 0 = k_0 < .. < k_n = D, or ``(S, n + 1)`` with one for each
        stage; may be traced.  n network calls per stage.
      ranks: None draws orders, a new one for each stage; or ``(B, *mask_shape)`` ranks for
        all stages, ``(S, B, *mask_shape)`` for each.  Given variables come first in them.
      values, given: condition on ``values`` ``(B, *shape)`` where the mask ``given``
        ``(B, *mask_shape)`` is True.  Calls of the policy that would draw only given ones
        do nothing: ``num_given + policy_table(loss_t[num_given:]).policy(n)`` wastes
        none.
      uniform_fn: index of the call -> ``(B, *noise_shape)`` uniforms, to replay recorded ones.
      trajectory: return all states, and what is known in them.
      progress: False; True for a bar on the terminal; or a function ``(done, total)``.

    Returns:
      ``(B, *shape)`` int32 in 0..K-1, or a `Path`.

    Raises:
      ValueError: for a policy that does not go up to D, ranks that are no permutation, values
        outside 0..K-1, or a mask that leaves nothing to draw.
    """
    shape, batch = tuple(shape), keys.shape[0]
    mask_shape, stages = process.mask_shape(shape), process.num_stages
    policies = stage_policies(policy, stages, num_variables(process, shape), start=None)
    x, num_given = _start(process, (batch, *shape), values, given)
    _check_start(policies, num_given)
    if ranks is not None:
        ranks = orders.stage_ranks(ranks, stages, (batch, *mask_shape))
        orders.check_given_first(ranks, given)
    num_calls, report_fn = policies.shape[1] - 1, reporter(progress)
    report(report_fn, 0, stages * num_calls)

    def one_stage(x: Array, inputs: tuple) -> tuple[Array, tuple[Array, Array] | None]:
        stage, k, ranks = inputs
        if ranks is None:
            keys_of_order = _streams(keys, stage, _ORDER)
            ranks = orders.drawn_ranks(process.order, keys_of_order, mask_shape, given)
        # Whatever a traced policy begins with: everything that is not given is drawn.
        k = jnp.maximum(k[:, None], num_given[None, :]).at[0].set(num_given)

        def call(x: Array, inputs: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array] | None]:
            i, t, t_next = inputs
            if uniform_fn is None:
                uniform = _uniform(_streams(keys, stage, i + 1), process.noise_shape(shape))
            else:
                uniform = uniform_fn(stage * num_calls + i)
            x = draw_step(predict, process, x, ranks, t, t_next, uniform, stage)
            report(report_fn, stage * num_calls + i + 1, stages * num_calls, after=x)
            known = ranks < orders.per_variable(t_next, ranks)
            return x, ((x, known) if trajectory else None)

        return jax.lax.scan(call, x, (jnp.arange(num_calls), k[:-1], k[1:]))

    last, visited = jax.lax.scan(one_stage, x, (jnp.arange(stages), policies, ranks))
    if not trajectory:
        return last
    states, known = (values.reshape(-1, *values.shape[2:]) for values in visited)
    first = jnp.zeros((1, batch, *mask_shape), bool) if given is None else jnp.asarray(given)[None]
    return Path(jnp.concatenate([x[None], states]), jnp.concatenate([first, known]))


def _streams(keys: Key, stage: Array, index: ArrayLike) -> Key:
    """The keys of one stage for the order (0) or for a call (its number + 1)."""
    fold = jax.random.fold_in
    return jax.vmap(lambda key: fold(fold(key, stage), index))(keys)


def _uniform(keys: Key, shape: tuple[int, ...]) -> Array:
    """``(B, *shape)`` in (0, 1), one key per image."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape, minval=TINY))(keys)


def _start(
    process: Process, shape: tuple[int, ...], values: ArrayLike | None, given: ArrayLike | None
) -> tuple[Array, Array]:
    """The state before any draw, and ``(B,)`` how many variables are given in it."""
    x = jnp.broadcast_to(process.start(shape[1:]), shape)
    if (values is None) != (given is None):
        raise ValueError("values and given must come together: what is known, and where")
    if given is None:
        return x, jnp.zeros(shape[0], jnp.int32)
    orders.check_given(given, (shape[0], *process.mask_shape(shape[1:])))
    check_values(values, process.num_values, "values")
    given = jnp.asarray(given)
    count = jnp.sum(given.reshape(shape[0], -1), axis=1, dtype=jnp.int32)
    return jnp.where(given, jnp.asarray(values), x).astype(jnp.int32), count
