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

from edm_jax.typing import Array, ArrayLike

Step = Callable[..., tuple[Array, Array]]


class Trajectory(NamedTuple):
    """Everything a sampler visited.

    Attributes:
      x: ``(N+1, ...)`` states x_0 .. x_N; the last one is the sample.
      denoised: ``(N, ...)`` D(x_i; sigma_i), as each step saw it first.
    """

    x: Array
    denoised: Array


def check_sigmas(sigmas: ArrayLike) -> None:
    """Raise ValueError unless sigmas is ``(N+1,)``, strictly decreasing, ending in 0.

    Values are checked where they are known (NumPy arrays, concrete JAX arrays);
    traced ones are only checked for shape.
    """
    if np.ndim(sigmas) != 1 or np.shape(sigmas)[0] < 2:
        raise ValueError(
            f"sigmas must have shape (N+1,) with N >= 1, got {np.shape(sigmas)}; "
            "build it with karras_sigmas"
        )
    if isinstance(sigmas, jax.core.Tracer):
        return
    values = np.asarray(sigmas)
    if not np.all(np.isfinite(values)) or not np.all(np.diff(values) < 0) or values[-1] != 0:
        raise ValueError(
            f"sigmas must be finite, strictly decreasing and end in 0, got {values}; "
            "build it with karras_sigmas"
        )


def state_dtype(x: ArrayLike) -> jnp.dtype:
    """Precision of the sampler state: that of x, at least float32."""
    return jnp.promote_types(jnp.asarray(x).dtype, jnp.float32)


def scan_steps(
    step: Step,
    last_step: Step,
    x: Array,
    inputs: Any,
    last_inputs: Any,
    *,
    trajectory: bool = False,
) -> Array | Trajectory:
    """``step`` over the leading axis of ``inputs``, then ``last_step`` once.

    Args:
      step, last_step: ``(x, *inputs_i) -> (x_next, denoised)``.
      x: initial state.
      inputs: tuple of arrays with leading axis N - 1; may be 0 long.
      last_inputs: tuple of arrays for the last step.
      trajectory: whether to return every state.

    Returns:
      The final state, or a Trajectory.
    """

    def body(x: Array, inputs_i: tuple) -> tuple[Array, Any]:
        x_next, denoised = step(x, *inputs_i)
        return x_next, ((x, denoised) if trajectory else None)

    x, visited = jax.lax.scan(body, x, inputs)
    x_final, denoised = last_step(x, *last_inputs)
    if not trajectory:
        return x_final
    xs, ds = visited
    return Trajectory(
        x=jnp.concatenate([xs, x[None], x_final[None]]),
        denoised=jnp.concatenate([ds, denoised[None]]),
    )
