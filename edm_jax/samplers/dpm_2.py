"""DPM-2: the midpoint rule in sigma at the geometric mean of the levels, and its ancestral form."""

from __future__ import annotations

from types import ModuleType
from typing import Unpack

import jax.numpy as jnp

from edm_jax.arguments import check_protocol
from edm_jax.samplers import loop, path
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.ancestral import sample_two_stages
from edm_jax.samplers.info import SamplerInfo, two_calls
from edm_jax.samplers.rows import Stage
from edm_jax.samplers.stochastic import Churn, churned
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key


def _stages(xp: ModuleType, sigma: ArrayLike, sigma_next: ArrayLike) -> list[Stage]:
    """With m = sqrt(sigma sigma'):

    u = (m/sigma) x + (1 - m/sigma) D_0,    x' = x + (sigma' - sigma) (u - D(u; m)) / m
    """
    middle = xp.sqrt(sigma * sigma_next)
    part, w = middle / sigma, (sigma - sigma_next) / middle
    return [
        Stage(sigma, part, [1 - part]),
        Stage(middle, sigma_next / sigma, [-w * (1 - part), w]),
    ]


def sample_dpm_2(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    churn: Churn | None = None,
    noise: str = "step",
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """DPM-2, optionally with the churn of EDM Algorithm 2; order 2, 2N - 1 network calls.

        m = sqrt(sigma sigma'),   u = (m/sigma) x + (1 - m/sigma) D(x; sigma)
        x' = x + (sigma' - sigma) (u - D(u; m)) / m

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      key: ``(B,)`` keys, one per image, or one key; needed with churn only.
      churn: constants of the added noise; None draws none.
      noise: of churn: "step" draws anew at every step; "tree" takes all noise from one path,
        the same at any number of steps (`path`).
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    xp, (levels,) = rows_lib.concrete(sigmas)
    now, after, std = levels[:-1], levels[1:], None
    spans = lambda: path.churn_spans(sigmas)  # noqa: E731
    draw = path.noise_source(key, noise_fn, x, noise, spans, needed=churn is not None)
    if churn is not None:
        check_protocol("churn", churn, ("gamma",), "use Churn(s_churn)")
        xp, now, after, std = churned(sigmas, churn)
    rows = rows_lib.staged(xp, _stages(xp, now[:-1], after[:-1]), now[-1])
    rows = rows if std is None else rows_lib.raised(rows, std)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)


def sample_dpm_2_ancestral(
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
    """DPM-2 with ancestral noise; weak order 2, 2N - 1 network calls.

    Each step goes to the level that `rows.ancestral` names and adds noise up to sigma'.
    With few steps its errors are large (23 % of the deviation at 20 calls): prefer
    sample_dpmpp_2s_ancestral.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      key: ``(B,)`` keys, one per image, or one key.
      eta: noise, from 0 (sample_dpm_2) to 1.
      s_noise: scale of the added noise.
      noise: "step" draws anew at every step; "tree" takes all noise from one path, the same
        at any number of steps (`path`).
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    given = {"eta": eta, "s_noise": s_noise, "noise": noise, "noise_fn": noise_fn}
    return sample_two_stages(_stages, denoise, x, sigmas, key, **given, **options)


PROMISES = (
    SamplerInfo("dpm_2", sample_dpm_2, order=2, nfe_fn=two_calls),
    SamplerInfo(
        "dpm_2_ancestral", sample_dpm_2_ancestral, order=2, stochastic=True, nfe_fn=two_calls
    ),
)
