"""The log density with adaptive steps, through diffrax (optional).

State and trace are integrated together in tau = ln sigma, as published code does with SciPy's
RK45, but every image chooses its own steps: an error norm over the batch would make its number
depend on the others.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from edm_jax import names
from edm_jax.arguments import check_number
from edm_jax.likelihood import flow
from edm_jax.likelihood.divergence import TraceFn, default_trace, hutchinson_trace
from edm_jax.likelihood.levels import SIGMA_MAX, SIGMA_MIN
from edm_jax.samplers import loop
from edm_jax.samplers.adaptive import FIRST_STEP, SOLVERS
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key, PyTree

_NEEDED = "adaptive steps need diffrax: pip install 'edm_jax[diffrax]'"


def _largest_rms(tree: PyTree) -> Array:
    """The largest root mean square among the leaves.

    The trace is one number beside thousands of the image; in a mean over all of them its error
    would not count.
    """
    return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(jnp.square(a))) for a in jax.tree.leaves(tree)]))


def adaptive_log_likelihood(
    denoise: DenoiseFn,
    x: Array,
    *,
    sigma_min: ArrayLike = SIGMA_MIN,
    sigma_max: ArrayLike = SIGMA_MAX,
    key: Key | None = None,
    rows: PyTree | None = None,
    num_probes: int | None = None,
    solver: str = "dopri5",
    tolerance: ArrayLike = 1e-5,
    max_steps: int = 4096,
    prior: flow.Prior = flow.Prior(),
    compare_steps: bool = False,
) -> flow.FlowLikelihood:
    """`flow.flow_log_likelihood` with steps chosen for a tolerance.

    Args:
      denoise: D(x; sigma), or D(x, sigma, rows), of any batch: it is called with batches of one
        image under `jax.vmap`, so labels are passed as ``rows``, not closed over.
      x: ``(B, ...)`` data at noise level s0.
      sigma_min, sigma_max: s0 and S, may be traced.
      key, rows, num_probes, prior: as in `flow_log_likelihood`.
      solver: ``dopri5`` (SciPy's RK45), ``tsit5``, ``bosh3`` or ``dopri8``.
      tolerance: relative and absolute, of one step; 1e-5 as published.  May be traced.
      max_steps: bound on the steps of an image; NaN for one that needs more.
      compare_steps: step_difference becomes that to ten times the tolerance, at its cost.

    Returns:
      FlowLikelihood; calls differ between images.

    Raises:
      ImportError: without diffrax.
      ValueError: as `flow_log_likelihood`; or for a denoiser that does not take one image.
    """
    calls_per_step = names.lookup(SOLVERS, solver, "adaptive solver")
    for name, value in (("tolerance", tolerance), ("max_steps", max_steps)):
        check_number(name, value, above=0)
    flow.check_is_flow(denoise)
    flow.check_batch(x)
    x = jnp.asarray(x, loop.state_dtype(x))
    low, high = jnp.asarray(sigma_min, x.dtype), jnp.asarray(sigma_max, x.dtype)
    _check_takes_one(denoise, x, rows)
    trace = default_trace(x.shape, key, num_probes)
    probes = getattr(trace, "probes", None)  # (P, B, ...), so that each image keeps its own

    def solve(x: Array, probes: Array | None, row: PyTree, tolerance: Array) -> tuple[Array, ...]:
        one = trace if probes is None else hutchinson_trace(probes[:, None])
        more = () if row is None else (jax.tree.map(lambda r: r[None], row),)
        slope = _slope(lambda x, sigma: denoise(x, sigma, *more), one)
        count = 1 if probes is None else probes.shape[0]
        state = (x, jnp.zeros(count, x.dtype))
        return _integrate(slope, state, low, high, solver, tolerance, max_steps)

    solve_all = jax.vmap(solve, (0, None if probes is None else 1, 0, None))
    size, results = math.prod(x.shape[1:]), []
    tolerances = jnp.asarray(tolerance, x.dtype) * jnp.array([10, 1][1 - compare_steps :])
    for each in tolerances:
        end, traces, steps = solve_all(x, probes, rows, each)
        ratio = prior.log_ratio(end, high)
        constant = size * (0.5 * math.log(2 * math.pi) + jnp.log(low))
        results.append(ratio[None] - traces.T - constant)
    return flow.summarise(
        results,
        exact=probes is None,
        log_prior=ratio - size * (0.5 * math.log(2 * math.pi) + jnp.log(high)),
        latent=end / high,
        calls=calls_per_step * steps + 1,
    )


def check_installed() -> None:
    """Raise ValueError unless diffrax is there, before anything is computed or written."""
    if importlib.util.find_spec("diffrax") is None:
        raise ValueError(_NEEDED)


def _check_takes_one(denoise: DenoiseFn, x: Array, rows: PyTree | None) -> None:
    """Raise ValueError unless the denoiser takes a batch of one image."""
    one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    more = () if rows is None else (jax.tree.map(lambda r: jnp.asarray(r)[:1], rows),)
    try:
        fits = jax.eval_shape(denoise, one, jnp.zeros((), x.dtype), *more).shape == one.shape
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            "adaptive steps need a denoiser that takes one image, got one for a batch of "
            f"{x.shape[0]}; pass what belongs to each image (labels) as rows"
        )


def _slope(denoise: DenoiseFn, trace: TraceFn) -> Callable[..., tuple[Array, Array]]:
    """d/dtau of an image and the integral of its traces, as diffrax calls it."""

    def slope(tau: Array, state: tuple[Array, Array], _: Any) -> tuple[Array, Array]:
        x = state[0][None]
        sigma = jnp.exp(tau).astype(x.dtype)
        denoised, traces = trace(lambda x: loop.evaluate(denoise, x, sigma), x)
        return state[0] - denoised[0], traces[:, 0]

    return slope


def _integrate(
    slope: Callable[..., tuple[Array, Array]],
    state: tuple[Array, Array],
    low: Array,
    high: Array,
    solver: str,
    tolerance: Array,
    max_steps: int,
) -> tuple[Array, Array, Array]:
    """x(S), the integrals of the traces ``(P,)``, and the number of steps, of one image."""
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(_NEEDED) from error
    controller = diffrax.PIDController(rtol=tolerance, atol=tolerance, norm=_largest_rms)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(slope),
        getattr(diffrax, solver.capitalize())(),
        jnp.log(low),
        jnp.log(high),
        FIRST_STEP,
        state,
        stepsize_controller=controller,
        max_steps=max_steps,
        throw=False,
    )
    done = solution.result == diffrax.RESULTS.successful
    end, traces = (jnp.where(done, leaf[0], jnp.nan) for leaf in solution.ys)
    return end, traces, solution.stats["num_steps"]
