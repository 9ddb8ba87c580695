"""The log density of a model through its probability flow.

Along dx/dtau = x - D(x; sigma), tau = ln sigma, from x(s0) = x0 to x(S) = x1 the log density
changes by the divergence, d - tr J with J = dD/dx and d elements, so that

    ln p(x0; s0) = ln p(x1; S) + int (d - tr J) dtau
                 = -|x1|^2 / (2 S^2) - d (ln(2 pi) / 2 + ln s0) - int tr J dtau

with the prior N(0, S^2) for p(x1; S), from which the sampler starts too.  The second form, in
which the term d ln(S / s0) is exact, is the one computed.  What it gives is the density of data
plus noise of deviation s0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from edm_jax.arguments import is_known
from edm_jax.likelihood import solvers
from edm_jax.likelihood.divergence import TraceFn, default_trace
from edm_jax.likelihood.levels import check_levels, every_second, flow_levels
from edm_jax.progress import ReportFn
from edm_jax.pytree import short_repr
from edm_jax.samplers.loop import state_dtype
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key, PyTree


@short_repr
class FlowLikelihood(NamedTuple):
    """Per image, in nats.

    Attributes:
      log_density: ``(B,)`` ln p(x; s0), averaged over the probes.
      standard_error: ``(B,)`` of that average; 0 for the exact trace, NaN for a single probe.
      step_difference: ``(B,)`` N steps less N/2 steps, the same probes; NaN if not asked for.
      log_prior: ``(B,)`` ln p(x1; S).
      volume: ``(B,)`` the integral of d - tr J: log_density - log_prior.
      latent: ``(B, ...)`` x1 / S, approximately standard normal.
      calls: ``(B,)`` evaluations of denoiser and divergence behind log_density.
    """

    log_density: Array
    standard_error: Array
    step_difference: Array
    log_prior: Array
    volume: Array
    latent: Array
    calls: Array


@short_repr
class Prior(NamedTuple):
    """p(x; S): normal with the data's mean, and variance S^2 plus the data's.

    The defaults, N(0, S^2), are what samplers start from; the error is of order |mean| / S nats
    for an image.  Moments of the data remove it.

    Attributes:
      mean, variance: per element of an image, of the shape of one or scalars.
    """

    mean: ArrayLike = 0.0
    variance: ArrayLike = 0.0

    def log_ratio(self, x: Array, sigma_max: Array) -> Array:
        """ln p(x; S) without -d (ln(2 pi) / 2 + ln S): ``(B, ...)`` -> ``(B,)``."""
        event = x.shape[1:]
        each = (jnp.asarray(value, x.dtype) for value in (self.mean, self.variance))
        mean, ratio = (jnp.broadcast_to(value, event)[None] for value in each)
        ratio = ratio / jnp.square(sigma_max)
        terms = jnp.square((x - mean) / sigma_max) / (1 + ratio) + jnp.log1p(ratio)
        return -0.5 * jnp.sum(terms, axis=tuple(range(1, x.ndim)))


def check_is_flow(denoise: Any) -> None:
    """Raise ValueError for a guided, thresholded or clipped denoiser: no density has its flow.

    Known are those of `edm_jax.guidance` and `adapters.clipped`, and any with an attribute
    ``guidance``; one that is hidden in another function cannot be seen.
    """
    made_by = str(getattr(denoise, "__module__", ""))
    guided = getattr(denoise, "guidance", None) is not None
    guided = guided or made_by.startswith("edm_jax.guidance")
    if guided or getattr(denoise, "clips", False):
        raise ValueError(
            "a guided, thresholded or clipped denoiser is not the flow of a density, so it has no "
            f"likelihood and no codes, got a {'guided' if guided else 'clipped'} one; pass the "
            "denoiser inside it"
        )


def check_batch(x: ArrayLike, name: str = "x") -> None:
    """Raise ValueError unless x has a batch axis, and known values that are finite."""
    if jnp.ndim(x) == 0 or jnp.shape(x)[0] == 0:
        raise ValueError(f"{name} must have a leading batch axis, got shape {jnp.shape(x)}")
    if is_known(x) and not jnp.all(jnp.isfinite(jnp.asarray(x))):
        raise ValueError(f"{name} must be finite, got infinity or NaN")


def with_rows(denoise: DenoiseFn, rows: PyTree | None) -> DenoiseFn:
    """``denoise(x, sigma)`` of a denoiser that takes per-image rows (labels) as well."""
    check_is_flow(denoise)
    return denoise if rows is None else lambda x, sigma: denoise(x, sigma, rows)


def standard_error(values: Array) -> Array:
    """Standard error of the mean over the leading axis; NaN for a single value."""
    count = values.shape[0]
    if count == 1:
        return jnp.full(values.shape[1:], jnp.nan, values.dtype)
    return jnp.std(values, axis=0, ddof=1) / math.sqrt(count)


def flow_log_likelihood(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike | None = None,
    *,
    key: Key | None = None,
    rows: PyTree | None = None,
    num_probes: int | None = None,
    trace: TraceFn | None = None,
    solver: str = "rk4",
    prior: Prior = Prior(),
    half_sigmas: ArrayLike | None = None,
    compare_steps: bool = False,
    progress: bool | ReportFn = False,
) -> FlowLikelihood:
    """ln p(x; s0) of each image by integrating the flow up to S with fixed steps.

    Jittable, differentiable, and independent of the batch: an image's number depends on the
    image, its key and the levels alone.

    Args:
      denoise: D(x; sigma), called with a scalar sigma; with ``rows`` as D(x, sigma, rows).
      x: ``(B, ...)`` data at noise level s0, any shape; 1-D data are ``(B,)`` or ``(B, 1)``.
        Its dtype (at least float32) is that of the integration.
      sigmas: ``(N+1,)`` levels from s0 up to S, as `flow_levels` makes them; by default 32 steps
        from 0.002 to 80.  May be traced.
      key: ``(B,)`` keys, one per image (`seeds.image_keys`), for random probes.
      rows: pytree with leading axes B that the denoiser takes, such as label rows.
      num_probes: random signs per image; 0 for the exact trace, None for the exact trace up to
        256 elements and one probe above.
      trace: what to use instead (`exact_trace`, `hutchinson_trace` with recorded probes).
      solver: of `solvers.SOLVERS`: ``rk4`` (order 4), ``adams`` (order 4 on any levels, for
        networks that know a table only), ``heun``, ``heun_sigma`` (order 2).
      prior: of x at S.
      half_sigmas: levels of the coarser grid; by default every second one.
      compare_steps: also integrate on the coarser grid, at half the cost again, and return the
        difference.
      progress: as in `progress.scan`, in network calls.

    Returns:
      FlowLikelihood.

    Raises:
      ValueError: for a guided denoiser, no batch axis, bad levels, or probes without a key.
    """
    denoise = with_rows(denoise, rows)
    check_batch(x)
    solver_info = solvers.get(solver)
    x = jnp.asarray(x, state_dtype(x))
    if sigmas is None:
        sigmas = flow_levels(32)
    check_levels(sigmas, up=True)
    trace = trace or default_trace(x.shape, key, num_probes)
    grids = [sigmas]
    if compare_steps:
        known = half_sigmas is None and is_known(sigmas)
        coarse = every_second(sigmas) if known else half_sigmas
        # The coarse pass goes first, so that the last state is that of the fine one.
        grids = [sigmas[::2] if coarse is None else coarse, sigmas]
    evaluations, last = solvers.plan(solver, *grids, dtype=x.dtype)
    sigma_min, sigma_max = (jnp.asarray(sigmas[i], x.dtype) for i in (0, -1))
    size = math.prod(x.shape[1:])
    x_end, traces, ratios = solvers.integrate(
        denoise,
        x,
        evaluations,
        trace=trace,
        observe=lambda x: prior.log_ratio(x, sigma_max),
        progress=progress,
    )
    log_densities = [  # (P, B) of each pass
        ratios[i][None] - traces[i] - size * (0.5 * math.log(2 * math.pi) + jnp.log(sigma_min))
        for i in last
    ]
    log_prior = ratios[-1] - size * (0.5 * math.log(2 * math.pi) + jnp.log(sigma_max))
    return summarise(
        log_densities,
        exact=traces.shape[1] == 1 and getattr(trace, "exact", False),
        log_prior=log_prior,
        latent=x_end / sigma_max,
        calls=jnp.full(x.shape[:1], solver_info.calls(len(sigmas) - 1)),
    )


def summarise(
    log_densities: list[Array], *, exact: bool, log_prior: Array, latent: Array, calls: Array
) -> FlowLikelihood:
    """FlowLikelihood from ``(P, B)`` log densities of the passes, coarse to fine."""
    log_density = jnp.mean(log_densities[-1], axis=0)
    unknown = jnp.full_like(log_density, jnp.nan)
    difference = unknown
    if len(log_densities) > 1:
        difference = log_density - jnp.mean(log_densities[0], axis=0)
    error = jnp.zeros_like(log_density) if exact else standard_error(log_densities[-1])
    return FlowLikelihood(
        log_density, error, difference, log_prior, log_density - log_prior, latent, calls
    )
