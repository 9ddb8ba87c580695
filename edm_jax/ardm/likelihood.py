"""How well a model codes data: its bound, exact code lengths, the bound of a policy.

For one fixed order and policy the code length is an exact negative log likelihood (of the
model that draws a block at once); the mean over orders bounds -ln p(x) from above.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.ardm import orders
from edm_jax.ardm.objective import step_terms
from edm_jax.ardm.policy import sequential_policy, stage_policies
from edm_jax.ardm.process import PredictFn, Process, check_values, num_steps, num_variables
from edm_jax.pytree import short_repr
from edm_jax.typing import Array, ArrayLike, Key


@short_repr
class Estimate(NamedTuple):
    """A mean over images.

    Attributes:
      mean: of all values.
      standard_error: of that mean, over images (passes over one image are averaged first).
      num_images: how many.
    """

    mean: float
    standard_error: float
    num_images: int


def estimate(values: ArrayLike) -> Estimate:
    """Mean and standard error of ``(passes, N)`` values of N images, or ``(N,)``."""
    per_image = np.asarray(values, np.float64)
    per_image = per_image.reshape(-1, per_image.shape[-1]).mean(axis=0)
    count = len(per_image)
    error = per_image.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(float(per_image.mean()), float(error), count)


def code_length(
    predict: PredictFn, process: Process, x: ArrayLike, ranks: ArrayLike, policy: ArrayLike | None
) -> Array:
    """Exact code length of data for fixed orders and a policy; S n network calls.

    Args:
      predict, process: the model, see `edm_jax.ardm.process`.
      x: ``(B, ...)`` integers 0..K-1.
      ranks: ``(B, *mask_shape)`` for all stages, or ``(S, B, *mask_shape)``.
      policy: ``(n + 1,)`` or ``(S, n + 1)``; None is one variable at a time.

    Returns:
      ``(B,)`` -ln p(x) in nats; `bits_per_dim` converts.
    """
    check_values(x, process.num_values)
    x = jnp.asarray(x, jnp.int32)
    batch, shape = x.shape[0], x.shape[1:]
    variables = num_variables(process, shape)
    policy = sequential_policy(variables) if policy is None else policy
    policies = stage_policies(policy, process.num_stages, variables)
    mask_shape = (batch, *process.mask_shape(shape))
    all_ranks = orders.stage_ranks(ranks, process.num_stages, mask_shape)

    def call(total: Array, inputs: tuple[Array, ...]) -> tuple[Array, None]:
        stage, t, t_next = inputs
        ranks = all_ranks[stage]
        known, stages = ranks < t, jnp.full(batch, stage, jnp.int32)
        times = jnp.full(batch, jnp.minimum(t, variables - 1), jnp.int32)
        outputs = predict(process.shown(x, known, stages), known, times, stages)
        log_prob = process.log_prob(outputs, x, stages)
        current = (t <= ranks) & (ranks < t_next)
        axes = tuple(range(1, ranks.ndim))
        return total - jnp.sum(jnp.where(current, log_prob, 0), axis=axes), None

    num_calls = policies.shape[1] - 1
    stages = jnp.repeat(jnp.arange(process.num_stages), num_calls)
    inputs = (stages, policies[:, :-1].reshape(-1), policies[:, 1:].reshape(-1))
    return jax.lax.scan(call, jnp.zeros(batch), inputs)[0]


def bits_per_dim(nats: ArrayLike, process: Process, shape: tuple[int, ...]) -> Array:
    """Nats per example -> bits per variable of an example of shape ``shape``."""
    return jnp.asarray(nats) / (num_variables(process, shape) * math.log(2))


def bound_sample(predict: PredictFn, process: Process, x: ArrayLike, keys: Key) -> Array:
    """One unbiased estimate of the bound per image, from a random step; 1 network call.

    Args:
      predict, process: the model, see `edm_jax.ardm.process`.
      x: ``(B, ...)`` integers 0..K-1.
      keys: ``(B,)``, one per image.

    Returns:
      ``(B,)`` bits per dimension.
    """
    check_values(x, process.num_values)
    x = jnp.asarray(x, jnp.int32)
    shape = x.shape[1:]
    variables = num_variables(process, shape)
    keys = jax.vmap(jax.random.split)(keys)
    step = orders.uniform_steps(keys[:, 0], num_steps(process, shape))
    ranks = orders.drawn_ranks(process.order, keys[:, 1], process.mask_shape(shape))
    terms = step_terms(predict, process, x, ranks, step % variables, step // variables)
    return terms.elbo


def policy_bound_sample(
    predict: PredictFn, process: Process, x: ArrayLike, keys: Key, policy: ArrayLike
) -> Array:
    """One unbiased estimate of the bound of a policy per image, from one of its calls.

    A call is drawn by its share of the variables, (k_{i+1} - k_i) / D, which leaves D times the
    term of step k_i: with the calls of long and of short ones equally likely, their weights
    n (k_{i+1} - k_i) would make the estimate vary far more than the losses do.

    Args:
      predict, process, x, keys: as in `bound_sample`.
      policy: ``(n + 1,)`` or ``(S, n + 1)``.

    Returns:
      ``(B,)`` bits per dimension.
    """
    check_values(x, process.num_values)
    x = jnp.asarray(x, jnp.int32)
    shape = x.shape[1:]
    variables = num_variables(process, shape)
    policies = stage_policies(policy, process.num_stages, variables)
    keys = jax.vmap(jax.random.split)(keys)
    index = orders.uniform_steps(keys[:, 0], process.num_stages * variables)
    stage, rank = index // variables, index % variables
    k = policies[stage]
    call = jnp.sum(k[:, 1:] <= rank[:, None], axis=1)
    t, t_next = (jnp.take_along_axis(k, (call + i)[:, None], axis=1)[:, 0] for i in (0, 1))
    ranks = orders.drawn_ranks(process.order, keys[:, 1], process.mask_shape(shape))
    return step_terms(predict, process, x, ranks, t, stage, t_next).elbo
