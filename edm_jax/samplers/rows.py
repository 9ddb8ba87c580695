"""Samplers as tables of coefficients, one row for every network evaluation.

    u = a_k x + sum_j b_kj m_{k-j} + sum_j c_kj noise_{k-j}

x is the state at the start of the step and m the denoised image D, or the slope
d = (x - D) / sigma.  The network sees u next; where a row ends a step, u is the next x.
A method is a table of such rows, computed from the grid: in float64 NumPy where the grid is
known, with jax.numpy where it is traced, so that a jitted sampler takes any grid without
recompiling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import is_known
from edm_jax.pytree import short_repr
from edm_jax.samplers import loop
from edm_jax.typing import Array, ArrayLike, DenoiseFn


@short_repr
class Rows(NamedTuple):
    """Coefficients of a method on one grid; M rows for N steps.

    Attributes:
      a: ``(M,)`` on the state at the start of the step.
      b: ``(M, K)`` on m_k, m_{k-1}, ...; zero where the history does not reach.
      c: ``(M,)`` on the noise of the row, or ``(M, J)`` on that of the last J rows; None
        for a deterministic method.
      levels: ``(M,)`` noise levels that the network sees; None for those of the grid.
      ends: ``(M,)`` bool, known: which rows end a step; None for all.
      raises: ``(M,)`` deviation of noise that is added to the state before a step, zero in
        other rows; None for none.
      draws: ``(M,)`` bool, known: which rows draw noise; None for all.
    """

    a: ArrayLike
    b: ArrayLike
    c: ArrayLike | None = None
    levels: ArrayLike | None = None
    ends: np.ndarray | None = None
    raises: ArrayLike | None = None
    draws: np.ndarray | None = None


@short_repr
class CorrectedRows(NamedTuple):
    """A predictor-corrector: step i of N first corrects x_i, then predicts x_{i+1}.

    The corrector uses the network call that the next prediction makes anyway.

    Attributes:
      predict: a ``(N,)`` and b ``(N, K)``, on D_i, D_{i-1}, ...; c ``(N,)`` on the noise of
        the step, or None.
      correct: a ``(N,)`` and b ``(N, K)``, on x_{i-1} and D_{i-1}, D_{i-2}, ...; it adds
        the noise of the prediction that it replaces.
      new: ``(N,)``, of the corrector on D_i.
    """

    predict: Rows
    correct: Rows
    new: ArrayLike


@short_repr
class Stage(NamedTuple):
    """One evaluation in each of the N - 1 steps between positive levels.

    Attributes:
      level: ``(N-1,)`` that the network sees.
      a: ``(N-1,)`` on the state at the start of the step.
      b: ``(N-1,)`` each, on D_0, D_1, ... of the stages so far, in this order.
      c: ``(N-1,)`` each, on the noise of the stages so far, in this order.
    """

    level: ArrayLike
    a: ArrayLike
    b: Sequence[ArrayLike]
    c: Sequence[ArrayLike] = ()


def concrete(*values: ArrayLike) -> tuple[ModuleType, list[Any]]:
    """The array module for the coefficients, and the values as its arrays.

    NumPy with float64 if all values are known, jax.numpy otherwise.
    """
    if is_known(*values):
        return np, [np.asarray(value, np.float64) for value in values]
    return jnp, [jnp.asarray(value) for value in values]


def phi(xp: ModuleType, order: int, z: ArrayLike) -> ArrayLike:
    """phi_k(z) = sum_n z^n / (n + k)!, the functions of exponential integrators.

    phi_1 = (e^z - 1) / z and phi_{k+1} = (phi_k - 1/k!) / z, which cancels for small
    z; the series is summed there.
    """
    small = xp.abs(z) < 1
    near = xp.where(small, z, 0.0)
    series = 0.0 * near
    for n in reversed(range(19)):
        series = series * near + 1.0 / math.factorial(n + order)
    far = xp.where(small, 1.0, z)
    value = xp.expm1(far) / far
    for k in range(1, order):
        value = (value - 1 / math.factorial(k)) / far
    return xp.where(small, series, value)


def log_steps(xp: ModuleType, sigmas: ArrayLike) -> ArrayLike:
    """h_i = ln(sigma_i / sigma_{i+1}) of the N - 1 steps between positive levels."""
    return xp.log(sigmas[:-2] / sigmas[1:-1])


def earlier(xp: ModuleType, steps: ArrayLike, lag: int) -> ArrayLike:
    """h_{i-lag}, with h_0 where there is none (rows do not use those)."""
    return xp.concatenate([steps[:1]] * lag + [steps])[: steps.shape[0]]


def ancestral(
    xp: ModuleType, sigma: ArrayLike, sigma_next: ArrayLike, eta: ArrayLike
) -> tuple[ArrayLike, ArrayLike]:
    """Where an ancestral step goes without noise, and the deviation of what it then adds.

    up = min(sigma', eta sigma' sqrt(sigma^2 - sigma'^2) / sigma)
    down = sqrt(sigma'^2 - up^2)
    """
    gap = (sigma - sigma_next) * (sigma + sigma_next)
    up = xp.minimum(sigma_next, eta * sigma_next * xp.sqrt(gap) / sigma)
    return xp.sqrt((sigma_next - up) * (sigma_next + up)), up


def lagrange(xp: ModuleType, nodes: Sequence[ArrayLike]) -> list[list[ArrayLike]]:
    """Coefficients l_jp of the polynomials L_j(u) = sum_p l_jp u^p with L_j(u_m) = [j = m].

    Args:
      xp: array module.
      nodes: u_0, u_1, ..., arrays of one shape.

    Returns:
      ``[j][p]``, arrays of that shape.
    """
    table = []
    for j, node in enumerate(nodes):
        poly = [xp.ones_like(node)]
        for other in [*nodes[:j], *nodes[j + 1 :]]:
            scale, zero = 1 / (node - other), xp.zeros_like(node)
            raised, kept = [zero, *poly], [*poly, zero]
            poly = [(up - other * low) * scale for up, low in zip(raised, kept, strict=True)]
        table.append(poly)
    return table


def step_orders(num_steps: int, order: int, lower_order_final: bool) -> np.ndarray:
    """Order of each of the N - 1 steps between positive levels: 1, 2, ... as history grows.

    With lower_order_final the last steps come down again: at most the number of steps
    that remain, the step to 0 included.
    """
    index = np.arange(num_steps - 1)
    orders = np.minimum(order, index + 1)
    return np.minimum(orders, num_steps - index) if lower_order_final else orders


def to_zero(xp: ModuleType, a: ArrayLike, b: list[ArrayLike], c: ArrayLike | None = None) -> Rows:
    """Rows for the positive levels, completed by the last step: x_N = D_{N-1}."""
    one, zero = xp.ones(1, a.dtype), xp.zeros(1, a.dtype)
    columns = [xp.concatenate([column, zero if j else one]) for j, column in enumerate(b)]
    noise = None if c is None else xp.concatenate([c, zero])
    return Rows(xp.concatenate([a, zero]), xp.stack(columns, axis=1), noise)


def staged(
    xp: ModuleType,
    stages: Sequence[Stage],
    last_level: ArrayLike,
    last: tuple[ArrayLike, ArrayLike] = (0.0, 1.0),
) -> Rows:
    """Rows of a method of S stages, whose last step has one: ``S (N - 1) + 1`` of them.

    Args:
      xp: array module of the coefficients.
      stages: of the N - 1 steps between positive levels.
      last_level: level of the last step.
      last: its coefficients on the state and on D; by default it returns D.
    """
    zeros = xp.zeros_like(stages[0].a)

    def weave(columns: Sequence[ArrayLike], end: ArrayLike) -> ArrayLike:
        """A column of each stage -> the stages of every step in turn, then the last step."""
        woven = xp.stack(columns, axis=1).reshape(-1)
        return xp.concatenate([woven, xp.reshape(xp.asarray(end, woven.dtype), (1,))])

    def lag(
        per_stage: Sequence[Sequence[ArrayLike | None]], back: int, end: ArrayLike
    ) -> ArrayLike:
        """What every stage j says of stage j - back."""
        columns = []
        for j, row in enumerate(per_stage):
            value = row[j - back] if 0 <= j - back < len(row) else None
            columns.append(zeros if value is None else value)
        return weave(columns, end)

    count = len(stages)
    slopes = [stage.b for stage in stages]
    b = [lag(slopes, back, 0.0 if back else last[1]) for back in range(count)]
    noises = [stage.c for stage in stages]
    uses = [(j, i) for j, row in enumerate(noises) for i, c in enumerate(row) if c is not None]
    drawn = np.isin(np.arange(count), [i for _, i in uses])
    reach = 1 + max((j - i for j, i in uses), default=0)
    steps = stages[0].a.shape[0]
    return Rows(
        a=weave([stage.a for stage in stages], last[0]),
        b=xp.stack(b, axis=1),
        c=xp.stack([lag(noises, back, 0.0) for back in range(reach)], axis=1) if uses else None,
        levels=weave([stage.level for stage in stages], last_level),
        ends=np.append(np.tile(np.arange(count) == count - 1, steps), True),
        draws=np.append(np.tile(drawn, steps), False) if uses else None,
    )


def raised(rows: Rows, std: ArrayLike) -> Rows:
    """The rows, with noise of deviation ``std`` ``(N,)`` added to the state before each step."""
    ends = np.ones(np.shape(rows.a)[0], bool) if rows.ends is None else rows.ends
    starts = loop.starts_of(ends)
    xp = np if is_known(std) else jnp
    raises = xp.where(starts, std[np.cumsum(starts) - 1], 0.0)
    return rows._replace(raises=raises, draws=starts)


def sample_rows(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    rows: Rows,
    *,
    draw: loop.NoiseFn | None = None,
    slopes: bool = False,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """Run a table of rows; M network calls, in a program that holds the network once.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape, of the precision to compute in.
      sigmas: ``(N+1,)`` grid; the network sees sigmas[:-1], unless the rows say otherwise.
      rows: coefficients.
      draw: index -> noise; needed if the rows have noise.  The index counts the rows that
        draw.
      slopes: whether m is (x - D) / sigma instead of D.
      **options: `loop.LoopOptions`.

    Returns:
      The last state, or a Trajectory.
    """
    cast = lambda value: jnp.asarray(value, x.dtype)  # noqa: E731
    a, b = cast(rows.a), cast(rows.b)
    levels = cast(sigmas)[:-1] if rows.levels is None else cast(rows.levels)
    ends = np.ones(a.shape[0], bool) if rows.ends is None else rows.ends
    noisy, raised, held = rows.c is not None, rows.raises is not None, not ends.all()
    c = cast(rows.c) if noisy else jnp.zeros_like(a)
    c = c[:, None] if c.ndim == 1 else c
    raises = cast(rows.raises) if raised else jnp.zeros_like(a)
    draws = np.ones(a.shape[0], bool) if rows.draws is None else rows.draws

    def noise_of(index: Array, drawn: Array) -> Array:
        if draws.all():
            return draw(index)
        return jax.lax.cond(drawn, draw, lambda _: jnp.zeros_like(x), index)

    def step(state: tuple, row: tuple, drawn: tuple, end: Array) -> tuple:
        seen, start, history, noises = state
        sigma, a, b, c, std = row
        before = start if held else seen
        if noisy or raised:
            noise = noise_of(*drawn)
        if raised:
            seen = seen + std * noise
            start = start + std * noise if held else None
        denoised = loop.evaluate(denoise, seen, sigma)
        terms = ((seen - denoised) / sigma if slopes else denoised, *history)
        result = a * (start if held else seen)
        for j, term in enumerate(terms):
            result = result + b[j] * term
        if noisy:
            noises = (noise, *noises)
            for j, term in enumerate(noises):
                result = result + c[j] * term
        # A row within a step only moves what the network sees.
        start = jnp.where(end, result, start) if held else None
        return (result, start, terms[:-1], noises[:-1]), (before, denoised)

    zeros = jnp.zeros_like(x)
    past = (zeros,) * (b.shape[1] - 1), (zeros,) * (c.shape[1] - 1)
    state = (x, x if held else None, *past)
    inputs = (
        (levels, a, b, c, raises),
        (jnp.cumsum(draws) - 1, jnp.asarray(draws)),
        jnp.asarray(ends),
    )
    return loop.run(step, state, inputs, ends=ends, **options)


def sample_corrected(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    table: CorrectedRows,
    *,
    draw: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """Run a predictor-corrector; N network calls.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape, of the precision to compute in.
      sigmas: ``(N+1,)`` grid.
      table: coefficients.
      draw: step index -> noise; needed if the predictor has noise.
      **options: `loop.LoopOptions`.

    Returns:
      The last state, or a Trajectory of corrected states and of denoised images as the
      network saw the predicted ones.
    """
    cast = lambda value: jnp.asarray(value, x.dtype)  # noqa: E731
    noisy = table.predict.c is not None
    predict = cast(table.predict.a), cast(table.predict.b)
    correct = cast(table.correct.a), cast(table.correct.b), cast(table.new)
    c = cast(table.predict.c) if noisy else jnp.zeros_like(predict[0])
    inputs = (np.arange(c.shape[0]), cast(sigmas)[:-1], predict, correct, c)

    def step(state: tuple, i: Array, sigma: Array, predict: tuple, correct: tuple, c: Array):
        predicted, x_before, history, noise = state
        denoised = loop.evaluate(denoise, predicted, sigma)
        a, b, new = correct
        x_now = a * x_before + new * denoised
        for j, term in enumerate(history):
            x_now = x_now + b[j] * term
        x_now = x_now + noise if noisy else x_now
        a, b = predict
        terms = (denoised, *history[:-1])
        x_next = a * x_now
        for j, term in enumerate(terms):
            x_next = x_next + b[j] * term
        noise = c * draw(i) if noisy else None
        x_next = x_next + noise if noisy else x_next
        return (x_next, x_now, terms, noise), (x_now, denoised)

    zeros = jnp.zeros_like(x)
    state = (x, x, (zeros,) * predict[1].shape[1], zeros if noisy else None)
    return loop.run(step, state, inputs, **options)
