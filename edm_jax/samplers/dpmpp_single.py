"""DPM-Solver++ (Lu et al. 2022) as single steps: 2S, 2S with ancestral noise, and the SDE form."""

from __future__ import annotations

from types import ModuleType
from typing import Unpack

import jax.numpy as jnp

from edm_jax.arguments import check_number
from edm_jax.samplers import loop, path
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.ancestral import sample_two_stages
from edm_jax.samplers.info import Measured, SamplerInfo, two_calls
from edm_jax.samplers.rows import Rows, Stage
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key


def dpmpp_2s_step(
    denoise: DenoiseFn,
    x: Array,
    sigma: ArrayLike,
    sigma_next: ArrayLike,
    r: ArrayLike = 0.5,
) -> tuple[Array, Array]:
    """One single-step second-order step; 2 network calls.

        u = e^{-r h} x + (1 - e^{-r h}) D(x; sigma),  at sigma e^{-r h}
        result = e^-h x + (1 - e^-h) ((1 - 1/(2 r)) D(x; sigma) + 1/(2 r) D(u))

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigma, any shape.
      sigma, sigma_next: scalars, > 0.
      r: place of the second evaluation within the step, in ln sigma.

    Returns:
      The state at sigma_next and D(x; sigma), both of the shape of x.
    """
    h = jnp.log(sigma / sigma_next)
    denoised = loop.evaluate(denoise, x, sigma)
    u = jnp.exp(-r * h) * x - jnp.expm1(-r * h) * denoised
    middle = loop.evaluate(denoise, u, sigma * jnp.exp(-r * h))
    mixed = denoised + (middle - denoised) / (2 * r)
    x_next = (sigma_next / sigma) * x - jnp.expm1(-h) * mixed
    return x_next.astype(x.dtype), denoised


def dpmpp_2s_rows(sigmas: ArrayLike, r: ArrayLike = 0.5) -> Rows:
    """`dpmpp_2s_step` as coefficients; 2N - 1 Rows for a grid ``(N+1,)``."""
    xp, (sigmas, r) = rows_lib.concrete(sigmas, r)
    return rows_lib.staged(xp, _two_stages(xp, sigmas[:-2], sigmas[1:-1], r), sigmas[-2])


def _two_stages(
    xp: ModuleType, sigma: ArrayLike, sigma_next: ArrayLike, r: ArrayLike = 0.5
) -> list[Stage]:
    h = xp.log(sigma / sigma_next)
    part, q, w = xp.exp(-r * h), -xp.expm1(-h), -xp.expm1(-h) / (2 * r)
    return [
        Stage(sigma, part, [-xp.expm1(-r * h)]),
        Stage(sigma * part, xp.exp(-h), [q - w, w]),
    ]


def sample_dpmpp_2s(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    *,
    r: ArrayLike = 0.5,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """DPM-Solver++(2S): order 2, 2N - 1 network calls.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      r: place of the second evaluation within a step, in ln sigma; above 0, at most 1.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    check_number("r", r, above=0, most=1)
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    rows = dpmpp_2s_rows(sigmas, r)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, **options)


def sample_dpmpp_2s_ancestral(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    eta: ArrayLike = 1.0,
    s_noise: ArrayLike = 1.0,
    noise: str = "step",
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """DPM-Solver++(2S) with ancestral noise: weak order 2, 2N - 1 network calls.

    Each step goes with `dpmpp_2s_step` to the level that `rows.ancestral` names and adds
    noise up to sigma'.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      key: ``(B,)`` keys, one per image, or one key.
      eta: noise, from 0 (sample_dpmpp_2s) to 1.
      s_noise: scale of the added noise.
      noise: "step" draws anew at every step; "tree" takes all noise from one path, the same
        at any number of steps (`path`).
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    given = {"eta": eta, "s_noise": s_noise, "noise": noise, "noise_fn": noise_fn}
    return sample_two_stages(_two_stages, denoise, x, sigmas, key, **given, **options)


def sample_dpmpp_sde(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    eta: ArrayLike = 1.0,
    r: ArrayLike = 0.5,
    s_noise: ArrayLike = 1.0,
    noise: str = "tree",
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """DPM-Solver++ for the reverse SDE, single-step: weak order 2, 2N - 1 network calls.

    With (down, up) of `rows.ancestral`, at m = sigma e^{-r h} and at sigma':

        u = (down_m/sigma) x + (1 - down_m/sigma) D_0 + up_m xi_a,    D_1 = D(u; m)
        x' = (down/sigma) x + (1 - down/sigma) [(1 - 1/(2r)) D_0 + D_1/(2r)] + up xi_b

    xi_a belongs to [sigma, m] and xi_b to all of [sigma, sigma'].  Both come from one path;
    unrelated, as some programs draw them, they leave weak order 1.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      key: ``(B,)`` keys, one per image, or one key.
      eta: noise of the SDE, from 0 to 1.
      r: place of the second evaluation within a step, in ln sigma; above 0, below 1.
      s_noise: scale of the added noise.
      noise: "tree" takes all noise from one path, the same at any number of steps
        (`path`); "step" draws anew for both parts of every step and builds xi_b from them.
      noise_fn: index -> standard normal noise, to replay recorded draws, two a step: xi_a
        and xi_b with "tree", those of the two parts with "step".
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    check_number("eta", eta, least=0, most=1)
    check_number("r", r, above=0, most=1)
    check_number("s_noise", s_noise, least=0)
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    xp, (levels, eta, r, s_noise) = rows_lib.concrete(sigmas, eta, r, s_noise)
    now, after, h = levels[:-2], levels[1:-1], rows_lib.log_steps(xp, levels)
    middle = now * xp.exp(-r * h)

    def spans() -> path.Spans:
        clocks = [-xp.square(eta) * xp.log(level) for level in (now, middle, after)]
        ends = xp.stack(clocks[1:], axis=1).reshape(-1)
        return path.Spans(xp.repeat(clocks[0], 2), ends)

    draw = path.noise_source(key, noise_fn, x, noise, spans)
    down_m, up_m = (part / now for part in rows_lib.ancestral(xp, now, middle, eta))
    down, up = (part / now for part in rows_lib.ancestral(xp, now, after, eta))
    w = (1 - down) / (2 * r)
    scale = s_noise * now
    c = [xp.zeros_like(up), scale * up]
    if noise == "step":
        # xi_b of the path, from the draws of its two parts.
        keep = xp.exp(-2 * xp.square(eta) * (1 - r) * h)
        whole, first = -xp.expm1(-2 * xp.square(eta) * h), -xp.expm1(-2 * xp.square(eta) * r * h)
        safe = xp.where(whole > 0, whole, 1)
        c = [scale * up * xp.sqrt(keep * first / safe), scale * up * xp.sqrt((1 - keep) / safe)]
    inner = Stage(now, down_m, [1 - down_m], [scale * up_m])
    outer = Stage(middle, down, [1 - down - w, w], c)
    rows = rows_lib.staged(xp, [inner, outer], levels[-2])
    return rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)


PROMISES = (
    SamplerInfo("dpmpp_2s", sample_dpmpp_2s, order=2, nfe_fn=two_calls),
    SamplerInfo(
        "dpmpp_2s_ancestral", sample_dpmpp_2s_ancestral, order=2, stochastic=True, nfe_fn=two_calls
    ),
    SamplerInfo(
        "dpmpp_sde",
        sample_dpmpp_sde,
        order=2,
        stochastic=True,
        nfe_fn=two_calls,
        draws=2,
        # Its noise replayed part by part: only those parts are independent.
        measured=(Measured("", {"noise": "step"}),),
    ),
)
