"""One scan for every sampler that calls the network once a step.

    x_{i+1} = a_i x_i + sum_j b_ij m_{i-j} + c_i noise_i

m is the denoised image D, or the slope d = (x - D) / sigma.  A method is a table of
such rows, computed from the grid: in float64 NumPy where the grid is known, with
jax.numpy where it is traced, so that a jitted sampler takes any grid without
recompiling.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import is_known
from edm_jax.progress import ReportFn
from edm_jax.samplers import loop
from edm_jax.typing import Array, ArrayLike, DenoiseFn


class Rows(NamedTuple):
    """Coefficients of a method on one grid of N steps.

    Attributes:
      a: ``(N,)`` on the state.
      b: ``(N, K)`` on m_i, m_{i-1}, ...; zero where the history does not reach.
      c: ``(N,)`` on the noise; None for a deterministic method.
    """

    a: ArrayLike
    b: ArrayLike
    c: ArrayLike | None = None


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


def sample_rows(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    rows: Rows,
    *,
    draw: loop.NoiseFn | None = None,
    scales: ArrayLike | None = None,
    slopes: bool = False,
    trajectory: bool = False,
    progress: bool | ReportFn = False,
    remat: bool = False,
) -> Array | loop.Trajectory:
    """Run a table of rows; N network calls, in a program that holds the network once.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape, of the precision to compute in.
      sigmas: ``(N+1,)`` grid; the network sees sigmas[:-1].
      rows: coefficients, N of each.
      draw: step index -> noise; needed if rows.c is given.
      scales: ``(N,)`` signal scaling s of the state; the network sees x / s.
      slopes: whether m is (x - D) / sigma instead of D.
      trajectory, progress, remat: as in `loop.scan_steps`.

    Returns:
      The last state, or a Trajectory.
    """
    cast = lambda value: jnp.asarray(value, x.dtype)  # noqa: E731
    levels = cast(sigmas)[:-1]
    a, b = cast(rows.a), cast(rows.b)
    c = jnp.zeros_like(a) if rows.c is None else cast(rows.c)
    noisy, scaled = rows.c is not None, scales is not None
    scales = cast(scales) if scaled else jnp.ones_like(a)

    def step(state: tuple, i: Array, sigma: Array, a: Array, b: Array, c: Array, s: Array) -> tuple:
        x, history = state
        denoised = loop.evaluate(denoise, x / s if scaled else x, sigma)
        terms = ((x - denoised) / sigma if slopes else denoised, *history)
        x_next = a * x
        for j, term in enumerate(terms):
            x_next = x_next + b[j] * term
        if noisy:
            x_next = x_next + c * draw(i)
        return (x_next, terms[:-1]), ((x, denoised) if trajectory else None)

    history = (jnp.zeros_like(x),) * (b.shape[1] - 1)
    inputs = (jnp.arange(a.shape[0]), levels, a, b, c, scales)
    (x, _), visited = loop.scan(step, (x, history), inputs, progress=progress, remat=remat)
    if not trajectory:
        return x
    xs, denoised = visited
    return loop.Trajectory(jnp.concatenate([xs, x[None]]), denoised)
