"""The general sampler: every choice of EDM Table 1, freely mixed.

Solver, time steps, sigma(t), s(t) and stochasticity are separate arguments.  The
earlier methods are single settings of it (`table1`), and with EDM's choices it is
EDM Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import grids, names, schedules
from edm_jax.arguments import check_number, check_protocol, check_range, is_known
from edm_jax.precond import Preconditioning
from edm_jax.pytree import short_repr
from edm_jax.samplers import loop, path
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import SamplerInfo, stages
from edm_jax.samplers.rows import Rows, Stage
from edm_jax.samplers.stochastic import Churn, raise_level
from edm_jax.schedules import LinearSchedule, NoScaling, Scaling, Schedule, VPSchedule
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key

SOLVERS = ("euler", "heun")


@short_repr
class Setting(NamedTuple):
    """The sampling rows of one column of EDM Table 1, as `sample_general` takes them.

    Attributes:
      sigmas: ``(N+1,)`` noise levels of the time steps, last entry 0.
      schedule: sigma(t).
      scaling: s.
    """

    sigmas: np.ndarray
    schedule: Schedule
    scaling: Scaling


def table1(
    num_steps: int,
    *,
    discretization: str = "edm",
    schedule: str = "linear",
    scaling: str = "none",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    eps_s: float = schedules.VP_EPS_S,
    preconditioning: Preconditioning | None = None,
    merge: bool = False,
    **options: float | np.ndarray,
) -> Setting:
    """Time steps, sigma(t) and s(t) of EDM Table 1 by name.

    The noise range (by default that of the discretization, `grids.RANGES`) is first
    clamped to the network's; the VP constants are fitted to the result.

    Args:
      num_steps: N.
      discretization: one of grids.GRIDS.
      schedule: one of schedules.SCHEDULES.
      scaling: one of schedules.SCALINGS.
      sigma_min, sigma_max: wanted noise range.
      eps_s: last time of the VP schedule.
      preconditioning: of the network, whose range and rounding are respected.
      merge: drop levels that the rounding repeats (`grids.round_grid`).
      **options: of the grid (rho, levels).

    Returns:
      A Setting; the baselines are VP = ("vp", "vp", "vp"), VE = ("ve", "ve", "none")
      and DDIM = ("iddpm", "linear", "none"), all with the Euler solver.
    """
    make_schedule = names.lookup(schedules.SCHEDULES, schedule, "schedule")
    make_scaling = names.lookup(schedules.SCALINGS, scaling, "scaling")
    names.lookup(grids.GRIDS, discretization, "grid of time steps")
    low, high = grids.RANGES[discretization]
    if discretization == "vp":
        low = float(VPSchedule().sigma(eps_s)) if eps_s != schedules.VP_EPS_S else low
        options = {**options, "eps_s": eps_s}
    low = low if sigma_min is None else sigma_min
    high = high if sigma_max is None else sigma_max
    check_range(num_steps, low, high)
    low, high = grids.clamp_range(low, high, preconditioning)
    sigmas = grids.make_sigmas(
        discretization,
        num_steps,
        sigma_min=low,
        sigma_max=high,
        preconditioning=preconditioning,
        merge=merge,
        **options,
    )
    fitted = VPSchedule.fit(low, high, eps_s) if schedule == "vp" else make_schedule()
    return Setting(sigmas, fitted, make_scaling())


def ode_slope(
    denoise: DenoiseFn,
    x: Array,
    t: ArrayLike,
    sigma: ArrayLike,
    schedule: Schedule,
    scaling: Scaling,
) -> tuple[Array, Array]:
    """dx/dt of the probability-flow ODE (EDM Eq. 4); 1 network call.

        dx/dt = (s'/s + sigma'/sigma) x - (sigma' s / sigma) D(x / s; sigma)

    Args:
      denoise: D(x; sigma).
      x: scaled state s(t) (y + sigma(t) n), any shape.
      t: time, scalar.
      sigma: sigma(t), scalar; passed besides t so that a grid level stays exact.
      schedule, scaling: sigma(t) and s.

    Returns:
      dx/dt and D(x / s; sigma), both of the shape of x.
    """
    sigma_dot, scale = schedule.sigma_dot(t), scaling.scale(sigma)
    scale_dot = scaling.scale_dot(sigma, sigma_dot)
    denoised = loop.evaluate(denoise, x / scale, sigma)
    slope = (sigma_dot / sigma) * (x - scale * denoised) + (scale_dot / scale) * x
    return slope, denoised


def general_euler_step(
    denoise: DenoiseFn,
    x: Array,
    sigma: ArrayLike,
    t_next: ArrayLike,
    schedule: Schedule,
    scaling: Scaling,
) -> tuple[Array, Array]:
    """One Euler step of the probability-flow ODE in t; 1 network call.

    Args:
      denoise: D(x; sigma).
      x: scaled state at noise level sigma, any shape.
      sigma: scalar, > 0.
      t_next: time to step to, scalar; may be 0.
      schedule, scaling: sigma(t) and s.

    Returns:
      The state at t_next and D at the start, both of the shape of x.
    """
    t = schedule.inverse(sigma)
    slope, denoised = ode_slope(denoise, x, t, sigma, schedule, scaling)
    return (x + (t_next - t) * slope).astype(x.dtype), denoised


def general_step(
    denoise: DenoiseFn,
    x: Array,
    sigma: ArrayLike,
    sigma_next: ArrayLike,
    schedule: Schedule,
    scaling: Scaling,
    alpha: ArrayLike = 1.0,
) -> tuple[Array, Array]:
    """One two-stage Runge-Kutta step in t; 2 network calls.

        h = t' - t,  d = f(x, t),  d' = f(x + alpha h d, t + alpha h)
        result = x + h ((1 - 1/(2 alpha)) d + 1/(2 alpha) d')

    Args:
      denoise: D(x; sigma).
      x: scaled state at noise level sigma, any shape.
      sigma, sigma_next: scalars, > 0.
      schedule, scaling: sigma(t) and s.
      alpha: place of the second stage; 1 is Heun.

    Returns:
      The state at sigma_next and D at the start, both of the shape of x.
    """
    t, t_next = schedule.inverse(sigma), schedule.inverse(sigma_next)
    h = t_next - t
    d, denoised = ode_slope(denoise, x, t, sigma, schedule, scaling)
    # At alpha = 1 the stage is at t_next itself, whose noise level is known exactly.
    t_stage = jnp.where(alpha == 1, t_next, t + alpha * h)
    sigma_stage = jnp.where(alpha == 1, sigma_next, schedule.sigma(t_stage))
    x_stage = x + (alpha * h) * d
    d_prime, _ = ode_slope(denoise, x_stage, t_stage, sigma_stage, schedule, scaling)
    weight = 0.5 / alpha
    return (x + h * ((1 - weight) * d + weight * d_prime)).astype(x.dtype), denoised


def general_rows(
    sigma: Array,
    sigma_next: Array,
    schedule: Schedule,
    scaling: Scaling,
    alpha: ArrayLike | None = 1.0,
) -> Rows:
    """`general_step`, or `general_euler_step`, as coefficients on the unscaled state.

    With z = s x the slope is f = p z - q D, p = sigma'/sigma + s'/s and q = sigma' s / sigma
    (EDM Eq. 4, dots as primes).

    Args:
      sigma: ``(N,)`` level at the start of each step.
      sigma_next: ``(N,)`` level at its end, the last one 0.
      schedule, scaling: sigma(t) and s.
      alpha: place of the second stage; None for Euler's method.

    Returns:
      2N - 1 Rows, or N without a second stage.
    """
    t = schedule.inverse(sigma)
    t_next = jnp.append(schedule.inverse(sigma_next[:-1]), jnp.zeros_like(t[:1]))
    h, scale = t_next - t, scaling.scale(sigma)
    scale_next = jnp.append(scaling.scale(sigma_next[:-1]), jnp.ones_like(scale[:1]))

    def slope(t: Array, sigma: Array) -> tuple[Array, Array]:
        sigma_dot, scale = schedule.sigma_dot(t), scaling.scale(sigma)
        scale_dot = scaling.scale_dot(sigma, sigma_dot)
        return sigma_dot / sigma + scale_dot / scale, sigma_dot / sigma * scale

    p, q = slope(t, sigma)
    keep, pull = (1 + h * p) * scale / scale_next, -h * q / scale_next
    if alpha is None:
        return Rows(keep, pull[:, None], levels=sigma)
    h, p, q, scale, t, scale_next = (v[:-1] for v in (h, p, q, scale, t, scale_next))
    # At alpha = 1 the stage is at t_next itself, whose noise level is known exactly.
    t_stage = jnp.where(alpha == 1, t_next[:-1], t + alpha * h)
    level = jnp.where(alpha == 1, sigma_next[:-1], schedule.sigma(t_stage))
    stage_scale, part = scaling.scale(level), alpha * h
    inner = Stage(sigma[:-1], (1 + part * p) * scale / stage_scale, [-part * q / stage_scale])
    p_prime, q_prime = slope(t_stage, level)
    weight = 0.5 / alpha
    a = 1 + h * ((1 - weight) * p + weight * p_prime * (1 + part * p))
    b_0 = -h * ((1 - weight) * q + weight * p_prime * part * q)
    outer = Stage(
        level, a * scale / scale_next, [b_0 / scale_next, -h * weight * q_prime / scale_next]
    )
    return rows_lib.staged(jnp, [inner, outer], sigma[-1], last=(keep[-1], pull[-1]))


def _check_alpha(
    sigmas: ArrayLike, alpha: ArrayLike, schedule: Schedule, gammas: Array | None
) -> None:
    """Refuse an alpha whose second evaluation has no noise level; known values only."""
    if not is_known(sigmas, alpha, schedule, gammas) or np.all(np.asarray(alpha) <= 1):
        return
    with jax.ensure_compile_time_eval():  # known numbers, even while a caller is traced
        levels = jnp.asarray(sigmas)[:-1]
        raised = levels if gammas is None else levels * (1 + gammas)
        t_hat = schedule.inverse(raised)[:-1]
        stage = np.asarray(t_hat + alpha * (schedule.inverse(levels)[1:] - t_hat))
        undefined = np.isnan(np.asarray(schedule.sigma(stage)))
    if np.any(undefined):
        i = int(np.argmax(undefined))
        raise ValueError(
            f"alpha={alpha} puts the second evaluation of step {i} at time {stage[i]:.3g}, where "
            "sigma(t) is undefined; use a smaller alpha or more steps"
        )


def sample_general(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    solver: str = "heun",
    alpha: ArrayLike = 1.0,
    schedule: Schedule = LinearSchedule(),
    scaling: Scaling = NoScaling(),
    churn: Churn | None = None,
    noise: str = "step",
    noise_fn: loop.NoiseFn | None = None,
    round_sigma: Callable[[Array], Array] | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """Sampling with any solver, time steps, schedule, scaling and churn (EDM Table 1).

    Steps are taken in t, from t_i = sigma^-1(sigma_i) to t_N = 0.  Each may first
    raise the noise level, as EDM Algorithm 2 does.  Two-stage solvers evaluate the
    slope again at t + alpha h and weigh it 1 / (2 alpha): alpha = 1 is Heun, 2/3
    Ralston, 1/2 the midpoint rule.  The step to 0 is Euler.

    Only ``solver`` and whether there is churn change the program; every number may
    be traced, so a sweep over them compiles once and can be vmapped.

    Args:
      denoise: D(x; sigma); sigma arrives as a scalar of the dtype of the state.
      x: unscaled state at noise level sigmas[0], that is sigmas[0] times standard
        normal noise; any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0.
      key: ``(B,)`` keys, one per image, or one key; needed with churn only.
      solver: "euler" (N network calls) or "heun" (2N - 1).
      alpha: place of the second evaluation of "heun"; > 0.  Above 1 it looks past the
        next level: with few steps and sigma(t) = t the last one may be negative.
      schedule: sigma(t).
      scaling: s; the default of 1 leaves the state unscaled.
      churn: constants of the added noise; None draws none.
      noise: "step" draws anew at every step; "tree" takes all noise from one path, the same
        at any number of steps (`path`).
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      round_sigma: rounding of raised levels to those the network knows; with it the
        grid may repeat levels.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x (at t = 0 the scale is 1), or a Trajectory of states
      scaled by s(t_i).

    Raises:
      ValueError: for an unknown solver, a schedule, scaling or churn of the wrong
        kind, a bad grid, churn without key, or an alpha that reaches beyond t = 0.
    """
    names.lookup({name: name for name in SOLVERS}, solver, "solver")
    check_number("alpha", alpha, above=0, cure="1 is Heun, 0.5 the midpoint rule")
    check_protocol(
        "schedule", schedule, ("sigma", "sigma_dot", "inverse"), "use schedules.VPSchedule(), ..."
    )
    check_protocol("scaling", scaling, ("scale", "scale_dot"), "use schedules.VPScaling(), ...")
    if churn is not None:
        check_protocol("churn", churn, ("gamma",), "use Churn(s_churn)")
    names.lookup(path.NOISES, noise, "noise")
    repeats = round_sigma is not None
    loop.check_sigmas(sigmas, repeats=repeats)
    x = jnp.asarray(x, loop.state_dtype(x))
    levels = jnp.asarray(sigmas, x.dtype)
    now, std, draw = levels[:-1], None, None
    if churn is not None:
        gamma = churn.gamma(now, now.shape[0])
        spans = lambda: path.churn_spans(sigmas, repeats=repeats)  # noqa: E731
        draw = path.noise_source(key, noise_fn, x, noise, spans)
        now, std = raise_level(jnp, now, gamma, round_sigma)
    check_number("alpha", alpha, above=0, cure="1 is Heun, 0.5 the midpoint rule")
    if solver == "heun":
        _check_alpha(sigmas, alpha, schedule, None if churn is None else gamma)
    alpha = jnp.asarray(alpha, x.dtype) if solver == "heun" else None
    rows = general_rows(now, levels[1:], schedule, scaling, alpha)
    if std is not None:
        rows = rows_lib.raised(rows, churn.s_noise * std)
    result = rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)
    if isinstance(result, loop.Trajectory):
        return result.scaled(scaling.scale(levels))
    return result


def _calls(num_steps: int, options: Mapping[str, Any]) -> int:
    return stages(1 if options.get("solver") == "euler" else 2)(num_steps, options)


PROMISES = (
    SamplerInfo("general", sample_general, order=2, nfe_fn=_calls),
    SamplerInfo("euler", sample_general, order=1, presets={"solver": "euler"}, nfe_fn=_calls),
    SamplerInfo("midpoint", sample_general, order=2, presets={"alpha": 0.5}, nfe_fn=_calls),
    SamplerInfo("ralston", sample_general, order=2, presets={"alpha": 2 / 3}, nfe_fn=_calls),
)
