"""The samplers that EDM starts from, each with its published update.

VP: Euler-Maruyama and the reverse-diffusion and ancestral predictors (Song et al.
2021).  VE: the reverse-diffusion predictor (the predictor-corrector has its own
file).  DDPM ancestral sampling (Ho et al. 2020) and DDIM (Song et al. 2020).
All take and return unscaled states x = y + sigma n, whatever variable they run in.
EDM's own re-implementation of them is `sample_general` with the settings of `table1`.
"""

from __future__ import annotations

from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax import names, schedules
from edm_jax.arguments import check_number, is_known
from edm_jax.samplers import loop, path
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import SamplerInfo
from edm_jax.samplers.rows import Rows
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key

VP_METHODS = {
    "euler_maruyama": "euler_maruyama",
    "reverse_diffusion": "reverse_diffusion",
    "ancestral": "ancestral",
}


def vp_rows(
    sigmas: ArrayLike,
    method: str = "euler_maruyama",
    *,
    ode: bool = False,
    beta_d: ArrayLike = schedules.VP_BETA_D,
    beta_min: ArrayLike = schedules.VP_BETA_MIN,
) -> tuple[Rows, ArrayLike]:
    """Rows of the VP predictors, and the scaling s of every state.

    They are published for z = s x, and the last state is z itself.

    With b the noise a step adds, score = (D - x) / (s sigma^2) and f = 1 (1/2 for the ODE):

        euler_maruyama:     z' = (1 + b/2) z + f b score,          b = beta(t) / N
        reverse_diffusion:  z' = (2 - sqrt(1 - b)) z + f b score,  b from 0.1/N to 20/N
        ancestral:          z' = (z + f b score) / sqrt(1 - b),    the same b

    plus sqrt(b) noise except for the ODE and in the last step.  The step is 1/N though
    the grid is spaced (1 - eps_s) / (N - 1), as released.

    Args:
      sigmas: ``(N+1,)`` grid, levels of N evenly spaced times (`grids.vp_sigmas`).
      method: one of VP_METHODS.
      ode: probability flow instead of the SDE.
      beta_d, beta_min: constants of the VP schedule.

    Returns:
      Rows with K = 1 on x = z / s, and s ``(N+1,)``, the last one 1.
    """
    names.lookup(VP_METHODS, method, "VP method")
    num_steps = np.shape(sigmas)[0] - 1
    xp, (sigmas, beta_d, beta_min) = rows_lib.concrete(sigmas, beta_d, beta_min)
    square = xp.square(sigmas[:-1])
    scales = 1 / xp.sqrt(1 + square)
    if method == "euler_maruyama":
        # beta(t) at the time of each level: t solves 2 ln(1 + sigma^2) = beta_d t^2 + ...
        rate = xp.sqrt(beta_min**2 + 2 * beta_d * xp.log1p(square))
        b = rate / num_steps
        keep, gain = 1 + b / 2, b
    else:
        b = xp.linspace((beta_min + beta_d) / num_steps, beta_min / num_steps, num_steps)
        root = xp.sqrt(1 - b)
        ancestral = method == "ancestral"
        keep, gain = (1 / root, b / root) if ancestral else (2 - root, b)
    gain = gain / 2 if ode else gain
    scales = xp.concatenate([scales, xp.ones_like(scales[:1])])
    now, after = scales[:-1], scales[1:]
    a = (keep - gain * (1 + 1 / square)) * now / after
    rows = Rows(a, (gain / (now * square * after))[:, None])
    if ode:
        return rows, scales
    last = np.arange(num_steps) == num_steps - 1
    return rows._replace(c=xp.where(last, 0.0, xp.sqrt(b) / after)), scales


def _check_even_times(sigmas: ArrayLike, beta_d: ArrayLike, beta_min: ArrayLike) -> None:
    if not is_known(sigmas, beta_d, beta_min) or np.shape(sigmas)[0] < 4:
        return
    log_term = 2 * np.log1p(np.square(np.asarray(sigmas, np.float64)[:-1]))
    times = (np.sqrt(beta_min**2 + beta_d * log_term) - beta_min) / beta_d
    steps = np.diff(times)
    # 1e-3: the grid may have gone through float32.
    if np.ptp(steps) > 1e-3 * abs(steps.mean()) or abs(times[0] - 1) > 1e-3:
        raise ValueError(
            "the VP predictors step 1/N over evenly spaced times from 1, got levels at times "
            f"{times[:3]}...; build the grid with vp_sigmas (its default range) or use "
            "sample_general for other grids"
        )


def sample_vp(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    method: str = "euler_maruyama",
    ode: bool = False,
    beta_d: ArrayLike = schedules.VP_BETA_D,
    beta_min: ArrayLike = schedules.VP_BETA_MIN,
    noise: str = "step",
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """The original VP samplers (Song et al. 2021); N network calls.

    Returns the mean of the last step, at t = eps_s - 1/N, as released.

    Args:
      denoise: D(x; sigma).
      x: unscaled state at noise level sigmas[0], any shape.  The released prior
        z ~ N(0, 1) is x = sqrt(1 + sigmas[0]^2) times standard normal noise.
      sigmas: ``(N+1,)`` levels of evenly spaced times (`grids.vp_sigmas`); may be traced.
      key: ``(B,)`` keys, one per image, or one key; not needed for the ODE.
      method: "euler_maruyama", "reverse_diffusion" or "ancestral"; the last two need
        N > 20.
      ode: probability flow instead of the SDE.
      beta_d, beta_min: constants of the VP schedule.
      noise: "step" draws anew at every step; "tree" takes all noise from one path, the same
        at any number of steps (`path`).
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory of states z = s x.
    """
    names.lookup(VP_METHODS, method, "VP method")
    names.lookup(path.NOISES, noise, "noise")
    check_number("beta_d", beta_d, above=0)
    check_number("beta_min", beta_min, least=0)
    if ode and method == "ancestral":
        raise ValueError("the ancestral predictor has no ODE form; use reverse_diffusion")
    known = method != "euler_maruyama" and is_known(beta_d, beta_min)
    min_steps = int(beta_d + beta_min) + 1 if known else 1
    loop.check_sigmas(sigmas, min_steps=min_steps)
    _check_even_times(sigmas, beta_d, beta_min)
    x = jnp.asarray(x, loop.state_dtype(x))
    spans = lambda: path.step_spans(sigmas)  # noqa: E731
    draw = path.noise_source(key, noise_fn, x, noise, spans, needed=not ode)
    rows, scales = vp_rows(sigmas, method, ode=ode, beta_d=beta_d, beta_min=beta_min)
    result = rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)
    return result.scaled(scales) if isinstance(result, loop.Trajectory) else result


def ve_rows(sigmas: ArrayLike, *, ode: bool = False) -> Rows:
    """Rows of the VE reverse-diffusion predictor.

        x' = D + (sigma'^2 / sigma^2) (x - D) + sqrt(sigma^2 - sigma'^2) noise
        ODE: x' = x + (sigma'^2 - sigma^2) / (2 sigma^2) (x - D), no noise

    The ODE form is Euler's method for sigma(t) = sqrt(t).  No noise in the last step.
    """
    xp, (sigmas,) = rows_lib.concrete(sigmas)
    now, after = sigmas[:-1], sigmas[1:]
    ratio = xp.square(after / now)
    if ode:
        return Rows((1 + ratio) / 2, ((1 - ratio) / 2)[:, None])
    noise = xp.sqrt((now - after) * (now + after))
    return Rows(ratio, (1 - ratio)[:, None], xp.where(after > 0, noise, 0.0))


def sample_ve(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    ode: bool = False,
    noise: str = "step",
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """The reverse-diffusion predictor for VE (Song et al. 2021); N network calls.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0 (`grids.ve_sigmas`).
      key: ``(B,)`` keys, one per image, or one key; not needed for the ODE.
      ode: probability flow instead of the SDE; the last step then goes half way.
      noise: "step" draws anew at every step; "tree" takes all noise from one path, the same
        at any number of steps (`path`).
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    names.lookup(path.NOISES, noise, "noise")
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    spans = lambda: path.step_spans(sigmas)  # noqa: E731
    draw = path.noise_source(key, noise_fn, x, noise, spans, needed=not ode)
    rows = ve_rows(sigmas, ode=ode)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)


def ddim_rows(sigmas: ArrayLike, *, eta: ArrayLike = 0.0, s_noise: ArrayLike = 1.0) -> Rows:
    """Rows of DDIM: part of the noise is removed for good, part drawn anew.

        up = min(sigma', eta sigma' sqrt(sigma^2 - sigma'^2) / sigma)
        x' = D + sqrt(sigma'^2 - up^2) / sigma (x - D) + up noise

    eta = 0 is Euler on sigma(t) = t; eta = 1 is DDPM with the small variance.
    """
    xp, (sigmas, eta, s_noise) = rows_lib.concrete(sigmas, eta, s_noise)
    now, after = sigmas[:-2], sigmas[1:-1]
    down, up = rows_lib.ancestral(xp, now, after, eta)
    down = down / now
    return rows_lib.to_zero(xp, down, [1 - down], s_noise * up)


def sample_ddim(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    eta: ArrayLike = 0.0,
    s_noise: ArrayLike = 1.0,
    noise: str = "step",
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """DDIM (Song et al. 2020) with noise eta; N network calls.

    The released programs clip D to [-1, 1] by default: pass `adapters.clipped(denoise)`.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      key: ``(B,)`` keys, one per image, or one key; not needed if eta is the number 0.
      eta: 0 is deterministic, 1 is ancestral sampling; may be traced.
      s_noise: scale of the added noise.
      noise: "step" draws anew at every step; "tree" takes all noise from one path, the same
        at any number of steps (`path`).
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    check_number("eta", eta, least=0)
    check_number("s_noise", s_noise, least=0)
    names.lookup(path.NOISES, noise, "noise")
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    rows = ddim_rows(sigmas, eta=eta, s_noise=s_noise)
    noisy = not is_known(eta) or bool(np.any(np.asarray(eta) != 0))
    spans = lambda: path.step_spans(sigmas, eta**2)  # noqa: E731
    draw = path.noise_source(key, noise_fn, x, noise, spans, needed=noisy)
    rows = rows if noisy else rows._replace(c=None)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)


_NO_BOX = (
    "its steps are those of the VP schedule from sigma = 152, far above all levels of a box; use "
    "ddim, heun or reflected"
)


def _vp(name: str, **promises: Any) -> SamplerInfo:
    return SamplerInfo(f"vp_{name}", sample_vp, order=1, grid="vp", off_box=_NO_BOX, **promises)


def _vp_predictor(method: str, min_steps: int) -> SamplerInfo:
    presets = {"method": method}
    return _vp(method, stochastic=True, bias=0.015, min_steps=min_steps, presets=presets)


PROMISES = (
    SamplerInfo("ddim", sample_ddim, order=1),
    SamplerInfo("ve_reverse_diffusion", sample_ve, order=1, stochastic=True, grid="ve"),
    SamplerInfo("ve_ode", sample_ve, order=1, grid="ve", presets={"ode": True}),
    _vp_predictor("euler_maruyama", 1),
    # The discrete rates of the other two exceed 1 with fewer steps.
    _vp_predictor("reverse_diffusion", 21),
    _vp_predictor("ancestral", 21),
    _vp("ode", presets={"ode": True}),
)
