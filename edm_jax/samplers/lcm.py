"""Sampling of consistency models (Song et al. 2023; latent consistency, Luo et al. 2023)."""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp

from edm_jax.arguments import check_number
from edm_jax.samplers import loop
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import SamplerInfo
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key


def sample_lcm(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    s_noise: ArrayLike = 1.0,
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """Denoise, add new noise of the next level, and so on; N network calls.

        x' = D(x; sigma) + sigma' xi

    It is made for consistency models, whose D returns the end of the flow.  With an ordinary
    denoiser, the mean of all clean images, it loses variety: of Gaussian data half the
    variance stays at any number of steps.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      key: ``(B,)`` keys, one per image, or one key.
      s_noise: scale of the added noise.
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    check_number("s_noise", s_noise, least=0)
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    draw = loop.noise_source(key, noise_fn, x)
    xp, (levels, s_noise) = rows_lib.concrete(sigmas, s_noise)
    after = levels[1:-1]
    rows = rows_lib.to_zero(xp, xp.zeros_like(after), [xp.ones_like(after)], s_noise * after)
    return rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)


_NO_PATH = (
    "every step replaces all noise, so that more steps draw more of it and have no common limit; "
    "a fixed number of steps gives the same image for the same seed"
)
# Half the variance of data of deviation 0.5 is lost, and a little more with few steps.
PROMISES = (
    SamplerInfo("lcm", sample_lcm, order=0, stochastic=True, bias=0.17, lacks={"noise": _NO_PATH}),
)
