"""Ancestral noise for methods of two stages: to a lower level, then up to sigma'."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Unpack

import jax.numpy as jnp

from edm_jax.arguments import check_number
from edm_jax.samplers import loop, path
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.rows import Stage
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key

StagesFn = Callable[[ModuleType, ArrayLike, ArrayLike], list[Stage]]


def sample_two_stages(
    stages_fn: StagesFn,
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None,
    *,
    eta: ArrayLike,
    s_noise: ArrayLike,
    noise: str,
    noise_fn: loop.NoiseFn | None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """Steps of a method to the level that `rows.ancestral` names, and noise up to sigma'.

    Args:
      stages_fn: ``(xp, sigma, sigma') -> [Stage, Stage]``, the method.
      denoise, x, sigmas, key: as every sampler has them.
      eta: noise, from 0 (the method itself) to 1.
      s_noise: scale of the added noise.
      noise: "step" draws anew at every step; "tree" takes all noise from one path.
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    check_number("eta", eta, least=0, most=1)
    check_number("s_noise", s_noise, least=0)
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    spans = lambda: path.step_spans(sigmas, eta**2)  # noqa: E731
    draw = path.noise_source(key, noise_fn, x, noise, spans)
    xp, (levels, eta, s_noise) = rows_lib.concrete(sigmas, eta, s_noise)
    down, up = rows_lib.ancestral(xp, levels[:-2], levels[1:-1], eta)
    stages = stages_fn(xp, levels[:-2], down)
    stages[1] = stages[1]._replace(c=[None, s_noise * up])
    rows = rows_lib.staged(xp, stages, levels[-2])
    return rows_lib.sample_rows(denoise, x, sigmas, rows, draw=draw, **options)
