"""Noise from a path: a key means one noise, at any number of steps and on any grid.

The noise of a reverse SDE is an Ornstein-Uhlenbeck process X in a clock c that grows as the
noise level falls: stationary, of unit variance and correlation e^{-|c - c'|}.  What a step
from c to c' adds is n = X(c') - e^{-(c' - c)} X(c), whatever happens in between, so that
fewer and more steps see the same path and converge to the same image.

The path is never stored.  It is a virtual tree (Li et al. 2020 do so for Brownian motion): the
two ends of the clock and the middles of halved intervals each have a normal of their own,
drawn from the key of the image when a query passes by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import names, seeds
from edm_jax.pytree import short_repr
from edm_jax.samplers import loop
from edm_jax.samplers import rows as rows_lib
from edm_jax.typing import Array, ArrayLike, Key

NOISES = {"step": "step", "tree": "tree"}
# Wide enough for eta = 2.5 from sigma = 600 to 0.0017; a leaf is 8e-6.
CLOCK_MIN, CLOCK_MAX, DEPTH = -16.0, 16.0, 22
LEAF = (CLOCK_MAX - CLOCK_MIN) / 2**DEPTH


@short_repr
class Spans(NamedTuple):
    """Clock at both ends of the stretch of path that each draw belongs to.

    Attributes:
      start, stop: ``(draws,)`` each, stop not before start.
    """

    start: ArrayLike
    stop: ArrayLike


def tree_value(
    normal: Callable[[ArrayLike], Array],
    leaf: ArrayLike,
    *,
    depth: int = DEPTH,
    clock_min: float = CLOCK_MIN,
    clock_max: float = CLOCK_MAX,
) -> Array:
    """X at a leaf of the virtual tree.

        X(right end) = e^-W X(left end) + sqrt(1 - e^{-2 W}) normal(1)
        X(middle) = (X_a + X_b) / (2 cosh(w/2)) + sqrt(tanh(w/2)) normal(1 + k)

    for an interval of width w; k = 1 is the middle of the clock, its children 2k, 2k + 1.

    Args:
      normal: node -> standard normal noise; node 0 is the left end.
      leaf: integer from 0 to 2^depth.
      depth: halvings.
      clock_min, clock_max: ends of the clock, W apart.

    Returns:
      X, of the shape of the normals.
    """
    width = clock_max - clock_min
    widths = width / 2.0 ** np.arange(depth)
    means, deviations = 0.5 / np.cosh(widths / 2), np.sqrt(np.tanh(widths / 2))
    left = normal(0)
    right = math.exp(-width) * left + math.sqrt(-math.expm1(-2 * width)) * normal(1)
    tables = tuple(jnp.asarray(table, left.dtype) for table in (means, deviations))

    def halve(level: Array, state: tuple) -> tuple:
        left, right, low, node = state
        mean, deviation = (table[level] for table in tables)
        middle = mean * (left + right) + deviation * normal(1 + node)
        half = jnp.left_shift(1, depth - 1 - level)
        upper = leaf >= low + half
        left, right = jnp.where(upper, middle, left), jnp.where(upper, right, middle)
        return left, right, low + half * upper, 2 * node + upper

    state = (left, right, jnp.int32(0), jnp.int32(1))
    left, right, low, _ = jax.lax.fori_loop(0, depth, halve, state)
    return jnp.where(leaf > low, right, left)  # beyond the last leaf lies the right end


def _leaves(spans: Spans) -> tuple[Array, Array, Array]:
    """Leaves of both ends of every span, and their distance in the clock."""
    xp, (start, stop) = rows_lib.concrete(*spans)
    if xp is np and start.size and (start.min() < CLOCK_MIN or stop.max() > CLOCK_MAX):
        raise ValueError(
            f"the noise path spans clock values from {CLOCK_MIN:g} to {CLOCK_MAX:g}, got "
            f"{start.min():.3g} to {stop.max():.3g}; use less eta, tau or range, or noise='step'"
        )
    low, high = (xp.clip(xp.rint((c - CLOCK_MIN) / LEAF), 0, 2**DEPTH) for c in (start, stop))
    if xp is np and np.any((low == high) & (stop > start)):
        raise ValueError(
            "two noise levels share a leaf of the noise path: steps are below 8e-6 in its clock; "
            "use fewer steps, more eta, or noise='step'"
        )
    return low.astype(np.int32), high.astype(np.int32), (high - low) * LEAF


def path_draw(key: Key, spans: Spans, x: Array) -> loop.NoiseFn:
    """Index of a draw -> its standard normal noise from the path.

        xi = (X(c') - e^{-dc} X(c)) / sqrt(1 - e^{-2 dc})

    exactly standard normal, and independent for spans that do not overlap.  Zero where a
    span is empty, since then nothing is added.

    Args:
      key: ``(B,)`` keys, one per image, or one key.
      spans: of all draws.
      x: the state, for its shape and dtype.
    """
    low, high, distance = (jnp.asarray(table) for table in _leaves(spans))

    def draw(index: Array) -> Array:
        ends = jnp.stack([low[index], high[index]])
        value = lambda leaf: tree_value(  # noqa: E731
            lambda node: seeds.path_noise(key, node, x.shape, x.dtype), leaf
        )
        start, stop = jax.lax.map(value, ends)
        gap = distance[index].astype(x.dtype)
        std = jnp.sqrt(-jnp.expm1(-2 * jnp.where(gap > 0, gap, 1)))
        return jnp.where(gap > 0, (stop - jnp.exp(-gap) * start) / std, 0)

    return draw


def noise_source(
    key: Key | None,
    noise_fn: loop.NoiseFn | None,
    x: Array,
    noise: str,
    spans: Callable[[], Spans],
    *,
    needed: bool = True,
) -> loop.NoiseFn | None:
    """`loop.noise_source` with a choice: a draw for each step, or all of them from one path.

    Args:
      key, noise_fn, x: as there; noise_fn replays either kind.
      noise: "step" or "tree".
      spans: makes the spans of all draws, if they are asked for.
      needed: whether noise is drawn at all; if not there is no source, but a wrong name is
        refused all the same.
    """
    names.lookup(NOISES, noise, "noise")
    if not needed:
        return None
    draw = loop.noise_source(key, noise_fn, x)
    if noise == "step" or noise_fn is not None:
        return draw
    return path_draw(key, spans(), x)


def step_spans(sigmas: ArrayLike, rate: ArrayLike = 1.0) -> Spans:
    """Spans of one draw a step on the clock ``-rate ln sigma``; the step to 0 draws none."""
    xp, (sigmas, rate) = rows_lib.concrete(sigmas, rate)
    clock = -rate * xp.log(sigmas[:-1])
    return Spans(clock, xp.concatenate([clock[1:], clock[-1:]]))


def churn_spans(sigmas: ArrayLike, *, repeats: bool = False) -> Spans:
    """Spans of churn on the clock ``-ln sigma``: what is added at a level belongs to its step.

    Churn raises the noise level again, but the stretch from sigma up to sigma_hat cannot be
    its span: the next steps pass there once more, with noise that must be independent.  The
    step from sigma to sigma' passes the stretch down to sigma' alone; and as many short steps
    as make a long one add the same path, since gamma is proportional to their length.

    Args:
      sigmas: ``(N+1,)`` grid.
      repeats: whether levels may be equal; such steps, which move the state at one level
        only, get two leaves of the path each.
    """
    xp, (sigmas,) = rows_lib.concrete(sigmas)
    clock = -xp.log(sigmas[:-1])
    if repeats:
        clock = clock + 2 * LEAF * np.arange(clock.shape[0])
    # Churn adds noise before the step to 0 too.
    return Spans(clock, xp.concatenate([clock[1:], clock[-1:] + 1]))


def stage_spans(sigmas: ArrayLike, inner: list[ArrayLike], rate: ArrayLike = 1.0) -> Spans:
    """Spans of a draw for each stage, from one stage to the next, on ``-rate ln sigma``.

    Args:
      sigmas: ``(N+1,)`` grid.
      inner: ``(N-1,)`` levels of each stage but the first.
      rate: of the clock.
    """
    xp, (sigmas, rate, *inner) = rows_lib.concrete(sigmas, rate, *inner)
    levels = [sigmas[:-2], *inner, sigmas[1:-1]]
    clocks = [-rate * xp.log(level) for level in levels]
    start, stop = (xp.stack(part, axis=1).reshape(-1) for part in (clocks[:-1], clocks[1:]))
    return Spans(start, stop)
