"""SEEDS-2 and SEEDS-3 (Gonzalez et al. 2023): exponential single-step solvers of the reverse SDE.

With h = ln(sigma/sigma') and g = (1 + eta) h a step solves the linear part exactly and
interpolates D; Q(g) = 1 - e^-g and P(g) = 1 - Q(g)/g = g phi_2(-g).  eta = 0 is the ODE.
"""

from __future__ import annotations

from types import ModuleType
from typing import Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax import names
from edm_jax.arguments import check_number, is_known
from edm_jax.samplers import loop, path
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import Measured, SamplerInfo, three_calls, two_calls
from edm_jax.samplers.rows import Rows, Stage
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key

VARIANTS = {"phi_1": "phi_1", "phi_2": "phi_2"}


def _q(xp: ModuleType, g: ArrayLike) -> ArrayLike:
    return -xp.expm1(-g)


def _p(xp: ModuleType, g: ArrayLike) -> ArrayLike:
    return g * rows_lib.phi(xp, 2, -g)


def _noise(xp: ModuleType, scale: ArrayLike, lengths: list[ArrayLike]) -> list[ArrayLike]:
    """Coefficients on the draws of consecutive parts of a path, at its end.

    n_k = e^{-l_k} n_{k-1} + sqrt(1 - e^{-2 l_k}) xi_k for parts of lengths l_1, l_2, ...
    """
    own = [xp.sqrt(-xp.expm1(-2 * length)) for length in lengths]
    rest = [sum(lengths[k + 1 :], xp.zeros_like(lengths[0])) for k in range(len(lengths))]
    return [scale * xp.exp(-r) * c for r, c in zip(rest, own, strict=True)]


def seeds_2_rows(
    sigmas: ArrayLike,
    *,
    r: ArrayLike = 0.5,
    eta: ArrayLike = 1.0,
    s_noise: ArrayLike = 1.0,
    variant: str = "phi_2",
    noisy: bool = True,
) -> Rows:
    """2N - 1 Rows of SEEDS-2; m = sigma e^{-r h}, n the noise of both parts of the step.

    u = e^{-r g} x + Q(r g) D_0 + m n_1,                   D_1 = D(u; m)
    x' = e^-g x + (Q(g) - b) D_0 + b D_1 + sigma' n
    b = Q(g)/(2r) ("phi_1"), or P(g)/r ("phi_2")
    """
    xp, (sigmas, r, eta, s_noise) = rows_lib.concrete(sigmas, r, eta, s_noise)
    now, after, h = sigmas[:-2], sigmas[1:-1], rows_lib.log_steps(xp, sigmas)
    g, middle = (1 + eta) * h, now * xp.exp(-r * h)
    q, b = _q(xp, g), _p(xp, g) / r if variant == "phi_2" else _q(xp, g) / (2 * r)
    parts = [r * eta * h, (1 - r) * eta * h]
    noise = [_noise(xp, s_noise * middle, parts[:1]), _noise(xp, s_noise * after, parts)]
    stages = [
        Stage(now, xp.exp(-r * g), [_q(xp, r * g)], noise[0] if noisy else ()),
        Stage(middle, xp.exp(-g), [q - b, b], noise[1] if noisy else ()),
    ]
    return rows_lib.staged(xp, stages, sigmas[-2])


def seeds_3_rows(
    sigmas: ArrayLike,
    *,
    eta: ArrayLike = 1.0,
    s_noise: ArrayLike = 1.0,
    noisy: bool = True,
) -> Rows:
    """3N - 2 Rows of SEEDS-3, with r_1 = 1/3, r_2 = 2/3 and m_k = sigma e^{-r_k h}.

    u_1 = e^{-r_1 g} x + Q(r_1 g) D_0 + m_1 n_1,                    D_1 = D(u_1; m_1)
    u_2 = e^{-r_2 g} x + (Q(r_2 g) - a) D_0 + a D_1 + m_2 n_2,      a = (r_2/r_1) P(r_2 g)
    x' = e^-g x + (Q(g) - b) D_0 + b D_2 + sigma' n_3,              b = P(g)/r_2
    """
    xp, (sigmas, eta, s_noise) = rows_lib.concrete(sigmas, eta, s_noise)
    now, after, h = sigmas[:-2], sigmas[1:-1], rows_lib.log_steps(xp, sigmas)
    g, zero = (1 + eta) * h, xp.zeros_like(h)
    first, second = (now * xp.exp(-share * h / 3) for share in (1, 2))
    a, b = 2 * _p(xp, 2 * g / 3), 1.5 * _p(xp, g)
    scales, parts = [s_noise * level for level in (first, second, after)], [eta * h / 3] * 3
    noise = [_noise(xp, scale, parts[: k + 1]) for k, scale in enumerate(scales)]
    noise = noise if noisy else [(), (), ()]
    stages = [
        Stage(now, xp.exp(-g / 3), [_q(xp, g / 3)], noise[0]),
        Stage(first, xp.exp(-2 * g / 3), [_q(xp, 2 * g / 3) - a, a], noise[1]),
        Stage(second, xp.exp(-g), [_q(xp, g) - b, zero, b], noise[2]),
    ]
    return rows_lib.staged(xp, stages, sigmas[-2])


def sample_seeds_2(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    r: ArrayLike = 0.5,
    eta: ArrayLike = 1.0,
    s_noise: ArrayLike = 1.0,
    variant: str = "phi_2",
    noise: str = "step",
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """SEEDS-2: weak order 2 (order 2 at eta = 0), 2N - 1 network calls; see `seeds_2_rows`.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      key: ``(B,)`` keys, one per image, or one key; not needed if eta is the number 0.
      r: place of the second evaluation within a step, in ln sigma; above 0, at most 1.
      eta: noise of the SDE; 0 is the ODE.
      s_noise: scale of the added noise.
      variant: "phi_2", or "phi_1" as ComfyUI has it, with 2.3 times the error.
      noise: "step" draws anew for both parts of every step; "tree" takes all noise from one
        path, the same at any number of steps (`path`).
      noise_fn: index -> standard normal noise, to replay recorded draws, two a step.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    names.lookup(VARIANTS, variant, "variant")
    check_number("r", r, above=0, most=1)
    _check(eta, s_noise)
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))

    def spans() -> path.Spans:
        xp, (levels, share) = rows_lib.concrete(sigmas, r)
        middle = levels[:-2] * xp.exp(-share * rows_lib.log_steps(xp, levels))
        return path.stage_spans(sigmas, [middle], eta)

    noisy = not _silent(eta)
    draw = path.noise_source(key, noise_fn, x, noise, spans, needed=noisy)
    rows = seeds_2_rows(sigmas, r=r, eta=eta, s_noise=s_noise, variant=variant, noisy=noisy)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)


def sample_seeds_3(
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
    """SEEDS-3: weak order 2, order 3 at eta = 0; 3N - 2 network calls; see `seeds_3_rows`.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      key: ``(B,)`` keys, one per image, or one key; not needed if eta is the number 0.
      eta: noise of the SDE; 0 is the ODE.
      s_noise: scale of the added noise.
      noise: "step" draws anew for the three parts of every step; "tree" takes all noise from
        one path, the same at any number of steps (`path`).
      noise_fn: index -> standard normal noise, to replay recorded draws, three a step.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    _check(eta, s_noise)
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))

    def spans() -> path.Spans:
        xp, (levels,) = rows_lib.concrete(sigmas)
        h = rows_lib.log_steps(xp, levels)
        inner = [levels[:-2] * xp.exp(-share * h / 3) for share in (1, 2)]
        return path.stage_spans(sigmas, inner, eta)

    noisy = not _silent(eta)
    draw = path.noise_source(key, noise_fn, x, noise, spans, needed=noisy)
    rows = seeds_3_rows(sigmas, eta=eta, s_noise=s_noise, noisy=noisy)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)


def _check(eta: ArrayLike, s_noise: ArrayLike) -> None:
    check_number("eta", eta, least=0)
    check_number("s_noise", s_noise, least=0)


def _silent(eta: ArrayLike) -> bool:
    """Whether eta is known to be 0, so that no noise is needed."""
    return is_known(eta) and bool(np.all(np.asarray(eta) == 0))


PROMISES = (
    SamplerInfo(
        "seeds_2", sample_seeds_2, order=2, stochastic=True, nfe_fn=two_calls, draws=2,
        measured=(Measured(), Measured("phi_1", {"variant": "phi_1"})),
    ),
    SamplerInfo(
        "seeds_3", sample_seeds_3, order=2, stochastic=True, nfe_fn=three_calls, draws=3,
        measured=(Measured(), Measured("eta 0", {"eta": 0.0}, order=3, stochastic=False)),
    ),
)  # fmt: skip
