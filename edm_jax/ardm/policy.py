"""Which variables to draw at once: policies, their cost, and the best of them.

A policy is ``0 = k_0 < k_1 < .. < k_n = D``: call i sees k_i known variables and draws the
next k_{i+1} - k_i.  As L_t does not depend on which unknown variable is meant, it costs

    sum_i (k_{i+1} - k_i) L_{k_i}

(Hoogeboom et al. 2022, section 3.1), and the cheapest one for every number of calls follows
from one dynamic program.  On the host, in float64.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm_jax.arguments import is_known
from edm_jax.pytree import short_repr

_BLOCK = 64  # budgets at a time: their table of candidates stays in the cache


def _count(name: str, value: Any, most: int, what: str) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if not 1 <= count <= most:
        raise ValueError(f"{name} must be an integer 1..{most} for {most} {what}, got {value!r}")
    return count


def check_policy(policy: ArrayLike, num_variables: int, start: int = 0) -> NDArray[np.int32]:
    """The policy as int32; ValueError unless it goes up from ``start`` to D.

    Args:
      policy: ``(n + 1,)`` integers; D may be repeated at the end, for calls that draw nothing.
      num_variables: D.
      start: variables known beforehand.
    """
    values = np.asarray(policy)
    cure = "build it with uniform_policy or optimal_policies"
    if values.ndim != 1 or values.size < 2 or values.dtype.kind not in "iu":
        raise ValueError(
            f"a policy must be a list of at least two integers, got {policy!r}; {cure}"
        )
    if values[-1] != num_variables:
        raise ValueError(
            f"a policy must end in D = {num_variables}, got last entry {values[-1]}; {cure}"
        )
    if values[0] != start:
        raise ValueError(
            f"a policy must begin with {start}, the variables known, got {values[0]}; {cure}"
        )
    bad = np.flatnonzero((np.diff(values) <= 0) & (values[:-1] != num_variables))
    if bad.size:
        i = int(bad[0])
        raise ValueError(
            f"a policy must increase, got {values[i]} then {values[i + 1]} at entry {i}; {cure}"
        )
    return values.astype(np.int32)


def sequential_policy(num_variables: int) -> NDArray[np.int32]:
    """One variable after the other: ``0..D``."""
    return np.arange(num_variables + 1, dtype=np.int32)


def uniform_policy(num_calls: int, num_variables: int) -> NDArray[np.int32]:
    """Equal shares: ``round(linspace(0, D, n + 1))``, halves to even; ``(n + 1,)``."""
    calls = _count("num_calls", num_calls, num_variables, "variables")
    return np.rint(np.linspace(0, num_variables, calls + 1)).astype(np.int32)


def policy_cost(loss_t: ArrayLike, policy: ArrayLike) -> float:
    """``sum_i (k_{i+1} - k_i) L_{k_i}``, in the unit of the profile.

    Args:
      loss_t: ``(D,)`` L_t.
      policy: ``(n + 1,)``.
    """
    loss = _profile(loss_t)
    k = check_policy(policy, len(loss))
    known = np.minimum(k[:-1], len(loss) - 1)  # calls at the end may draw nothing
    return float(np.sum(np.diff(k) * loss[known]))


def _profile(loss_t: ArrayLike) -> NDArray[np.float64]:
    loss = np.asarray(loss_t, np.float64)
    if loss.ndim != 1 or not loss.size or not np.all(np.isfinite(loss)):
        raise ValueError(
            f"a loss profile must be a list of finite numbers L_0 .. L_{{D-1}}, got an array of "
            f"shape {loss.shape} with {np.sum(~np.isfinite(loss))} that are not finite"
        )
    return loss


def monotone_profile(loss_t: ArrayLike, num_stages: int = 1) -> NDArray[np.float64]:
    """The profile in descending order within each stage.

    True profiles descend; a measured one is noisy, and the program would exploit the noise,
    with costs below what any model has.
    """
    loss = _profile(loss_t).reshape(num_stages, -1)
    return np.sort(loss, axis=1)[:, ::-1].reshape(-1)


@short_repr
@dataclasses.dataclass(frozen=True)
class PolicyTable:
    """The cheapest cost of every partial policy, from which a policy for any budget follows.

    Attributes:
      loss_t: ``(D,)`` L_t, as given.
      cost: ``(N + 1, D + 1)``, C[n, t] of reaching t in exactly n calls; inf where impossible.
    """

    loss_t: NDArray[np.float64]
    cost: NDArray[np.float64]

    @property
    def costs(self) -> NDArray[np.float64]:
        """``(N,)``: cost of the best policy of exactly 1..N calls."""
        return self.cost[1:, -1]

    @property
    def costs_at_most(self) -> NDArray[np.float64]:
        """``(N,)``: cost of the best policy of at most 1..N calls."""
        return np.minimum.accumulate(self.costs)

    def policy(self, num_calls: int) -> NDArray[np.int32]:
        """The best policy of exactly ``num_calls``, ``(n + 1,)``; of equal ones the earliest."""
        calls = _count("num_calls", num_calls, len(self.cost) - 1, "calls in the table")
        policy, t = [len(self.loss_t)], len(self.loss_t)
        for n in range(calls - 1, -1, -1):
            candidates = self.cost[n, :t] + _cost_of_reaching(self.loss_t, t)
            t = int(np.argmin(candidates))
            policy.append(t)
        return np.asarray(policy[::-1], np.int32)


def _cost_of_reaching(loss: NDArray[np.float64], t: int) -> NDArray[np.float64]:
    """``(t,)``: (t - s) L_s, one call from s to t."""
    return (t - np.arange(t)) * loss[:t]


def policy_table(loss_t: ArrayLike, max_calls: int | None = None) -> PolicyTable:
    """The dynamic program, for all budgets up to max_calls at once.

        C[0, 0] = 0,  C[0, t > 0] = inf,  C[n, t] = min_{s < t} C[n-1, s] + (t - s) L_s

    The profile is taken as it is: sort a measured one first (`monotone_profile`).

    Args:
      loss_t: ``(D,)`` L_t.
      max_calls: N; D by default.

    Returns:
      The table; time O(N D^2), memory O(N D).
    """
    loss = _profile(loss_t)
    variables = len(loss)
    calls = variables if max_calls is None else max_calls
    calls = _count("max_calls", calls, variables, "variables")
    # Column t holds all budgets: C[:, s] is contiguous in s for the sums below.
    cost = np.full((calls + 1, variables + 1), np.inf)
    cost[0, 0] = 0
    candidates = np.empty((_BLOCK, variables))
    for t in range(1, variables + 1):
        step = _cost_of_reaching(loss, t)
        most = min(calls, t)
        for low in range(0, most, _BLOCK):
            high = min(low + _BLOCK, most)
            # With n - 1 = low.. calls at least ``low`` variables are known.
            view = candidates[: high - low, low:t]
            np.add(cost[low:high, low:t], step[None, low:], out=view)
            np.min(view, axis=1, out=cost[low + 1 : high + 1, t])
    return PolicyTable(loss, cost)


def optimal_policies(loss_t: ArrayLike, num_calls: int, num_stages: int = 1) -> NDArray[np.int32]:
    """The best policy of each stage from a measured profile, which is sorted first.

    Args:
      loss_t: ``(S D,)``, as `LossProfile.loss_per_step` returns it.
      num_calls: n, of every stage.
      num_stages: S.

    Returns:
      ``(S, n + 1)`` int32.
    """
    stages = monotone_profile(loss_t, num_stages).reshape(num_stages, -1)
    return np.stack([policy_table(loss, num_calls).policy(num_calls) for loss in stages])


def stage_policies(
    policy: ArrayLike | jax.Array, stages: int, num_variables: int, start: int | None = 0
) -> jax.Array:
    """One policy for each stage, ``(S, n + 1)`` int32; known ones are checked.

    Args:
      policy: ``(n + 1,)`` for all stages or ``(S, n + 1)``; may be traced.
      stages: S.
      num_variables: D.
      start: the first entry; None where it may be any number of variables given beforehand.
    """
    shape = np.shape(policy)
    if (len(shape) == 2 and shape[0] != stages) or len(shape) not in (1, 2):
        raise ValueError(
            f"policy must have shape (n + 1,), or ({stages}, n + 1) with one for each stage, got "
            f"{shape}; build it with uniform_policy or optimal_policies"
        )
    if is_known(policy):
        rows = np.atleast_2d(np.asarray(policy))
        if start is None:
            start = int(rows[0, 0]) if rows.size and rows.dtype.kind in "iu" else 0
        for row in rows:
            check_policy(row, num_variables, start)
    rows = jnp.atleast_2d(jnp.asarray(policy, jnp.int32))
    return jnp.broadcast_to(rows, (stages, rows.shape[1]))
