"""Fixed-step integration of the probability flow, one network call at a time.

    dx/dtau = x - D(x; sigma),   tau = ln sigma        (EDM Eq. 1 with sigma(t) = t)

and, along the way, of tr dD/dx.  Every method is a list of evaluations: where, and with which
weights the slopes seen so far move the state.  One scan runs over them, so that the program
holds the network once whatever the method is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from edm_jax import names
from edm_jax.likelihood.divergence import TraceFn
from edm_jax.progress import ReportFn
from edm_jax.samplers import loop
from edm_jax.typing import Array, ArrayLike, DenoiseFn, PyTree

WINDOW = 4  # slopes that a method remembers, the newest included


class Evaluations(NamedTuple):
    """What to do at each of M network calls.

    Attributes:
      sigma: ``(M,)`` where the slope is taken.
      weights: ``(M, WINDOW)`` of the newest slope and those before, newest first: the next
        state is the state at the last level reached plus their weighted sum.
      ends: ``(M,)`` whether that is the state at the next level.
      keeps: ``(M,)`` whether the slope is remembered.
      starts: ``(M,)`` whether to begin again from the first state.
    """

    sigma: Array
    weights: Array
    ends: Array
    keeps: Array
    starts: Array


def _step_rows(
    sigmas: Array, places: list[Callable], weights: list[Array], keeps: list[bool]
) -> Evaluations:
    """Rows of a one-step method; ``weights[j]`` is ``(N, WINDOW)`` for its j-th evaluation."""
    count, low, high = sigmas.shape[0] - 1, sigmas[:-1], sigmas[1:]
    sigma = jnp.stack([place(low, high) for place in places], 1).reshape(-1)
    ends = [False] * (len(places) - 1) + [True]
    return Evaluations(
        sigma,
        jnp.stack(weights, 1).reshape(-1, WINDOW),
        jnp.tile(jnp.array(ends), count),
        jnp.tile(jnp.array(keeps), count),
        jnp.arange(count * len(places)) == 0,
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


def rk4(sigmas: Array) -> Evaluations:
    """Classical Runge-Kutta in ln sigma: order 4, 4 calls a step, of which 2 between levels."""
    row = lambda *w: _log_step(sigmas) * jnp.array([w], sigmas.dtype)  # noqa: E731
    weights = [row(0.5, 0, 0, 0), row(0.5, 0, 0, 0), row(1, 0, 0, 0)]
    weights.append(row(1 / 6, 1 / 3, 1 / 3, 1 / 6))
    places = [_at_start, _in_the_middle, _in_the_middle, _at_end]
    return _step_rows(sigmas, places, weights, [True] * 4)


def heun(sigmas: Array) -> Evaluations:
    """Heun's method in ln sigma: order 2, 2 calls a step."""
    row = lambda *w: _log_step(sigmas) * jnp.array([w], sigmas.dtype)  # noqa: E731
    weights = [row(1, 0, 0, 0), row(0.5, 0.5, 0, 0)]
    return _step_rows(sigmas, [_at_start, _at_end], weights, [True] * 2)


def heun_sigma(sigmas: Array) -> Evaluations:
    """Heun's method in sigma, that of EDM's sampler (Algorithm 1): order 2, 2 calls a step."""
    low, high = sigmas[:-1], sigmas[1:]
    # dx/dsigma is the slope in ln sigma over sigma.
    at_low, at_high, zero = (high - low) / low, (high - low) / high, jnp.zeros_like(low)
    weights = [jnp.stack([at_low, zero, zero, zero], 1)]
    weights.append(jnp.stack([at_high / 2, at_low / 2, zero, zero], 1))
    return _step_rows(sigmas, [_at_start, _at_end], weights, [True] * 2)


def _interpolation_weights(nodes: Array, start: Array, end: Array) -> Array:
    """Integral over [start, end] of each Lagrange polynomial of ``(p,)`` nodes, p <= 4.

    By Gauss's rule of two points, which is exact for the degrees up to 3 that occur.
    """
    half, middle = (end - start) / 2, (end + start) / 2
    points = middle + half * jnp.array([-1, 1], nodes.dtype) / jnp.sqrt(3.0).astype(nodes.dtype)
    gaps = nodes[:, None] - nodes[None]
    same = jnp.eye(nodes.shape[0], dtype=bool)
    # (points, i, j): (t - node_j) / (node_i - node_j), a product over j that leaves out j = i.
    factors = (points[:, None, None] - nodes[None, None]) / jnp.where(same, 1, gaps)[None]
    basis = jnp.prod(jnp.where(same[None], 1, factors), axis=-1)
    return half * jnp.sum(basis, axis=0)


def adams(sigmas: Array) -> Evaluations:
    """Adams-Bashforth-Moulton (predict, evaluate, correct, evaluate) in ln sigma.

    Order 4, 2 calls a step, all of them at the given levels, which may be spaced in any way:
    the method for networks that know a table of noise levels only.  The first steps, with
    fewer slopes behind them, are of lower order.
    """
    taus, count = jnp.log(sigmas), sigmas.shape[0] - 1

    def row(i: Any, order: int, first: int) -> Array:
        """Weights of the slopes at levels i + first, i + first - 1, ... for the i-th step."""
        nodes = jnp.stack([taus[i + first - j] for j in range(order)])
        weights = _interpolation_weights(nodes, taus[i], taus[i + 1])
        return jnp.pad(weights, (0, WINDOW - order))

    predict = [row(i, i + 1, 0) for i in range(min(3, count))]
    correct = [row(i, min(i + 2, 4), 1) for i in range(min(3, count))]
    predict, correct = jnp.stack(predict), jnp.stack(correct)
    if count > 3:
        later = jnp.arange(3, count)
        predict = jnp.concatenate([predict, jax.vmap(lambda i: row(i, 4, 0))(later)])
        correct = jnp.concatenate([correct, jax.vmap(lambda i: row(i, 4, 1))(later)])
    return _step_rows(sigmas, [_at_start, _at_end], [predict, correct], [True, False])


class SolverInfo(NamedTuple):
    """A method: its rows for given levels, order, calls a step, and whether all are at levels."""

    rows: Callable[[Array], Evaluations]
    order: int
    calls: int
    at_levels: bool


SOLVERS = {
    "rk4": SolverInfo(rk4, 4, 4, False),
    "adams": SolverInfo(adams, 4, 2, True),
    "heun": SolverInfo(heun, 2, 2, True),
    "heun_sigma": SolverInfo(heun_sigma, 2, 2, True),
}


def get(name: str) -> SolverInfo:
    """The method of a name; ValueError with the nearest known name otherwise."""
    return names.lookup(SOLVERS, name, "solver of the flow")


def _moved(base: PyTree, window: list[PyTree], weights: Array) -> PyTree:
    """base plus the weighted sum of the slopes; no matrix product, whose float32 may be less."""

    def add(state: Array, *slopes: Array) -> Array:
        return state + sum(weights[i].astype(k.dtype) * k for i, k in enumerate(slopes))

    return jax.tree.map(add, base, *window)


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
      progress: as in `samplers.loop.scan`, in network calls.

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
    nothing = jax.tree.map(jnp.zeros_like, [first] * (WINDOW - 1))

    def step(carry: tuple, *row: Array) -> tuple[tuple, tuple]:
        now = Evaluations(*row)
        stage, base, past = carry
        # Slopes of another pass have no weight, but zeros keep an infinity there from spreading.
        stage, base, past = _pick(now.starts, (x, first, nothing), (stage, base, past))
        window = [slope(stage, now.sigma), *past]
        moved = _moved(base, window, now.weights)
        base = _pick(now.ends, moved, base)
        past = _pick(now.keeps, window[:-1], past)
        seen = () if observe is None else observe(moved[0])
        return (moved[0], base, past), (moved[1], seen)

    rows = tuple(jnp.asarray(field) for field in evaluations)
    carry, (traces, seen) = loop.scan(step, (x, first, nothing), rows, progress=progress)
    return carry[0], (None if trace is None else traces), seen


def plan(solver: str, *grids: ArrayLike, dtype: jnp.dtype) -> tuple[Evaluations, list[int]]:
    """Evaluations of a solver over one or several grids, and the index of the last of each."""
    info, parts, last = get(solver), [], []
    for grid in grids:
        parts.append(info.rows(jnp.asarray(grid, dtype)))
        last.append(len(parts[-1].sigma) - 1 + (last[-1] + 1 if last else 0))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts), last
