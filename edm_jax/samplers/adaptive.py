"""Adaptive sampling with an embedded Runge-Kutta pair, through diffrax (optional).

The "black-box" solver that EDM compares with: dx/dtau = x - D(x; e^tau) in
tau = ln sigma.  Every image chooses its own steps, so a batch gives what its images
give alone; the error norm over a whole batch, as SciPy's RK45 has it, would not.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from edm_jax import names
from edm_jax.samplers import loop
from edm_jax.typing import Array, ArrayLike, DenoiseFn

# Network calls per attempted step; the last stage of each pair is the next one's first.
SOLVERS = {"dopri5": 6, "tsit5": 6, "bosh3": 3, "dopri8": 13}
_CLASSES = {"dopri5": "Dopri5", "tsit5": "Tsit5", "bosh3": "Bosh3", "dopri8": "Dopri8"}
# In ln sigma; small beside any structure, and the controller grows it tenfold a step.
FIRST_STEP = 0.01


class AdaptiveStats(NamedTuple):
    """What each image cost.

    Attributes:
      nfe: ``(B,)`` network calls of every image, the final denoising included.  A
        batch runs until its slowest image is done.
      accepted, rejected: ``(B,)`` steps.
      finished: ``(B,)`` whether sigma_min was reached within max_steps; where it was
        not, the sample is NaN.
    """

    nfe: Array
    accepted: Array
    rejected: Array
    finished: Array


def _diffrax() -> ModuleType:
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(
            "adaptive sampling needs diffrax: pip install 'edm_jax[diffrax]'"
        ) from error
    return diffrax


def _per_image(denoise: DenoiseFn, x: Array) -> DenoiseFn:
    """The denoiser of one image, for use under vmap over the images.

    One that takes any batch is called with batches of one, which JAX maps and
    differentiates.  One that closes over arrays of the batch (labels) must see the
    whole batch at once: it is called with all images, and cannot be differentiated.
    """
    single = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    level = jax.ShapeDtypeStruct((1,), x.dtype)
    try:
        free = jax.eval_shape(denoise, single, level).shape == single.shape
    except (TypeError, ValueError):
        free = False
    if free:
        return lambda x, sigma: denoise(x[None], sigma[None])[0]

    @jax.custom_batching.custom_vmap
    def denoise_one(x: Array, sigma: Array) -> Array:
        return denoise(x[None], sigma[None])[0]

    @denoise_one.def_vmap
    def _(size: int, batched: list[bool], x: Array, sigma: Array) -> tuple[Array, bool]:
        x = x if batched[0] else jnp.broadcast_to(x, (size, *x.shape))
        sigma = sigma if batched[1] else jnp.broadcast_to(sigma, (size,))
        return denoise(x, sigma), True

    return denoise_one


def sample_adaptive(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    *,
    solver: str = "dopri5",
    rtol: ArrayLike = 1e-5,
    atol: ArrayLike = 1e-5,
    max_steps: int = 4096,
    stats: bool = False,
    trajectory: bool = False,
    progress: bool = False,
) -> Array | loop.Trajectory | tuple[Array, AdaptiveStats]:
    """Adaptive Runge-Kutta sampling from sigmas[0] to sigmas[-2], then one denoising.

    Differentiable with bounded memory (diffrax's recursive checkpointing), unless the
    denoiser closes over per-image arrays.

    Args:
      denoise: D(x; sigma), called with sigma of shape ``(B,)``.
      x: ``(B, ...)`` state at noise level sigmas[0].
      sigmas: ``(N+1,)`` grid ending in 0.  The ends of its positive part are the range
        of integration; the levels in between only matter with ``trajectory``.
      solver: "dopri5" (SciPy's RK45), "tsit5", "bosh3" or "dopri8".
      rtol, atol: tolerances of the local error, RMS over one image; 1e-5 as published.
        May be traced.
      max_steps: bound on the steps of an image.
      stats: also return AdaptiveStats.
      trajectory: return the states at sigmas (interpolated) instead of the last, at
        the price of one more network call each.
      progress: a bar on the terminal.

    Returns:
      The sample, of the shape of x, or a Trajectory; with ``stats`` a pair of it and
      AdaptiveStats.
    """
    nfe_per_step = names.lookup(SOLVERS, solver, "adaptive solver")
    diffrax = _diffrax()
    loop.check_sigmas(sigmas)
    if loop.is_known(rtol, atol) and not (rtol > 0 and atol > 0 and max_steps > 0):
        raise ValueError(
            f"rtol, atol and max_steps must be positive, got {rtol}, {atol}, {max_steps}"
        )
    x = jnp.asarray(x, loop.state_dtype(x))
    if x.ndim == 0:
        raise ValueError("x must have a leading batch axis, got a scalar")
    levels = jnp.asarray(sigmas, x.dtype)[:-1]
    taus = jnp.log(levels)
    denoise_one = _per_image(denoise, x)

    def slope(tau: Array, x: Array, _: None) -> Array:
        return x - denoise_one(x, jnp.exp(tau).astype(x.dtype)).astype(x.dtype)

    save = {"ts": taus} if trajectory else {"t1": True}

    def solve(x: Array) -> tuple[Array, dict[str, Array], Array]:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            getattr(diffrax, _CLASSES[solver])(),
            taus[0],
            taus[-1],
            -FIRST_STEP,
            x,
            saveat=diffrax.SaveAt(**save),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=max_steps,
            progress_meter=diffrax.TqdmProgressMeter() if progress else diffrax.NoProgressMeter(),
            throw=False,
        )
        finished = solution.result == diffrax.RESULTS.successful
        return solution.ys, solution.stats, finished

    if levels.shape[0] == 1:
        states, counts, finished = x[:, None], None, jnp.ones(x.shape[0], bool)
    else:
        states, counts, finished = jax.vmap(solve)(x)
    states = jnp.where(finished.reshape((-1,) + (1,) * (states.ndim - 1)), states, jnp.nan)
    states = jnp.moveaxis(states, 1, 0)
    sigma_min = jnp.broadcast_to(levels[-1], x.shape[:1])
    if trajectory:
        denoised = jnp.stack(
            [
                denoise(s, jnp.broadcast_to(l, x.shape[:1]))
                for s, l in zip(states, levels, strict=True)
            ]
        )
        result = loop.Trajectory(jnp.concatenate([states, denoised[-1:]]), denoised)
    else:
        result = denoise(states[-1], sigma_min).astype(x.dtype)
    if not stats:
        return result
    zero = jnp.zeros(x.shape[0], int)
    accepted = zero if counts is None else counts["num_accepted_steps"]
    rejected = zero if counts is None else counts["num_rejected_steps"]
    # The slope at the start, the stages of every attempt, the final denoising.
    nfe = nfe_per_step * (accepted + rejected) + (counts is not None) + 1
    return result, AdaptiveStats(nfe, accepted, rejected, finished)
