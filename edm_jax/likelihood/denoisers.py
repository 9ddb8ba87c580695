"""How likely images are under a denoiser: its settings, and one pass over one batch."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import names, seeds
from edm_jax.arguments import check_count, check_scalar
from edm_jax.likelihood import batching, quantisation, solvers
from edm_jax.likelihood.adaptive import adaptive_log_likelihood, check_installed
from edm_jax.likelihood.bound import elbo
from edm_jax.likelihood.divergence import EXACT_LIMIT
from edm_jax.likelihood.flow import flow_log_likelihood
from edm_jax.likelihood.levels import every_second, flow_levels, known_levels, noise_range
from edm_jax.likelihood.results import PassFn, Settings
from edm_jax.model import Model
from edm_jax.typing import Array, ArrayLike

# Of each method, by default.
NUM_STEPS = {"flow": 32, "bound": 128}


def solver_for(model: Model, solver: str | None, *, adaptive: bool = True) -> str:
    """The solver for a network: the one asked for, or the default that it can take.

    Raises:
      ValueError: for an unknown name, or a solver that calls the network between the levels of
        its table.
    """
    rounds = model.preconditioning.rounds
    if solver is None:
        solver = "adams" if rounds else "rk4"
    at_levels = not (adaptive and solver == "adaptive") and solvers.get(solver).at_levels
    if rounds and not at_levels:
        at = [name for name, info in solvers.SOLVERS.items() if info.at_levels]
        raise ValueError(
            f"the {model.preconditioning.name} network knows a table of noise levels only, "
            f"between which solver {solver!r} would call it; use {', '.join(at)}"
        )
    return solver


def settings(
    model: Model,
    *,
    method: str = "flow",
    dequantisation: str = "gaussian",
    num_steps: int | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    solver: str | None = None,
    tolerance: float = 1e-5,
    num_probes: int | None = None,
    passes: int = 1,
) -> Settings:
    """Settings with their defaults; arguments as in `log_likelihood`.

    Raises:
      ValueError: for a value, or a combination, that cannot work.
    """
    names.lookup(dict.fromkeys(NUM_STEPS), method, "method of likelihood")
    names.lookup(dict.fromkeys(quantisation.METHODS), dequantisation, "dequantisation")
    check_scalar("tolerance", tolerance, above=0)
    for name, value, least in (("passes", passes, 1), ("num_probes", num_probes, 0)):
        if value is not None or name == "passes":
            check_count(name, value, least=least)
    low, high = noise_range(sigma_min, sigma_max, model.preconditioning)
    num_steps = NUM_STEPS[method] if num_steps is None else num_steps
    why = "the difference to half as many steps belongs to the number"
    num_steps = check_count("num_steps", num_steps, least=2, cure=why)
    if method == "bound":
        if dequantisation == "uniform":
            raise ValueError(
                "the variational bound has its own decoder of 8-bit images; use dequantisation="
                "'gaussian', which names it, or 'none' for floats"
            )
        if num_steps % 2:
            raise ValueError(f"the bound needs an even number of noise levels, got {num_steps}")
        return Settings(method, dequantisation, int(num_steps), low, high, None, None, None, passes)
    solver = solver_for(model, solver)
    if num_probes is None:
        num_probes = 0 if math.prod(model.image_shape) <= EXACT_LIMIT else 1
    adaptive = solver == "adaptive"
    if adaptive:
        check_installed()
    return Settings(
        method, dequantisation, None if adaptive else int(num_steps), low, high, solver,
        tolerance if adaptive else None, num_probes, passes,
    )  # fmt: skip


def arrays(images: ArrayLike, model: Model, settings: Settings) -> dict[str, np.ndarray]:
    """What a pass takes of ``(B, H, W, C)`` images: x, and their integers if it scores those."""
    x = batching.check_images(images, model)
    if settings.dequantisation == "none":
        return {"x": x}
    return {"x": x, "index": batching.level_index(x)}


@functools.partial(
    jax.jit,
    static_argnames=("method", "dequantisation", "solver", "num_probes", "num_levels"),
)
def _batch_pass(
    model: Model,
    batch: dict[str, Array],
    number: Array,
    grids: tuple[Array, Array],
    tolerance: Array,
    table: Array | None,
    *,
    method: str,
    dequantisation: str,
    solver: str | None,
    num_probes: int | None,
    num_levels: int,
) -> tuple[Array, Array, Array, Array]:
    """One pass over one batch: nats, their error by probes, step differences and calls."""
    denoise = model.denoiser(model.variables)
    rows, x, index = (batch.get(name) for name in ("rows", "x", "index"))
    keys = jax.vmap(jax.random.fold_in, (0, None))(seeds.image_keys(batch["ids"]), number)
    low, high = grids[0][0], grids[0][-1]
    if method == "bound":
        result = elbo(
            denoise, x, keys, sigma_min=low, sigma_max=high, num_levels=num_levels, rows=rows,
            levels=None if index is None else quantisation.eight_bit_levels(), index=index,
            table=table,
        )  # fmt: skip
        calls = jnp.full(x.shape[:1], num_levels)
        return result.log_likelihood, result.standard_error, result.step_difference, calls
    x = quantisation.dequantise(x, seeds.dequantisation_key(keys, 0), low, dequantisation)
    if solver == "adaptive":
        flow = adaptive_log_likelihood(
            denoise, x, sigma_min=low, sigma_max=high, key=keys, rows=rows,
            num_probes=num_probes, tolerance=tolerance, compare_steps=True,
        )  # fmt: skip
    else:
        flow = flow_log_likelihood(
            denoise, x, grids[0], key=keys, rows=rows, num_probes=num_probes, solver=solver,
            half_sigmas=grids[1], compare_steps=True,
        )  # fmt: skip
    nats = flow.log_density
    if index is not None:
        nats = quantisation.log_probability(nats, index, low, dequantisation)
    return nats, flow.standard_error, flow.step_difference, flow.calls


def prepare(model: Model, settings: Settings) -> PassFn:
    """The pass over a batch with these settings."""
    rounds = settings.method == "bound" and model.preconditioning.rounds
    table = known_levels(model.preconditioning).astype(np.float32) if rounds else None
    return functools.partial(
        _batch_pass, grids=grids(model, settings), tolerance=np.float32(settings.tolerance or 0),
        table=table, method=settings.method, dequantisation=settings.dequantisation,
        solver=settings.solver, num_probes=settings.num_probes,
        num_levels=settings.num_steps if settings.method == "bound" else 0,
    )  # fmt: skip


def grids(model: Model, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Levels of N and of N/2 steps, float32."""
    # Of the bound and of adaptive steps only the ends matter.
    count = settings.num_steps if settings.method == "flow" and settings.num_steps else 2
    grid = flow_levels(
        count,
        sigma_min=settings.sigma_min,
        sigma_max=settings.sigma_max,
        preconditioning=model.preconditioning if settings.method == "flow" else None,
    )
    return grid.astype(np.float32), every_second(grid).astype(np.float32)
