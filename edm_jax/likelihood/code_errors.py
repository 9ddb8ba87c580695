"""How far codes and decoded images are from exact ones, against the number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.likelihood.codes import flow_decode, flow_encode
from edm_jax.likelihood.levels import flow_levels
from edm_jax.pytree import short_repr
from edm_jax.typing import Array, DenoiseFn, PyTree

REFERENCE_STEPS = 256


@short_repr
class CodeErrors(NamedTuple):
    """Root mean squares per element, one for each number of steps.

    Attributes:
      num_steps: ``(K,)``.
      latent: of codes against those of a much finer grid.
      image: of images decoded from those fine codes.
      round_trip: of images encoded and decoded with the same N.  Errors of the two ways cancel
        in part, so this is smaller than either and no measure of them.
      solver: name.
    """

    num_steps: np.ndarray
    latent: np.ndarray
    image: np.ndarray
    round_trip: np.ndarray
    solver: str


def code_errors(
    denoise: DenoiseFn,
    x: Array,
    *,
    num_steps: Sequence[int] = (8, 16, 32, 64),
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rows: PyTree | None = None,
    solver: str = "rk4",
    reference_steps: int = REFERENCE_STEPS,
) -> CodeErrors:
    """Errors of encoding and decoding images x ``(B, ...)`` with N steps; see `CodeErrors`.

    Args:
      denoise, x, rows, solver: as in `flow_encode`.
      num_steps: the N to measure.
      sigma_min, sigma_max: s0 and S.
      reference_steps: N of the codes taken for exact, by ``rk4``; larger than all the others.

    Raises:
      ValueError: if reference_steps is not at least twice the largest of num_steps.
    """
    if reference_steps < 2 * max(num_steps):
        raise ValueError(
            f"reference_steps must be at least {2 * max(num_steps)}, twice the finest of "
            f"num_steps, got {reference_steps}"
        )
    x = jnp.asarray(x)

    def levels(count: int) -> np.ndarray:
        return flow_levels(count, sigma_min=sigma_min, sigma_max=sigma_max)

    def up(x: Array, sigmas: np.ndarray, solver: str) -> Array:
        return jax.jit(lambda x, s: flow_encode(denoise, x, s, rows=rows, solver=solver))(x, sigmas)

    def down(z: Array, sigmas: np.ndarray) -> Array:
        return jax.jit(lambda z, s: flow_decode(denoise, z, s, rows=rows, solver=solver))(z, sigmas)

    def rms(difference: Array) -> float:
        return float(jnp.sqrt(jnp.mean(jnp.square(difference))))

    exact, errors = up(x, levels(reference_steps), "rk4"), []
    for count in num_steps:
        sigmas = levels(count)
        z = up(x, sigmas, solver)
        errors.append((rms(z - exact), rms(down(exact, sigmas) - x), rms(down(z, sigmas) - x)))
    return CodeErrors(np.asarray(num_steps), *np.array(errors).T, solver)
