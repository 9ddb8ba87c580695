"""DDPM ancestral sampling (Ho et al. 2020; learned variance of Nichol & Dhariwal 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax import names
from edm_jax.arguments import check_number
from edm_jax.samplers import loop, path
from edm_jax.samplers.info import SamplerInfo
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key

# gamma g at (x, sigma): by how much a classifier pushes the mean of a step, see `guidance`.
ShiftFn = Callable[[Array, Array], Array]

VARIANCES = {"small": 0.0, "large": 1.0, "learned": None}


def ancestral_variance(sigma: ArrayLike, sigma_next: ArrayLike, v: ArrayLike) -> Array:
    """Variance of the noise added by the step sigma -> sigma' > 0.

        small (v = 0): sigma'^2 (sigma^2 - sigma'^2) / sigma^2
        large (v = 1): (sigma^2 - sigma'^2) (1 + sigma'^2) / (1 + sigma^2)

    and in between, geometrically interpolated by v, which may have any shape.
    """
    gap = (sigma - sigma_next) * (sigma + sigma_next)
    small = jnp.square(sigma_next / sigma) * gap
    large = gap * ((1 + jnp.square(sigma_next)) / (1 + jnp.square(sigma)))
    # large / small to the power v: exactly small at v = 0.
    return small * (large / small) ** v


def last_variance(
    sigma: ArrayLike, sigma_before: ArrayLike, v: ArrayLike, *, learned: bool
) -> Array:
    """What the released programs take for the variance of the step sigma -> 0.

    No noise of it is drawn; it multiplies a shift of the mean.  The true small variance is 0
    there: "small" keeps it (as any fixed v < 1), "large" and the learned one replace it by
    that of the step before, in units of z = x / sqrt(1 + sigma^2).

    Args:
      sigma, sigma_before: the last two positive levels of the grid.
      v: as in `ancestral_variance`.
      learned: whether v comes from the network.
    """
    square = jnp.square(sigma)
    gap = (sigma_before - sigma) * (sigma_before + sigma)
    replaced = jnp.square(sigma / sigma_before) * gap / (1 + square)
    if not learned:
        return jnp.where(jnp.asarray(v) >= 1, replaced, 0.0)
    return replaced * (square / (1 + square) / replaced) ** v


def _with_variance(denoise: DenoiseFn, x: Array, sigma: ArrayLike) -> tuple[Array, Array]:
    """D and v of a denoiser with learned variance, both of the shape and dtype of x."""
    pair = denoise(x, sigma)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError(
            "with variance='learned' denoise(x, sigma) must return a pair (D, v), got "
            f"{type(pair).__name__}; use variance='small' or 'large' otherwise"
        )
    denoised, v = (loop.evaluate(lambda *_, value=value: value, x, sigma) for value in pair)
    return denoised, v


def ddpm_step(
    denoise: DenoiseFn,
    x: Array,
    sigma: ArrayLike,
    sigma_next: ArrayLike,
    noise: Array,
    v: ArrayLike | None = 0.0,
    shift: ShiftFn | None = None,
) -> tuple[Array, Array]:
    """One ancestral step; 1 network call.

        x' = D + (sigma'^2 / sigma^2) (x - D) + V (s'/s) gamma g + sqrt(V) noise

    with s = 1/sqrt(1 + sigma^2): ADM's shift of the mean along a classifier's gradient g.

    Args:
      denoise: D(x; sigma); with v = None it returns (D, v), v of the shape of x.
      x: state at noise level sigma, any shape.
      sigma, sigma_next: scalars, sigma_next > 0.
      noise: standard normal, of the shape of x.
      v: where the variance lies between small (0) and large (1).
      shift: (x, sigma) -> gamma g, such as `guidance.ClassifierGuidance.shift`; None: none.

    Returns:
      The state at sigma_next and D(x; sigma), both of the shape of x.
    """
    return _step(denoise, x, sigma, sigma_next, noise, v, shift)


def _step(
    denoise: DenoiseFn,
    x: Array,
    sigma: ArrayLike,
    sigma_next: ArrayLike,
    noise: Array,
    v: ArrayLike | None,
    shift: ShiftFn | None,
    last: ArrayLike = False,
    sigma_before: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """`ddpm_step`, or where ``last`` the step to 0, which returns D and perhaps its shift."""
    learned = v is None
    if v is None:
        denoised, v = _with_variance(denoise, x, sigma)
    else:
        denoised = loop.evaluate(denoise, x, sigma)
    variance = ancestral_variance(sigma, sigma_next, v)
    mean = denoised + jnp.square(sigma_next / sigma) * (x - denoised)
    x_next = jnp.where(last, denoised, mean + jnp.sqrt(variance) * noise)
    if shift is not None:
        if sigma_before is not None:
            final = last_variance(sigma, sigma_before, v, learned=learned)
            variance = jnp.where(last, final, variance)
        end = jnp.where(last, 0, sigma_next)
        scale = jnp.sqrt((1 + jnp.square(sigma)) / (1 + jnp.square(end)))
        x_next = x_next + variance * scale * shift(x, sigma)
    return x_next.astype(x.dtype), denoised


def sample_ddpm(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    variance: str | ArrayLike = "small",
    noise: str = "step",
    shift: ShiftFn | None = None,
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """DDPM ancestral sampling; N network calls, the last step returns D.

    The released programs clip D to [-1, 1] by default: pass `adapters.clipped(denoise)`.

    Args:
      denoise: D(x; sigma); with variance="learned" it returns (D, v), where v in
        [0, 1] of the shape of x is the network's (output + 1) / 2.
      x: state at noise level sigmas[0], any shape.  The released prior z ~ N(0, 1) is
        x = sqrt(1 + sigmas[0]^2) times standard normal noise.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0, for respaced runs from
        `respacing.respaced_sigmas`; may be traced.
      key: ``(B,)`` keys, one per image, or one key.
      variance: "small", "large", "learned", or a number between small (0) and large (1).
      noise: "step" draws anew at every step; "tree" takes all noise from one path, the same
        at any number of steps (`path`).
      shift: (x, sigma) -> gamma g, which shifts the mean of every step by its variance, as
        ADM guides its sampler; `guidance.ClassifierGuidance.shift` is one.
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    v = names.lookup(VARIANCES, variance, "variance") if isinstance(variance, str) else variance
    if v is not None:
        check_number("variance", v, least=0, most=1, cure="0 is 'small', 1 'large'")
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    sigmas = jnp.asarray(sigmas, x.dtype)
    draw = path.noise_source(key, noise_fn, x, noise, lambda: path.step_spans(sigmas))

    last = np.arange(sigmas.shape[0] - 1) == sigmas.shape[0] - 2
    # The variance of a step to 0 is not a number: any level will do, as D is returned.
    after = jnp.where(last, sigmas[:-1] / 2, sigmas[1:])
    if shift is not None and len(last) < 2:
        raise ValueError("a shifted mean needs a grid of at least 2 steps, got 1")
    before = sigmas[-3] if shift is not None else None  # of the last step

    def step(state: tuple, i: Array, last: Array, sigma: Array, sigma_next: Array) -> tuple:
        (x,) = state
        x_next, denoised = _step(denoise, x, sigma, sigma_next, draw(i), v, shift, last, before)
        return (x_next,), (x, denoised)

    inputs = (np.arange(len(last)), last, sigmas[:-1], after)
    return loop.run(step, (x,), inputs, **options)


PROMISES = (SamplerInfo("ddpm", sample_ddpm, order=1, stochastic=True, grid="iddpm"),)
