"""What every fixed-step sampler shares: a scan over steps, then one last step.

A sampler is a step function; this module turns it into a loop that compiles once
for each (shape, N), whatever the noise levels are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import seeds
from edm_jax.arguments import check_grid, is_known
from edm_jax.progress import ReportFn, report, reporter
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key, PyTree

Step = Callable[..., tuple[Array, Array]]
NoiseFn = Callable[[Array], Array]


class Trajectory(NamedTuple):
    """Everything a sampler visited.

    Attributes:
      x: ``(N+1, ...)`` states x_0 .. x_N; the last one is the sample.
      denoised: ``(N, ...)`` D(x_i; sigma_i), as each step saw it first.
    """

    x: Array
    denoised: Array


def check_sigmas(sigmas: ArrayLike, *, repeats: bool = False, min_steps: int = 1) -> None:
    """Raise ValueError unless sigmas is ``(N+1,)``, strictly decreasing, ending in 0.

    Values are checked where they are known (NumPy arrays, concrete JAX arrays);
    traced ones are only checked for shape.

    Args:
      sigmas: the grid.
      repeats: allow equal neighbours (`grids.round_grid` may make some).
      min_steps: least N that the method needs for its order.
    """
    if np.ndim(sigmas) != 1 or np.shape(sigmas)[0] < 2:
        raise ValueError(
            f"sigmas must have shape (N+1,) with N >= 1, got {np.shape(sigmas)}; "
            "build it with karras_sigmas"
        )
    num_steps = np.shape(sigmas)[0] - 1
    if num_steps < min_steps:
        raise ValueError(
            f"this method needs at least {min_steps} steps for its order, got a grid of "
            f"{num_steps}; use more steps or a lower order"
        )
    if is_known(sigmas):
        check_grid(sigmas, repeats=repeats)


def evaluate(denoise: DenoiseFn, x: Array, sigma: ArrayLike) -> Array:
    """D(x; sigma) in the dtype of x, after checking its shape; 1 network call."""
    denoised = denoise(x, sigma)
    if jnp.shape(denoised) != x.shape:
        raise ValueError(
            f"denoise(x, sigma) must return the shape of x, {x.shape}, got "
            f"{jnp.shape(denoised)}; a network with more channels goes through precondition"
        )
    return denoised.astype(x.dtype)


def state_dtype(x: ArrayLike) -> jnp.dtype:
    """Precision of the sampler state: that of x, at least float32."""
    return jnp.promote_types(jnp.asarray(x).dtype, jnp.float32)


def noise_source(key: Key | None, noise_fn: NoiseFn | None, x: Array) -> NoiseFn:
    """Where a stochastic sampler gets its standard normal noise from.

    Args:
      key: ``(B,)`` keys, one per image, or one key; used unless noise_fn is given.
      noise_fn: index -> recorded noise of the shape of x.
      x: the state.

    Returns:
      index -> noise of the shape and dtype of x.

    Raises:
      ValueError: without key and noise_fn, or if the key is not typed or their number
        is not that of the images.
    """
    if noise_fn is not None:
        return lambda index: jnp.asarray(noise_fn(index), x.dtype)
    if key is None:
        raise ValueError("a stochastic sampler needs a key (or a noise_fn); sample_heun needs none")
    shape, dtype = x.shape, x.dtype
    seeds.check_keys(key, shape)
    return lambda index: seeds.churn_noise(key, index, shape, dtype)


def scan(
    step: Callable[..., tuple[PyTree, PyTree]],
    state: PyTree,
    inputs: tuple[Array, ...],
    *,
    total: int | None = None,
    progress: bool | ReportFn = False,
    remat: bool = False,
) -> tuple[PyTree, PyTree]:
    """``state, out = step(state, *inputs_i)`` over the leading axis of ``inputs``.

    Args:
      step: one step of a sampler.
      state: pytree of arrays of fixed shapes.
      inputs: arrays with leading axis N.
      total: number of steps to show, if more follow the scan.
      progress: False; True for a bar on the terminal (rate and time left); or a
        function ``(done, total)`` called on the host.  Off, it adds nothing to the
        compiled program.
      remat: keep only the state of every step for the backward pass and recompute
        the network (`jax.checkpoint`), so memory for gradients does not grow with
        the activations of N network calls.

    Returns:
      The final state, and ``out`` of every step stacked.
    """
    num_steps = jax.tree.leaves(inputs)[0].shape[0]
    report_fn, total = reporter(progress), total or num_steps
    if remat:
        # The scan already keeps XLA from merging the recomputation with the original.
        step = jax.checkpoint(step, prevent_cse=False)
    report(report_fn, 0, total)
    if report_fn is None:
        return jax.lax.scan(lambda state, xs: step(state, *xs), state, inputs)

    def body(state: PyTree, xs: tuple) -> tuple[PyTree, PyTree]:
        done, inputs_i = xs
        state, out = step(state, *inputs_i)
        report(report_fn, done, total, after=state)
        return state, out

    return jax.lax.scan(body, state, (jnp.arange(1, num_steps + 1), inputs))


def scan_steps(
    step: Step,
    last_step: Step,
    x: Array,
    inputs: Any,
    last_inputs: Any,
    *,
    trajectory: bool = False,
    progress: bool | ReportFn = False,
    remat: bool = False,
) -> Array | Trajectory:
    """``step`` over the leading axis of ``inputs``, then ``last_step`` once.

    Args:
      step, last_step: ``(x, *inputs_i) -> (x_next, denoised)``.
      x: initial state.
      inputs: tuple of arrays with leading axis N - 1; may be 0 long.
      last_inputs: tuple of arrays for the last step.
      trajectory: whether to return every state.
      progress, remat: as in `scan`.

    Returns:
      The final state, or a Trajectory.
    """
    report_fn = reporter(progress)
    total = jax.tree.leaves(inputs)[0].shape[0] + 1

    def body(x: Array, *inputs_i: Array) -> tuple[Array, Any]:
        x_next, denoised = step(x, *inputs_i)
        return x_next, ((x, denoised) if trajectory else None)

    x, visited = scan(body, x, inputs, total=total, progress=report_fn or False, remat=remat)
    if remat:
        last_step = jax.checkpoint(last_step)
    x_final, denoised = last_step(x, *last_inputs)
    report(report_fn, total, total, after=x_final)
    if not trajectory:
        return x_final
    xs, ds = visited
    return Trajectory(
        x=jnp.concatenate([xs, x[None], x_final[None]]),
        denoised=jnp.concatenate([ds, denoised[None]]),
    )
