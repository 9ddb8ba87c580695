"""Samplers of reflected diffusion that treat the faces of the box themselves.

"reflected" is the sampler of the paper, Euler and Maruyama with reflection, and with
correctors its predictor-corrector method; ``kappa`` below 1 is the paper's annealing to
g-bar.  "reflected_project" and "reflected_threshold" are what models on the whole space do
at the edge of the range, for comparison: they converge to the same law, but with order 1/2
where reflection has order 1.

The other samplers of the project, but for those with an ``off_box``, run unchanged on
``box.lift(denoise)`` (`edm_jax.reflected.sampling.run`); that is the way to the ODE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax import names
from edm_jax.arguments import check_count, check_number, is_known
from edm_jax.domains.box import Box
from edm_jax.samplers import loop, path
from edm_jax.samplers import reflected_steps as steps
from edm_jax.samplers.info import SamplerInfo
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key


def published_steps(
    num_steps: int, *, sigma_min: float, sigma_max: float, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray]:
    """Levels and variances of the published program's Euler-Maruyama.

    t_i = linspace(1, eps, N), sigma(t) = sigma_min (sigma_max/sigma_min)^t; every step has
    the length 1/N, not the spacing 1/(N - 1), and variance g(t_i)^2 / N.  The program ends
    at sigma(t_{N-1}), noise included; `sample_reflected` denoises from there.

    Args:
      num_steps: N, at least 2.
      sigma_min, sigma_max: sigma(0) and sigma(1).
      eps: last time.

    Returns:
      ``(N+1,)`` levels ending in 0, and ``(N-1,)`` variances.
    """
    ratio = sigma_max / sigma_min
    sigmas = sigma_min * ratio ** np.linspace(1, eps, num_steps)
    variances = 2 * np.log(ratio) * np.square(sigmas[:-1]) / num_steps
    return np.append(sigmas, 0.0), variances


def sample_reflected(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    box: Box = Box(),
    kappa: ArrayLike = 1.0,
    boundary: str = "reflect",
    snr: ArrayLike = 0.01,
    corrector_steps: int = 0,
    max_correction: ArrayLike = 1.0,
    variances: Array | None = None,
    noise: str = "step",
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """Reverse reflected diffusion; N (1 + corrector_steps) network calls.

    At every level reflected Langevin correctors, then `reflected_steps.reflected_step`; the
    last one, to 0, is that of the SDE without its noise, fold(D).  No state but those of
    "threshold" ever leaves the box.

    Args:
      denoise: D(x; sigma) of a reflected process, or its lift.
      x: ``(B, ...)`` start in the box, ``box.prior(latents)``.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      key: ``(B,)`` keys, one per image, or one key.
      box: the domain.
      kappa: noise relative to the reverse SDE; 1 is the SDE, 0 Euler's method for the ODE.
      boundary: "reflect", "project" or "threshold".
      snr: signal-to-noise ratio of the corrector (published: 0.01).
      corrector_steps: Langevin steps per level, at least 0 (published: none).
      max_correction: see `reflected_steps.reflected_langevin_step`.
      variances: ``(N-1,)`` variances of all steps but the last, in place of the decrease of
        sigma^2; for the published program those of `published_steps`.
      noise: "step" draws anew at every step; "tree" takes all noise from one path, the same
        at any number of steps (`path`), which Langevin steps cannot.
      noise_fn: index -> standard normal noise, to replay recorded draws; level i uses
        indices from i (corrector_steps + 1), the step's last.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x and in the box, or a Trajectory whose denoised images
      are those of the steps.

    Raises:
      ValueError: for an unknown boundary, a start outside the box, or bad numbers.
    """
    place = names.lookup(steps.BOUNDARIES, boundary, "boundary")
    _check_options(sigmas, kappa, snr, max_correction, corrector_steps, variances)
    if noise == "tree" and corrector_steps:
        raise ValueError(
            f"noise='tree' needs corrector_steps=0, got {corrector_steps}: Langevin steps do not "
            "shrink, so that more levels draw more noise and have no common limit"
        )
    box.check(x, "the start of reflected sampling")
    x = jnp.asarray(x, loop.state_dtype(x))
    sigmas = jnp.asarray(sigmas, x.dtype)
    kappa, snr, max_correction = (jnp.asarray(a, x.dtype) for a in (kappa, snr, max_correction))
    draw = path.noise_source(key, noise_fn, x, noise, lambda: path.step_spans(sigmas))
    denoise = box.lift(denoise) if boundary == "threshold" else denoise

    def step(state: tuple, k: Array, levels: tuple, correct: Array, last: Array) -> tuple:
        (before,), noise, (sigma, variance, kappa) = state, draw(k), levels
        # The last state is a result, and must be in the box like any other.
        x = jnp.where(last, box.clip(before), before) if boundary == "threshold" else before
        denoised = loop.evaluate(denoise, x, sigma)
        std = jnp.where(last, 0, kappa * jnp.sqrt(variance))
        moved = place(steps.reverse_mean(x, denoised, sigma, variance, kappa), std * noise, box)
        if corrector_steps:
            corrected = steps.langevin_move(x, denoised, sigma, noise, snr, box, max_correction)
            moved = jnp.where(correct, corrected, moved)
        return (moved,), (before, denoised)

    calls = corrector_steps + 1
    ends = np.tile(np.arange(calls) == corrector_steps, sigmas.shape[0] - 1)
    last = np.arange(ends.size) == ends.size - 1
    levels = (jnp.repeat(a, calls) for a in _levels(sigmas, variances, kappa))
    inputs = (np.arange(ends.size), tuple(levels), ~ends, last)
    return loop.run(step, (x,), inputs, ends=ends, denoised_last=True, **options)


def _levels(sigmas: Array, variances: ArrayLike | None, kappa: Array) -> tuple[Array, ...]:
    """sigma, v and kappa of every step; the last one is that of the SDE."""
    now, after = sigmas[:-1], sigmas[1:]
    decrease = (now - after) * (now + after)
    if variances is not None:
        decrease = jnp.append(jnp.asarray(variances, now.dtype), decrease[-1])
    return now, decrease, jnp.where(np.arange(now.shape[0]) == now.shape[0] - 1, 1, kappa)


def _check_options(
    sigmas: ArrayLike,
    kappa: ArrayLike,
    snr: ArrayLike,
    max_correction: ArrayLike,
    corrector_steps: int,
    variances: ArrayLike | None,
) -> None:
    """Raise ValueError for what `sample_reflected` cannot work with."""
    loop.check_sigmas(sigmas)
    check_number("kappa", kappa, least=0)
    check_number("snr", snr, least=0)
    check_number("max_correction", max_correction, least=0, finite=False)
    check_count("corrector_steps", corrector_steps, least=0)
    expected = (np.shape(sigmas)[0] - 2,)
    if variances is None:
        return
    if np.shape(variances) != expected:
        raise ValueError(
            f"variances must have shape {expected}, one for each step but the last, got "
            f"{np.shape(variances)}; leave them out for the decrease of sigma^2"
        )
    if is_known(variances):
        check_number("variances", variances, least=0)


def _calls(num_steps: int, options: Mapping[str, Any]) -> int:
    return num_steps * (1 + options.get("corrector_steps", 0))


def _promises() -> tuple[SamplerInfo, ...]:
    # Their laws are on a box, where `edm_jax.exact.reflected_promises` measures them.
    common = dict(
        fn=sample_reflected, stochastic=True, linear=False, grid="ve", nfe_fn=_calls, measured=(),
        domain="box",
    )  # fmt: skip
    return (
        SamplerInfo("reflected", order=1, presets={"boundary": "reflect"}, **common),
        SamplerInfo("reflected_project", order=0.5, presets={"boundary": "project"}, **common),
        SamplerInfo("reflected_threshold", order=0.5, presets={"boundary": "threshold"}, **common),
        # Langevin steps of a finite size leave a bias of their own.
        SamplerInfo(
            "reflected_predictor_corrector",
            order=0,
            bias=0.02,
            presets={"corrector_steps": 1},
            **common,
        ),
    )


PROMISES = _promises()
