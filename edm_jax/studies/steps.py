"""Local truncation error: one step of a sampler against many accurate ones (EDM section D.1)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import samplers, schedules
from edm_jax import seeds as seeds_lib
from edm_jax.model import Model
from edm_jax.samplers import Request
from edm_jax.studies import lanes as lanes_lib
from edm_jax.typing import Array, DenoiseFn, Key

# The levels between two of a grid are even in sigma^(1/rho).
_RHO = 7.0


def one_step(
    asked: Request, denoise: DenoiseFn, x: Array, sigma: Array, sigma_next: Array, keys: Key
) -> Array:
    """Where one step of a sampler leads, unscaled; more network calls than that step."""
    grid = jnp.stack([sigma, sigma_next, jnp.zeros_like(sigma)])
    visited = asked(denoise, x, grid, keys, trajectory=True)
    scaling = asked.traced.get("scaling", schedules.NoScaling())
    return visited.x[1] / scaling.scale(sigma_next)


def check(asked: Request, model: Model) -> None:
    """Raise ValueError unless every step of a sampler follows from the state before it alone."""
    if (
        model.kind != "denoiser"
        or asked.info.nfe_fn is None
        or ("variance", "learned") in (asked.static)
    ):
        raise ValueError(
            f"truncation is of samplers on fixed levels, which {asked.sampler} does not step on"
        )
    if asked.info.min_steps > 2 or not _is_one_step(asked):
        raise ValueError(
            f"truncation is of methods of one step, and {asked.sampler} remembers earlier ones; "
            "distance measures it"
        )


def _is_one_step(asked: Request) -> bool:
    """Whether a run begun anew at the second level goes on as one that came from the first."""
    key = jax.random.key(0, impl="threefry2x32")
    keys = jax.random.split(key, 1)
    x = jnp.array([0.3, -1.7]).reshape(1, 2, 1, 1)

    def denoise(x: Array, sigma: Array) -> Array:
        return jnp.tanh(x / (1 + jnp.reshape(sigma, (-1, 1, 1, 1)) ** 2))

    def states(x: Array, sigmas: Sequence[float]) -> Array:
        visited = asked(denoise, x, jnp.asarray(sigmas), keys, trajectory=True)
        scaling = asked.traced.get("scaling", schedules.NoScaling())
        return visited.x[:-1] / scaling.scale(jnp.asarray(sigmas[:-1])).reshape(-1, 1, 1, 1, 1)

    whole = states(x, [1.0, 0.6, 0.3, 0.1, 0.0])
    again = states(whole[1], [0.6, 0.3, 0.1, 0.0])
    # Rounding of float32; what a multistep method remembers moves it by far more.
    return bool(jnp.allclose(whole[2:], again[1:], rtol=0, atol=1e-5))


def _accurate(denoise: DenoiseFn, x: Array, sigma: Array, after: Array, substeps: int) -> Array:
    """Many Heun steps from one level to the next."""
    share = jnp.linspace(0.0, 1.0, substeps + 1)
    levels = (sigma ** (1 / _RHO) * (1 - share) + after ** (1 / _RHO) * share) ** _RHO

    def step(x: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        return samplers.heun_step(denoise, x, *pair)[0], None

    return jax.lax.scan(step, x, (levels[:-1], levels[1:]))[0]


def errors_along(
    asked: Request,
    denoise: DenoiseFn,
    x: Array,
    sigmas: Array,
    keys: Key,
    *,
    substeps: int,
) -> Array:
    """RMS error of each step, taken from the accurate solution: ``(N-1, B)``.

        error_i = rms(step(x(sigma_i)) - x(sigma_{i+1})),  x(.) the accurate solution

    The last step, to 0, is not among them: every method ends alike.

    Args:
      asked: of a one-step method.
      denoise: D(x; sigma).
      x: ``(B, ...)`` state at sigmas[0].
      sigmas: ``(N+1,)``, the last one 0.
      keys: ``(B,)``.
      substeps: Heun steps of the accurate solution between two levels.
    """

    def along(x: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        sigma, after = pair
        stepped = one_step(asked, denoise, x, sigma, after, keys)
        x = _accurate(denoise, x, sigma, after, substeps)
        axes = tuple(range(1, x.ndim))
        return x, jnp.sqrt(jnp.mean(jnp.square(stepped - x), axis=axes))

    return jax.lax.scan(along, x, (sigmas[:-2], sigmas[1:-1]))[1]


@functools.partial(jax.jit, static_argnames=("structure", "is_number", "substeps"))
def _errors(
    model: Model,
    seeds: Array,
    rows: Array | None,
    numbers: Sequence[Array],
    shared: Sequence[Any],
    *,
    structure: Any,
    is_number: tuple[bool, ...],
    substeps: int,
) -> Array:
    keys = seeds_lib.image_keys(seeds)
    noise = seeds_lib.latents(keys, (seeds.shape[0], *model.image_shape))

    def body(sigmas: Array, asked: Request, guidance: Any) -> Array:
        denoiser = model.denoiser(model.variables)

        def of_rows(x: Array, sigma: Array, rows: Array | None = None) -> Array:
            return denoiser(x, sigma, rows if model.num_classes else None)

        guided = of_rows if guidance is None else guidance.guide(of_rows)
        return errors_along(
            asked, lambda x, sigma: guided(x, sigma, rows), noise * sigmas[0], sigmas, keys,
            substeps=substeps,
        )  # fmt: skip

    return lanes_lib.run(body, numbers, shared, structure, is_number)


def step_errors(
    model: Model,
    seeds: np.ndarray,
    rows_of: Callable[[np.ndarray], np.ndarray | None],
    lanes: Sequence[lanes_lib.Lane],
    *,
    batch_size: int,
    substeps: int,
) -> np.ndarray:
    """Errors of the steps of every lane, root mean squares over the seeds: ``(L, N-1)``."""
    numbers, shared, structure, is_number = lanes_lib.stack(lanes)
    parts = []
    for start in range(0, len(seeds), batch_size):
        index = np.minimum(start + np.arange(batch_size), len(seeds) - 1)
        found = _errors(
            model, seeds_lib.seed_bits(seeds[index]), rows_of(index), numbers, shared,
            structure=structure, is_number=is_number, substeps=substeps,
        )  # fmt: skip
        parts.append(np.asarray(found, np.float64)[..., : len(seeds) - start])
    return np.sqrt(np.mean(np.square(np.concatenate(parts, axis=-1)), axis=-1))
