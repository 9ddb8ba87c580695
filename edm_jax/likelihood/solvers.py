"""Fixed-step integration of the probability flow, one network call at a time.

    dx/dtau = x - D(x; sigma),   tau = ln sigma        (EDM Eq. 1 with sigma(t) = t)

and, along the way, of tr dD/dx.  Every method is a list of evaluations: where, and with which
weights the slopes seen so far move the state.  One scan runs over them, so that the program
holds the network once whatever the method is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import names
from edm_jax.likelihood.divergence import TraceFn
from edm_jax.progress import ReportFn, scan
from edm_jax.pytree import short_repr
from edm_jax.samplers import loop
from edm_jax.typing import Array, ArrayLike, DenoiseFn, PyTree

SLOTS = 5  # slopes that a method may remember


@short_repr
class Evaluations(NamedTuple):
    """What to do at each of M network calls.

    Attributes:
      sigma: ``(M,)`` where the slope is taken.
      slot: ``(M,)`` where it is remembered, in place of what was there.
      weights: ``(M, SLOTS)`` of the slopes remembered then: the next state is the state at the
        last level reached plus their weighted sum.
      ends: ``(M,)`` whether that is the state at the next level.
      starts: ``(M,)`` whether to begin again from the first state.
    """

    sigma: Array
    slot: Array
    weights: Array
    ends: Array
    starts: Array


def _step_rows(sigmas: Array, places: list[Callable], weights: list[Array]) -> Evaluations:
    """Rows of a one-step method; ``weights[j]`` is ``(N, SLOTS)`` for its j-th evaluation."""
    count, calls = sigmas.shape[0] - 1, len(places)
    sigma = jnp.stack([place(sigmas[:-1], sigmas[1:]) for place in places], 1).reshape(-1)
    index = jnp.arange(count * calls)
    return Evaluations(
        sigma,
        index % calls,
        jnp.stack(weights, 1).reshape(-1, SLOTS),
        index % calls == calls - 1,
        index == 0,
    )


def _log_step(sigmas: Array) -> Array:
    """``(N, 1)`` steps in ln sigma."""
    return jnp.log(sigmas[1:] / sigmas[:-1])[:, None]


def _at_start(low: Array, high: Array) -> Array:
    return low


def _in_the_middle(low: Array, high: Array) -> Array:
    return jnp.sqrt(low * high)


def _at_end(low: Array, high: Array) -> Array:
    return high


def _scaled(step: Array, *weights: float) -> Array:
    """``(N, SLOTS)``: steps ``(N, 1)`` times the weights of the first slots."""
    return step * jnp.array([(*weights, *(0,) * (SLOTS - len(weights)))], step.dtype)


def rk4(sigmas: Array) -> Evaluations:
    """Classical Runge-Kutta in ln sigma: order 4, 4 calls a step, of which 2 between levels."""
    h = _log_step(sigmas)
    weights = [_scaled(h, 1 / 2), _scaled(h, 0, 1 / 2), _scaled(h, 0, 0, 1)]
    weights.append(_scaled(h, 1 / 6, 1 / 3, 1 / 3, 1 / 6))
    return _step_rows(sigmas, [_at_start, _in_the_middle, _in_the_middle, _at_end], weights)


def heun(sigmas: Array) -> Evaluations:
    """Heun's method in ln sigma: order 2, 2 calls a step."""
    h = _log_step(sigmas)
    weights = [_scaled(h, 1), _scaled(h, 1 / 2, 1 / 2)]
    return _step_rows(sigmas, [_at_start, _at_end], weights)


def heun_sigma(sigmas: Array) -> Evaluations:
    """Heun's method in sigma, that of EDM's sampler (Algorithm 1): order 2, 2 calls a step."""
    low, high = sigmas[:-1, None], sigmas[1:, None]
    # dx/dsigma is the slope in ln sigma over sigma.
    at_low, at_high = (high - low) / low, (high - low) / high
    weights = [_scaled(at_low, 1), _scaled(at_low, 1 / 2) + _scaled(at_high, 0, 1 / 2)]
    return _step_rows(sigmas, [_at_start, _at_end], weights)


def _interpolation_weights(nodes: Array, start: Array, end: Array) -> Array:
    """Integral over [start, end] of each Lagrange polynomial of ``(p,)`` nodes, p <= 4.

    By Gauss's rule of two points, which is exact for the degrees up to 3 that occur.
    """
    half, middle = (end - start) / 2, (end + start) / 2
    points = middle + half * jnp.array([-1, 1], nodes.dtype) / math.sqrt(3)
    gaps = nodes[:, None] - nodes[None]
    same = jnp.eye(nodes.shape[0], dtype=bool)
    # (points, i, j): (t - node_j) / (node_i - node_j), a product over j that leaves out j = i.
    factors = (points[:, None, None] - nodes[None, None]) / jnp.where(same, 1, gaps)[None]
    basis = jnp.prod(jnp.where(same[None], 1, factors), axis=-1)
    return half * jnp.sum(basis, axis=0)


def _adams_start(sigmas: Array, taus: Array) -> Evaluations:
    """The first steps, up to three: all their levels at once, in sweeps.

    Each sweep integrates the interpolation of the newest slopes at these levels and gains one
    order, until that of the interpolation is reached.
    """
    block = min(3, sigmas.shape[0] - 1)
    at, rows = [0] + list(range(1, block + 1)) * block, []
    for k, j in enumerate(at):
        last = k == len(at) - 1
        known = k + 1 if k < block else block + 1  # levels with a slope
        target = j + 1 if j < block else block if last else 1
        weights = _interpolation_weights(taus[:known], taus[0], taus[target])
        rows.append(jnp.pad(weights, (0, SLOTS - known)))
    at, index = jnp.array(at), jnp.arange(len(at))
    return Evaluations(sigmas[at], at, jnp.stack(rows), index == len(at) - 1, index == 0)


def adams(sigmas: Array) -> Evaluations:
    """Adams-Bashforth-Moulton (predict, evaluate, correct, evaluate) in ln sigma.

    Order 4, 2 calls a step and 4 more to start, all of them at the given levels, which may be
    spaced in any way: the method for networks that know a table of noise levels only.
    """
    taus, count = jnp.log(sigmas), sigmas.shape[0] - 1
    start = _adams_start(sigmas, taus)
    if count <= 3:
        return start
    steps = np.arange(3, count)
    past = steps[:, None] - np.arange(4)[None]  # levels behind each step, newest first
    each = jax.vmap(_interpolation_weights)
    predict = each(taus[past], taus[steps], taus[steps + 1])
    correct = each(taus[past + 1], taus[steps], taus[steps + 1])

    def in_slots(weights: Array, slots: np.ndarray) -> Array:
        row = np.arange(len(steps))[:, None]
        return jnp.zeros((len(steps), SLOTS), weights.dtype).at[row, slots].set(weights)

    ahead = np.concatenate([np.full((len(steps), 1), 4), past[:, :3] % 4], axis=1)
    rows = _step_rows(
        sigmas[3:], [_at_start, _at_end], [in_slots(predict, past % 4), in_slots(correct, ahead)]
    )
    slot = jnp.stack([steps % 4, np.full(len(steps), 4)], 1).reshape(-1)
    rows = rows._replace(slot=slot, starts=jnp.zeros_like(rows.starts))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), start, rows)


@short_repr
class SolverInfo(NamedTuple):
    """A method.

    Attributes:
      rows: levels -> Evaluations.
      order: of convergence.
      at_levels: whether it calls the network at the given levels only.
      calls: N -> network calls.
    """

    rows: Callable[[Array], Evaluations]
    order: int
    at_levels: bool
    calls: Callable[[int], int]


def _adams_calls(num_steps: int) -> int:
    return num_steps**2 + 1 if num_steps < 3 else 2 * num_steps + 4


SOLVERS = {
    "rk4": SolverInfo(rk4, 4, False, lambda num_steps: 4 * num_steps),
    "adams": SolverInfo(adams, 4, True, _adams_calls),
    "heun": SolverInfo(heun, 2, True, lambda num_steps: 2 * num_steps),
    "heun_sigma": SolverInfo(heun_sigma, 2, True, lambda num_steps: 2 * num_steps),
}


def get(name: str) -> SolverInfo:
    """The method of a name; ValueError with the nearest known name otherwise."""
    return names.lookup(SOLVERS, name, "solver of the flow")


def _moved(base: PyTree, slopes: tuple[PyTree, ...], weights: Array) -> PyTree:
    """base plus the weighted sum of the slopes; no matrix product, whose float32 may be less."""

    def add(state: Array, *slopes: Array) -> Array:
        return state + sum(weights[i].astype(k.dtype) * k for i, k in enumerate(slopes))

    return jax.tree.map(add, base, *slopes)


def _pick(flag: Array, a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), a, b)


def integrate(
    denoise: DenoiseFn,
    x: Array,
    evaluations: Evaluations,
    *,
    trace: TraceFn | None = None,
    observe: Callable[[Array], PyTree] | None = None,
    progress: bool | ReportFn = False,
) -> tuple[Array, Array | None, PyTree]:
    """Run the evaluations of one or several passes along the flow.

    Args:
      denoise: D(x; sigma), called with a scalar sigma.
      x: ``(B, ...)`` state at the first level, its dtype that of the integration.
      evaluations: rows of a method, or several concatenated: each pass begins again from x.
      trace: of the divergence module; None integrates the state alone.
      observe: a summary of the state, to be recorded after every evaluation.
      progress: as in `progress.scan`, in network calls.

    Returns:
      The last state ``(B, ...)``; the integral of the trace over ln sigma after every
      evaluation ``(M, P, B)`` (None without ``trace``); what was observed, each leaf with a
      leading axis M.  Integrals and observations mean something where a step ends.
    """

    def slope(x: Array, sigma: Array) -> tuple[Array, PyTree]:
        if trace is None:
            return x - loop.evaluate(denoise, x, sigma), ()
        denoised, traces = trace(lambda x: loop.evaluate(denoise, x, sigma), x)
        return x - denoised, traces

    shape = () if trace is None else jax.eval_shape(slope, x, evaluations.sigma[0])[1]
    first = (x, jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), shape))
    nothing = (jax.tree.map(jnp.zeros_like, first),) * SLOTS

    def step(carry: tuple, *row: Array) -> tuple[tuple, tuple]:
        now = Evaluations(*row)
        # Slopes of another pass have no weight, but zeros keep an infinity there from spreading.
        stage, base, slopes = _pick(now.starts, (x, first, nothing), carry)
        new = slope(stage, now.sigma)
        slopes = tuple(_pick(now.slot == i, new, old) for i, old in enumerate(slopes))
        moved = _moved(base, slopes, now.weights)
        base = _pick(now.ends, moved, base)
        seen = () if observe is None else observe(moved[0])
        return (moved[0], base, slopes), (moved[1], seen)

    rows = tuple(jnp.asarray(field) for field in evaluations)
    carry, (traces, seen) = scan(step, (x, first, nothing), rows, progress)
    return carry[0], (None if trace is None else traces), seen


def plan(solver: str, *grids: ArrayLike, dtype: jnp.dtype) -> tuple[Evaluations, list[int]]:
    """Evaluations of a solver over one or several grids, and the index of the last of each."""
    info, parts, last = get(solver), [], []
    for grid in grids:
        parts.append(info.rows(jnp.asarray(grid, dtype)))
        last.append(len(parts[-1].sigma) - 1 + (last[-1] + 1 if last else 0))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts), last
