"""Adaptive sampling with an embedded Runge-Kutta pair, through diffrax (optional).

The "black-box" solver that EDM compares with: dx/dtau = x - D(x; e^tau) in
tau = ln sigma.  Every image chooses its own steps, so a batch gives what its images
give alone; the error norm over a whole batch, as SciPy's RK45 has it, would not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from edm_jax import names
from edm_jax.arguments import check_number
from edm_jax.progress import ReportFn, report, reporter
from edm_jax.pytree import short_repr
from edm_jax.samplers import loop
from edm_jax.samplers.info import SamplerInfo
from edm_jax.typing import Array, ArrayLike, DenoiseFn, PyTree

# Network calls per attempted step; the last stage of each pair is the next one's first.
SOLVERS = {"dopri5": 6, "tsit5": 6, "bosh3": 3, "dopri8": 13}
_CLASSES = {"dopri5": "Dopri5", "tsit5": "Tsit5", "bosh3": "Bosh3", "dopri8": "Dopri8"}
# In ln sigma; small beside any structure, and the controller grows it tenfold a step.
FIRST_STEP = 0.01
PERCENT = 100  # progress is told in percent of the way, as the number of steps is open


@short_repr
class AdaptiveStats(NamedTuple):
    """What each image cost.

    Attributes:
      nfe: ``(B,)`` network calls of every image, the final denoising and those of a
        trajectory included.  A batch runs until its slowest image is done.
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


@functools.cache
def _meter_class() -> type:
    """diffrax's hook for `progress.report`, made once: a new class would recompile."""
    diffrax = _diffrax()
    import equinox as eqx  # diffrax depends on it
    import equinox.internal as eqxi

    class Meter(diffrax.AbstractProgressMeter):
        report_fn: ReportFn = eqx.field(static=True)

        def init(self) -> Array:
            return jnp.zeros((), int)

        def step(self, state: Array, progress: Array) -> Array:
            slowest = -eqxi.unvmap_max(-progress)
            report(self.report_fn, jnp.floor(PERCENT * slowest).astype(int), PERCENT)
            return state

        def close(self, state: Array) -> None:
            pass

    return Meter


def _per_image(denoise: DenoiseFn, x: Array) -> DenoiseFn:
    """The denoiser of one image, for use under vmap over the images.

    One that takes any batch is called with batches of one, which JAX maps and
    differentiates.  One that closes over arrays of the batch (labels) must see the
    whole batch at once: its vmap rule calls it with all images, and it cannot be
    differentiated.
    """
    single = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    level = jax.ShapeDtypeStruct((1,), x.dtype)
    try:
        free = jax.eval_shape(denoise, single, level).shape == single.shape
    except (TypeError, ValueError):
        free = False
    if free:
        return lambda x, sigma: denoise(x[None], sigma[None])[0]

    import equinox as eqx  # diffrax depends on it

    # What it closes over must be passed: a vmap rule may run inside other traces.
    full = jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(x.shape[:1], x.dtype)
    closed = eqx.filter_closure_convert(denoise, *full)
    arrays, rest = eqx.partition(closed, eqx.is_array)

    @jax.custom_batching.custom_vmap
    def denoise_one(x: Array, sigma: Array, arrays: PyTree) -> Array:
        return x  # stands for the shape: only the rule below ever runs

    @denoise_one.def_vmap
    def _(size: int, batched: list, x: Array, sigma: Array, arrays: PyTree) -> tuple:
        x = x if batched[0] else jnp.broadcast_to(x, (size, *x.shape))
        sigma = sigma if batched[1] else jnp.broadcast_to(sigma, (size,))
        return eqx.combine(arrays, rest)(x, sigma).astype(x.dtype), True

    return lambda x, sigma: denoise_one(x, sigma, arrays)


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
    **options: Unpack[loop.LoopOptions],
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
      **options: of the loop, `loop.LoopOptions`.  A trajectory has the states at sigmas
        (interpolated), at the price of one more network call each; progress is told in
        percent of ln sigma travelled by the slowest image; remat recomputes the network
        within a step too.

    Returns:
      The sample, of the shape of x, or a Trajectory; with ``stats`` a pair of it and
      AdaptiveStats.
    """
    nfe_per_step = names.lookup(SOLVERS, solver, "adaptive solver")
    _diffrax()
    trajectory, progress, remat = loop.resolve(options)
    loop.check_sigmas(sigmas)
    for name, value in (("rtol", rtol), ("atol", atol), ("max_steps", max_steps)):
        check_number(name, value, above=0)
    x = jnp.asarray(x, loop.state_dtype(x))
    if x.ndim == 0:
        raise ValueError("x must have a leading batch axis, got a scalar")
    levels = jnp.asarray(sigmas, x.dtype)[:-1]
    if levels.shape[0] == 1:
        states, counts, finished = x[:, None], None, jnp.ones(x.shape[0], bool)
    else:
        solve = _solver(
            _per_image(denoise, x),
            jnp.log(levels),
            solver=solver,
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
            dense=trajectory,
            report_fn=reporter(progress),
            remat=remat,
        )
        states, counts, finished = jax.vmap(solve)(x)
    states = jnp.where(finished.reshape((-1,) + (1,) * (states.ndim - 1)), states, jnp.nan)
    states = jnp.moveaxis(states, 1, 0)
    sigma_min = jnp.broadcast_to(levels[-1], x.shape[:1])
    if trajectory:
        denoised = jax.lax.map(
            lambda at: loop.evaluate(denoise, at[0], jnp.broadcast_to(at[1], x.shape[:1])),
            (states, levels),
        )
        result = loop.Trajectory(jnp.concatenate([states, denoised[-1:]]), denoised)
    else:
        result = loop.evaluate(denoise, states[-1], sigma_min)
    if not stats:
        return result
    zero = jnp.zeros(x.shape[0], int)
    accepted = zero if counts is None else counts["num_accepted_steps"]
    rejected = zero if counts is None else counts["num_rejected_steps"]
    # The slope at the start, the stages of every attempt, the final denoising or that of
    # every level.
    final = levels.shape[0] if trajectory else 1
    nfe = nfe_per_step * (accepted + rejected) + (counts is not None) + final
    return result, AdaptiveStats(nfe, accepted, rejected, finished)


def _solver(
    denoise_one: DenoiseFn,
    taus: Array,
    *,
    solver: str,
    rtol: ArrayLike,
    atol: ArrayLike,
    max_steps: int,
    dense: bool,
    report_fn: ReportFn | None,
    remat: bool,
) -> Callable[[Array], tuple[Array, dict[str, Array], Array]]:
    """x of one image at taus[0] -> states (at taus if dense), counts, whether it is done."""
    diffrax = _diffrax()

    def slope(tau: Array, x: Array, _: None) -> Array:
        return x - loop.evaluate(denoise_one, x, jnp.exp(tau).astype(x.dtype))

    slope = jax.checkpoint(slope) if remat else slope
    meter = diffrax.NoProgressMeter() if report_fn is None else _meter_class()(report_fn)
    report(report_fn, 0, PERCENT)
    save = {"ts": taus} if dense else {"t1": True}

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
            progress_meter=meter,
            throw=False,
        )
        finished = solution.result == diffrax.RESULTS.successful
        return solution.ys, solution.stats, finished

    return solve


# Its tolerances decide what it costs and how far it is off.
PROMISES = (SamplerInfo("adaptive", sample_adaptive, order=0, nfe_fn=None),)
