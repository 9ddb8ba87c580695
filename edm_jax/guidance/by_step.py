"""The guidance interval by step index, as its published sampler decides it.

The rule of the paper compares sigma (`base.Interval`).  The released program counts
steps, and both evaluations of a Heun step share the decision, so that D is evaluated at
the same sigma with guidance in one step and without in the next: no function of (x, sigma)
can say that, hence a sampler of its own.  For comparison with published numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from edm_jax.arguments import check_number
from edm_jax.guidance import base
from edm_jax.samplers import euler_step, heun_step, loop
from edm_jax.typing import Array, ArrayLike


def sample_heun_by_step(
    guidance: Any,
    denoise: base.LabelledDenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    rows: Array | None,
    *,
    first: ArrayLike,
    last: ArrayLike,
    trajectory: bool = False,
) -> Array | loop.Trajectory:
    """Heun's method (EDM Algorithm 1) with guidance in steps first .. last, both included.

    Args:
      guidance: with a ``scale`` whose neutral value is 1 (`ClassifierFree`, `Autoguidance`)
        and without an interval of its own.
      denoise: ``denoise(x, sigma, rows)``.
      x: ``(B, ...)`` state at sigmas[0].
      sigmas: ``(N+1,)`` strictly decreasing, ending in 0.
      rows: ``(B, classes)`` labels.
      first, last: step indices, 0 is the step from sigmas[0]; may be traced.
      trajectory: return every state instead of the last.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    if not hasattr(guidance, "scale") or hasattr(guidance, "classifier"):
        raise ValueError(
            f"guidance by step must be classifier_free or autoguidance, got {guidance!r}"
        )
    if guidance.interval is not None:
        raise ValueError("guidance by step takes first and last instead of an interval")
    check_number("first", first, least=0)
    check_number("last", last, least=0)
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    sigmas = jnp.asarray(sigmas, x.dtype)
    num_steps = sigmas.shape[0] - 1

    def denoiser(i: Array) -> Any:
        inside = (first <= i) & (i <= last)
        scale = jnp.where(inside, jnp.asarray(guidance.scale, x.dtype), 1)
        guided = dataclasses.replace(guidance, scale=scale).guide(denoise)
        return lambda x, sigma: guided(x, sigma, rows)

    def step(x: Array, i: Array, sigma: Array, sigma_next: Array) -> tuple[Array, Array]:
        return heun_step(denoiser(i), x, sigma, sigma_next)

    def last_step(x: Array, i: Array, sigma: Array) -> tuple[Array, Array]:
        return euler_step(denoiser(i), x, sigma, jnp.zeros_like(sigma))

    inputs = (jnp.arange(num_steps - 1), sigmas[:-2], sigmas[1:-1])
    last_inputs = (jnp.asarray(num_steps - 1), sigmas[-2])
    return loop.scan_steps(step, last_step, x, inputs, last_inputs, trajectory=trajectory)
