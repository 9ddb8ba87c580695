"""The VE predictor-corrector sampler (Song et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import check_count, check_number
from edm_jax.samplers import loop
from edm_jax.samplers.info import SamplerInfo
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key


def _image_norm(x: Array) -> Array:
    """L2 norm of every image, ``(B, 1, ..., 1)``."""
    axes = tuple(range(1, x.ndim))
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))


def langevin_step(
    denoise: DenoiseFn, x: Array, sigma: ArrayLike, noise: Array, snr: ArrayLike
) -> tuple[Array, Array]:
    """One Langevin corrector step at a fixed noise level; 1 network call.

        g = (D - x) / sigma^2,  eps = 2 (snr |noise| / |g|)^2
        x' = x + eps g + sqrt(2 eps) noise

    Args:
      denoise: D(x; sigma).
      x: ``(B, ...)`` state at noise level sigma.
      sigma: scalar, > 0.
      noise: standard normal, of the shape of x.
      snr: signal-to-noise ratio of the step.

    Returns:
      The new state and D(x; sigma), both of the shape of x.
    """
    denoised = loop.evaluate(denoise, x, sigma)
    return _langevin(x, denoised, sigma, noise, snr), denoised


def _langevin(x: Array, denoised: Array, sigma: ArrayLike, noise: Array, snr: ArrayLike) -> Array:
    """The step once D is known."""
    score = (denoised - x) / jnp.square(sigma)
    # Norms per image.  Averaged over the batch, as released, they would let one
    # image set the step of another.
    size = _image_norm(score)
    zero = size == 0
    eps = 2 * jnp.square(snr * _image_norm(noise) / jnp.where(zero, 1, size))
    eps = jnp.where(zero, 0, eps)
    return (x + eps * score + jnp.sqrt(2 * eps) * noise).astype(x.dtype)


def sample_predictor_corrector(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    snr: ArrayLike = 0.16,
    corrector_steps: int = 1,
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """VE predictor-corrector sampling; N (1 + corrector_steps) network calls.

    At every level Langevin correctors, then the reverse-diffusion predictor

        x' = D + (sigma'^2 / sigma^2) (x - D) + sqrt(sigma^2 - sigma'^2) noise

    whose last step adds no noise.  The released program averages the norms in the
    corrector's step size over the batch; here every image has its own, so a batch of
    one is the released update and no image influences another.

    Args:
      denoise: D(x; sigma).
      x: ``(B, ...)`` state at noise level sigmas[0].
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0 (`grids.ve_sigmas`);
        may be traced.
      key: ``(B,)`` keys, one per image, or one key.
      snr: signal-to-noise ratio of the corrector; 0.16 for CIFAR-10, 0.17 CelebA-64,
        0.075 LSUN and 256^2 faces, 0.15 for 1024^2 faces.  0 switches it off.
      corrector_steps: Langevin steps per level, at least 0.
      noise_fn: index -> standard normal noise, to replay recorded draws; level i uses
        indices from i (corrector_steps + 1), the predictor's last.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory whose denoised images are those
      of the predictor.
    """
    check_count("corrector_steps", corrector_steps, least=0)
    check_number("snr", snr, least=0)
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    if x.ndim == 0:
        raise ValueError("x must have a leading batch axis, got a scalar")
    sigmas = jnp.asarray(sigmas, x.dtype)
    snr = jnp.asarray(snr, x.dtype)
    draw = loop.noise_source(key, noise_fn, x)
    num_steps, calls = sigmas.shape[0] - 1, corrector_steps + 1
    ends = np.tile(np.arange(calls) == corrector_steps, num_steps)

    def predict(x: Array, denoised: Array, noise: Array, sigma: Array, after: Array, std: Array):
        return denoised + jnp.square(after / sigma) * (x - denoised) + std * noise

    def correct(x: Array, denoised: Array, noise: Array, sigma: Array, *_: Array) -> Array:
        return _langevin(x, denoised, sigma, noise, snr)

    def step(state: tuple, k: Array, end: Array, levels: tuple) -> tuple:
        (x,) = state
        denoised = loop.evaluate(denoise, x, levels[0])
        terms = (x, denoised, draw(k), *levels)
        moved = jax.lax.cond(end, predict, correct, *terms) if corrector_steps else predict(*terms)
        return (moved,), (x, denoised)

    now, after = sigmas[:-1], sigmas[1:]
    std = jnp.sqrt((now - after) * (now + after))
    std = jnp.where(np.arange(num_steps) == num_steps - 1, 0, std)
    levels = tuple(jnp.repeat(value, calls) for value in (now, after, std))
    inputs = (np.arange(ends.size), ends, levels)
    return loop.run(step, (x,), inputs, ends=ends, denoised_last=True, **options)


def _calls(num_steps: int, options: Mapping[str, Any]) -> int:
    return num_steps * (1 + options.get("corrector_steps", 1))


_NO_PATH = (
    "its Langevin steps do not shrink, so that more levels draw more noise and have no common "
    "limit; ve_reverse_diffusion, the same without them, has it"
)
_NO_BOX = (
    "its Langevin steps grow without bound at levels where the law is uniform and the score "
    "vanishes; those of reflected_predictor_corrector do not"
)
PROMISES = (
    SamplerInfo(
        "ve_predictor_corrector",
        sample_predictor_corrector,
        order=0,
        stochastic=True,
        bias=0.02,
        linear=False,
        grid="ve",
        nfe_fn=_calls,
        lacks={"noise": _NO_PATH},
        off_box=_NO_BOX,
    ),
)
