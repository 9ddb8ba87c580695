"""Do the solvers of the likelihood keep their promises?  Rows for the table of `promises`.

On a mixture whose density is known at every noise level,

    ln p(x0; s0) = ln p(x1; S) + volume

must hold along the computed flow, whatever the prior: what is left is the solver's error.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import seeds
from edm_jax.exact.bed import CallCounter
from edm_jax.exact.distributions import GaussianMixture
from edm_jax.exact.promises import NFE_BUDGET, ORDER_SLACK, Report
from edm_jax.likelihood import solvers
from edm_jax.likelihood.flow import flow_log_likelihood
from edm_jax.likelihood.levels import flow_levels
from edm_jax.typing import Array, Key

_rng = np.random.default_rng(7)
MIXTURE = GaussianMixture(_rng.normal(size=(3, 2, 2, 1)) * 0.5, [0.2, 0.3, 0.4], [0.5, 0.3, 0.2])
COUNT = 6
# Fine enough that every method shows its limit.
FINE_STEPS = (256, 512)


def images() -> Array:
    """``(COUNT, 2, 2, 1)``, always the same."""
    return jnp.asarray(np.random.default_rng(3).normal(size=(COUNT, 2, 2, 1)) * 0.6)


def runs(solver: str, steps: tuple[int, ...]) -> list[tuple[float, float]]:
    """Largest error in nats per dimension, and network calls of an image, for each N."""
    counter, x = CallCounter(), images()
    denoise = counter.wrap(MIXTURE.denoise)

    @jax.jit
    def error(x: Array, sigmas: Array) -> Array:
        result = flow_log_likelihood(denoise, x, sigmas, solver=solver, num_probes=0)
        at_end = MIXTURE.log_density(result.latent * sigmas[-1], sigmas[-1])
        return jnp.abs(result.volume + at_end - MIXTURE.log_density(x, sigmas[0]))

    measured = []
    for num_steps in steps:
        worst = float(jnp.max(error(x, jnp.asarray(flow_levels(num_steps)))))
        measured.append((worst / 4, counter.take(x.size)))
    return measured


def independence(solver: str) -> tuple[bool, bool]:
    """Whether an image does not feel its batch, nor the keys of others but its own."""
    sigmas = jnp.asarray(flow_levels(8))

    @jax.jit
    def run(x: Array, keys: Key) -> Array:
        return flow_log_likelihood(
            MIXTURE.denoise, x, sigmas, key=keys, solver=solver, num_probes=1
        ).log_density

    x, keys = images(), seeds.image_keys(range(COUNT))
    base, order = run(x, keys), np.array([4, 2, 0, 5, 1, 3])
    other = seeds.image_keys([99, 1, 2, 3, 4, 5])
    exchanged, rekeyed = run(x.at[0].multiply(-3.0), other), run(x, other)
    # Vectorised code may round an image differently in another place of the batch.
    close = functools.partial(np.allclose, rtol=1e-9, atol=1e-9)
    batch = close(run(x[order], keys[order]), base[order]) and close(exchanged[1:], base[1:])
    own = not close(rekeyed[0], base[0]) and close(rekeyed[1:], base[1:])
    return bool(batch), bool(own)


def validate_solver(solver: str) -> Report:
    """One row, in float64."""
    info = solvers.get(solver)
    budget = NFE_BUDGET // 2
    while info.calls(budget) > NFE_BUDGET:
        budget -= 1
    steps = (budget, *FINE_STEPS)
    with jax.enable_x64(True):
        measured = runs(solver, steps)
        batch, noise = independence(solver)
    errors, calls = (tuple(column) for column in zip(*measured, strict=True))
    order = math.log2(errors[-2] / errors[-1]) / math.log2(steps[-1] / steps[-2])
    failures = []
    if abs(order - info.order) > ORDER_SLACK:
        failures.append(f"it converges with order {order:.2f}, promised {info.order}")
    for num_steps, counted in zip(steps, calls, strict=True):
        if counted != info.calls(num_steps):
            failures.append(
                f"it calls the network {counted:g} times for {num_steps} steps, stated "
                f"{info.calls(num_steps)}"
            )
    if not batch:
        failures.append("images influence each other")
    if not noise:
        failures.append("the probe of an image depends on other keys")
    return Report(
        f"likelihood {solver}", info.order, False, measured_order=order, num_steps=steps,
        nfe=tuple(map(round, calls)), errors=errors, error_at_budget=errors[0],
        nfe_at_budget=round(calls[0]), batch_independent=batch, noise_independent=noise,
        failures=tuple(failures), notes=("error in nats per dimension",),
    )  # fmt: skip


def validate_likelihood() -> Iterator[Report]:
    """A row for each solver of the likelihood."""
    for solver in solvers.SOLVERS:
        yield validate_solver(solver)
