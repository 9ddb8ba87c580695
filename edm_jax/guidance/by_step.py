"""The guidance interval by step index, as its published sampler decides it.

The rule of the paper compares sigma (`base.Interval`).  The released program counts
steps, and both evaluations of a Heun step share the decision, so that D is evaluated at
the same sigma with guidance in one step and without in the next: no function of (x, sigma)
can say that, hence a sampler of its own.  For comparison with published numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import check_number, is_known
from edm_jax.guidance import base
from edm_jax.samplers import loop
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
    **options: Unpack[loop.LoopOptions],
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
      **options: of the loop, `loop.LoopOptions`.

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
    if is_known(first) and is_known(last) and first > last:
        raise ValueError(f"first must be at most last, got {first} and {last}: no step is guided")
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    sigmas = jnp.asarray(sigmas, x.dtype)
    # Evaluations: a predictor and a corrector in every step but the last.
    index = np.repeat(np.arange(sigmas.shape[0] - 1), 2)[:-1]
    corrects = np.arange(len(index)) % 2 == 1
    start, end = sigmas[index], sigmas[index + 1]

    def step(state: tuple, i: Array, correct: Array, sigma: Array, sigma_next: Array) -> tuple:
        x, x_start, d_start = state
        inside = (first <= i) & (i <= last)
        scale = jnp.where(inside, jnp.asarray(guidance.scale, x.dtype), 1)
        guided = dataclasses.replace(guidance, scale=scale).guide(denoise)
        level = jnp.where(correct, sigma_next, sigma)
        denoised = loop.evaluate(lambda x, level: guided(x, level, rows), x, level)
        d = (x - denoised) / level
        predicted = denoised + (sigma_next / sigma) * (x - denoised)
        corrected = x_start + (sigma_next - sigma) * (d_start + d) / 2
        return (jnp.where(correct, corrected, predicted), x, d), (x, denoised)

    ends = corrects | (np.arange(len(index)) == len(index) - 1)
    inputs = (index, corrects, start, end)
    return loop.run(step, (x, x, jnp.zeros_like(x)), inputs, ends=ends, **options)
