"""How likely images are under a reflected model: its settings, and one pass over one batch.

The flow runs on the lift of D from the box to the whole space, and the law at S is uniform.
From its density at s0 to a probability of bytes v, whose values x_v = v / 127.5 - 1 are w apart:

* ``uniform``: x = fold(x_v + (u - 1/2) w), so that the bins tile the box, those of 0 and 255
  half as wide, and ln P(v) >= E ln p(x; s0) + sum ln(width of the bin).
* ``gaussian``: z = fold(x_v + s0 n) and the decoder that takes levels l for equally likely,

      ln P(v) >= E[ln p(z; s0) - ln sum_l q(z | l; s0)]

The bound has that decoder as well.  Only the bound holds whatever the network: paths of the
exact flow never cross a face, those of an inexact one may end at it, which no divergence tells.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import seeds
from edm_jax.domains.box import Box
from edm_jax.likelihood import denoisers, quantisation
from edm_jax.likelihood.adaptive import adaptive_log_likelihood
from edm_jax.likelihood.flow import flow_log_likelihood
from edm_jax.likelihood.reflected_bound import UniformPrior, level_nats, reflected_bound
from edm_jax.likelihood.results import PassFn, Settings
from edm_jax.model import Model
from edm_jax.typing import Array, ArrayLike, Key

BOX = Box()


def settings(model: Model, **asked: object) -> Settings:
    """Settings with their defaults; arguments as in `log_likelihood`.

    Raises:
      ValueError: for a value, or a combination, that cannot work; noise levels that do not fit
        the box are one.
    """
    chosen = denoisers.settings(model, **asked)
    BOX.check_levels(chosen.sigma_min, chosen.sigma_max)
    return chosen


def arrays(images: ArrayLike, model: Model, settings: Settings) -> dict[str, np.ndarray]:
    """What a pass takes of ``(B, H, W, C)`` images; ValueError for values outside the box."""
    found = denoisers.arrays(images, model, settings)
    BOX.check(found["x"], "images")
    return found


def prepare(model: Model, settings: Settings) -> PassFn:
    """The pass over a batch with these settings."""
    flow = settings.method == "flow"
    return functools.partial(
        _batch_pass, grids=denoisers.grids(model, settings),
        tolerance=np.float32(settings.tolerance or 0),
        dequantisation=settings.dequantisation, solver=settings.solver,
        num_probes=settings.num_probes, num_levels=0 if flow else settings.num_steps,
    )  # fmt: skip


def dequantise(x: Array, key: Key, sigma_min: ArrayLike, method: str) -> Array:
    """`quantisation.dequantise` on the box."""
    return BOX.fold(quantisation.dequantise(x, key, sigma_min, method))


def log_probability(
    log_density: Array, z: Array, x: Array, sigma_min: ArrayLike, method: str
) -> Array:
    """The lower bound of ln P(v) from the log density of its `dequantise`-d image.

    Args:
      log_density: ``(B,)`` nats of z, at noise level s0.
      z: ``(B, ...)`` the dequantised image.
      x: ``(B, ...)`` values v / 127.5 - 1.
      sigma_min: s0.
      method: ``uniform``, ``gaussian``; with ``none`` the density stays one.
    """
    event = tuple(range(1, x.ndim))
    if method == "uniform":
        at_end = jnp.abs(x) > 1 - quantisation.BIN_WIDTH / 2
        width = jnp.where(at_end, 0.5, 1.0) * quantisation.BIN_WIDTH
        return log_density + jnp.sum(jnp.log(width), axis=event)
    if method == "gaussian":
        levels = quantisation.eight_bit_levels()
        nats = level_nats(z, x, sigma_min, levels, box=BOX) + BOX.log_kernel(z, x, sigma_min)
        return log_density - jnp.sum(nats, axis=event)
    return log_density


@functools.partial(
    jax.jit, static_argnames=("dequantisation", "solver", "num_probes", "num_levels")
)
def _batch_pass(
    model: Model,
    batch: dict[str, Array],
    number: Array,
    grids: tuple[Array, Array],
    tolerance: Array,
    *,
    dequantisation: str,
    solver: str | None,
    num_probes: int | None,
    num_levels: int,
) -> tuple[Array, Array, Array, Array]:
    """One pass over one batch: nats, their error by probes, step differences and calls."""
    denoise = model.denoiser(model.variables)
    rows, x = batch.get("rows"), batch["x"]
    keys = jax.vmap(jax.random.fold_in, (0, None))(seeds.image_keys(batch["ids"]), number)
    low, high = grids[0][0], grids[0][-1]
    if num_levels:
        levels = None if dequantisation == "none" else quantisation.eight_bit_levels()
        result = reflected_bound(
            denoise, x, keys, sigma_min=low, sigma_max=high, num_levels=num_levels,
            levels=levels, rows=rows, box=BOX,
        )  # fmt: skip
        calls = jnp.full(x.shape[:1], num_levels)
        return result.log_likelihood, result.standard_error, result.step_difference, calls
    z = dequantise(x, seeds.dequantisation_key(keys, 0), low, dequantisation)
    lifted, prior = BOX.lift(denoise), UniformPrior(BOX)
    if solver == "adaptive":
        flow = adaptive_log_likelihood(
            lifted, z, sigma_min=low, sigma_max=high, key=keys, rows=rows,
            num_probes=num_probes, tolerance=tolerance, prior=prior, compare_steps=True,
        )  # fmt: skip
    else:
        flow = flow_log_likelihood(
            lifted, z, grids[0], key=keys, rows=rows, num_probes=num_probes, solver=solver,
            prior=prior, half_sigmas=grids[1], compare_steps=True,
        )  # fmt: skip
    nats = log_probability(flow.log_density, z, x, low, dequantisation)
    return nats, flow.standard_error, flow.step_difference, flow.calls
