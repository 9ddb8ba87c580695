"""What every fixed-step sampler shares: one scan over network evaluations.

A step may evaluate the network several times, and the last step of most methods evaluates
it once only.  The loop therefore runs over evaluations, not over steps: its body, and so
the compiled program, holds the network once, whatever the method and the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import seeds
from edm_jax.arguments import check_grid, is_known
from edm_jax.progress import ReportFn, report, reporter
from edm_jax.pytree import short_repr
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key, PyTree

NoiseFn = Callable[[Array], Array]


class LoopOptions(TypedDict, total=False):
    """Options of every sampler, passed on by each to `run`.

    Attributes:
      trajectory: return a Trajectory instead of the last state.
      progress: False; True for a bar on the terminal (rate and time left); or a function
        ``(done, total)`` called on the host after every step.  Off, it adds nothing to the
        compiled program.
      remat: keep only the state of every evaluation for the backward pass and recompute
        the network (`jax.checkpoint`), so memory for gradients does not grow with the
        activations of all network calls.
    """

    trajectory: bool
    progress: bool | ReportFn
    remat: bool


def resolve(options: LoopOptions) -> tuple[bool, bool | ReportFn, bool]:
    """(trajectory, progress, remat), with their defaults; TypeError for any other option."""
    known = tuple(LoopOptions.__annotations__)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f"unexpected option {unknown[0]!r}; every sampler takes {', '.join(known)} beside "
            "its own"
        )
    return tuple(options.get(name, False) for name in known)


@short_repr
class Trajectory(NamedTuple):
    """Everything a sampler visited.

    Attributes:
      x: ``(N+1, ...)`` states x_0 .. x_N; the last one is the sample.
      denoised: ``(N, ...)`` D(x_i; sigma_i), as each step saw it first.
    """

    x: Array
    denoised: Array

    def scaled(self, scales: Array) -> Trajectory:
        """The same with states s_i x_i, scales ``(N+1,)``."""
        shape = (-1,) + (1,) * (self.x.ndim - 1)
        return self._replace(x=self.x * scales.reshape(shape).astype(self.x.dtype))


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
        is not that of the images.  Of noise_fn, when it is called: if what it returns has
        another shape, which could be broadcast to all images alike.
    """
    if noise_fn is not None:
        return lambda index: _replayed(noise_fn, index, x)
    if key is None:
        raise ValueError("a stochastic sampler needs a key (or a noise_fn); sample_heun needs none")
    shape, dtype = x.shape, x.dtype
    seeds.check_keys(key, shape)
    return lambda index: seeds.churn_noise(key, index, shape, dtype)


def _replayed(noise_fn: NoiseFn, index: Array, x: Array) -> Array:
    """Noise of the user's own, after checking its shape."""
    noise = jnp.asarray(noise_fn(index), x.dtype)
    if noise.shape != x.shape:
        raise ValueError(
            f"noise_fn must return noise of the shape of x, {x.shape}, got {noise.shape}; every "
            "image needs its own"
        )
    return noise


def starts_of(ends: np.ndarray) -> np.ndarray:
    """Which evaluations begin a step, from those that end one; both ``(M,)`` bools."""
    return np.append(True, ends[:-1])


def run(
    step: Callable[..., tuple[tuple[Array, ...], tuple[Array, Array]]],
    state: tuple[Any, ...],
    inputs: PyTree,
    *,
    ends: np.ndarray | None = None,
    denoised_last: bool = False,
    **options: Unpack[LoopOptions],
) -> Array | Trajectory:
    """``step`` over M network evaluations: the loop of every fixed-step sampler.

    Args:
      step: ``(state, *inputs_k) -> (state, (x, denoised))`` with one network call; x is the
        state of the sampler before it, denoised what the network said.
      state: arrays of fixed shapes; at the end the first of them is the sample.
      inputs: tuple of arrays with leading axis M.
      ends: ``(M,)`` bool, known: which evaluations complete a step, the last among them.
        None: all of them.
      denoised_last: whether a trajectory shows what the network said last in a step, not
        first.
      **options: LoopOptions.

    Returns:
      The sample, or a Trajectory over the N steps.

    Raises:
      TypeError: for an option that no sampler has.
    """
    trajectory, progress, remat = resolve(options)
    num_calls = jax.tree.leaves(inputs)[0].shape[0]
    ends = np.ones(num_calls, bool) if ends is None else ends
    if remat:
        # The scan already keeps XLA from merging the recomputation with the original.
        step = jax.checkpoint(step, prevent_cse=False)
    report_fn, total = reporter(progress), int(np.sum(ends))
    report(report_fn, 0, total)

    def body(state: tuple, xs: tuple) -> tuple[tuple, Any]:
        (end, done), inputs_k = xs
        state, visited = step(state, *inputs_k)
        if ends.all():
            report(report_fn, done, total, after=state)
        elif report_fn is not None:
            tell = lambda: report(report_fn, done, total, after=state)  # noqa: E731
            jax.lax.cond(end, tell, lambda: None)
        return state, (visited if trajectory else None)

    steps_done = (jnp.asarray(ends), jnp.cumsum(ends))
    state, visited = jax.lax.scan(body, state, (steps_done, inputs))
    if not trajectory:
        return state[0]
    xs, denoised = visited
    if not ends.all():
        starts = starts_of(ends)
        xs, denoised = xs[starts], denoised[ends if denoised_last else starts]
    return Trajectory(jnp.concatenate([xs, state[0][None]]), denoised)
