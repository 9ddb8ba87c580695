"""Log likelihood of images under a model, with everything that the number depends on."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import seeds
from edm_jax.likelihood import batching, quantisation
from edm_jax.likelihood.adaptive import adaptive_log_likelihood
from edm_jax.likelihood.bound import elbo
from edm_jax.likelihood.flow import flow_log_likelihood
from edm_jax.likelihood.levels import every_second, flow_levels, known_levels
from edm_jax.likelihood.results import Likelihood, Settings, likelihood_settings, settings_json
from edm_jax.model import Model
from edm_jax.progress import ReportFn
from edm_jax.typing import Array, ArrayLike


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
        table = jnp.asarray(known_levels(model.preconditioning))
        result = elbo(
            denoise, x, keys, sigma_min=low, sigma_max=high, num_levels=num_levels, rows=rows,
            levels=None if index is None else quantisation.eight_bit_levels(), index=index,
            table=table if model.preconditioning.rounds else None,
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


def log_likelihood(
    model: Model,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    method: str = "flow",
    dequantisation: str | None = None,
    num_steps: int | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    solver: str | None = None,
    tolerance: float = 1e-5,
    num_probes: int | None = None,
    passes: int = 1,
    image_ids: ArrayLike | None = None,
    batch_size: int = 64,
    sharding: jax.sharding.NamedSharding | None = None,
    progress: bool | ReportFn = False,
    guidance: None = None,
) -> Likelihood:
    """How likely images are under a model, in nats per image.

    Of 8-bit images a lower bound of ln P, whose negative per dimension in bits is what papers
    quote; the number of an image depends on the image, its label and its id, not on the others.

    Args:
      model: as `load` returns it.
      images: ``(B, H, W, C)`` uint8, or floats in [-1, 1].
      labels: of a class-conditional model: a class index for all, one per image, or
        ``(B, num_classes)`` rows.
      method: ``flow``, the change of variables along the probability-flow ODE, or ``bound``, a
        Monte Carlo estimate of the variational bound with one network call per noise level.
      dequantisation: how a density at s0 becomes a probability of bytes (`quantisation`):
        ``gaussian`` for networks trained on raw 8-bit images, as EDM's are; ``uniform`` for those
        trained on dequantised ones; ``none`` for the density at the images as they are.  By
        default ``gaussian`` for uint8, ``none`` for floats; floats must be v / 127.5 - 1
        otherwise.
      num_steps: N steps, by default 32 (128 network calls); noise levels of the bound, 128.
      sigma_min, sigma_max: s0 and S; by default 0.002 and 80, within the network's range.
      solver: of `solvers.SOLVERS`, or ``adaptive`` (diffrax); by default ``rk4``, and ``adams``
        for networks that know a table of levels.
      tolerance: of the adaptive solver.
      num_probes: random signs per image and pass; 0 computes the exact trace, the default up to
        256 elements; 1 above.
      passes: draws of all noise that are averaged.
      image_ids: ``(B,)`` integers from which the images' random draws come; by default 0, 1, ..
        Give the index in the data set to get the same numbers in any batch.
      batch_size: images at a time; one program serves all.
      sharding: of the batch axis over a mesh of devices; by default one device.
      progress: True for a bar, or a function (images done, total).
      guidance: not supported, since no density has a guided flow; it must be None.

    Returns:
      Likelihood.

    Raises:
      ValueError: for anything that cannot work, before any work.
    """
    batching.refuse_guidance(guidance)
    x = batching.check_images(images, model)
    if dequantisation is None:
        dequantisation = "gaussian" if np.asarray(images).dtype == np.uint8 else "none"
    settings = likelihood_settings(
        model, method=method, dequantisation=dequantisation, num_steps=num_steps,
        sigma_min=sigma_min, sigma_max=sigma_max, solver=solver, tolerance=tolerance,
        num_probes=num_probes, passes=passes,
    )  # fmt: skip
    count = len(x)
    arrays = {"x": x, "ids": batching.image_ids(image_ids, count)}
    rows = batching.check_label_rows(labels, model, count)
    if rows is not None:
        arrays["rows"] = rows
    if dequantisation != "none":
        arrays["index"] = batching.level_index(x)
    grids = _grids(model, settings)
    placed = batching.everywhere(model, sharding)
    static = {
        "method": method,
        "dequantisation": dequantisation,
        "solver": settings.solver,
        "num_probes": settings.num_probes,
        "num_levels": settings.num_steps if method == "bound" else 0,
    }
    parts = []
    size = batching.check_batch_size(batch_size, count)
    for at, batch in batching.batches(arrays, count, size, sharding, progress):
        runs = [
            _batch_pass(
                placed, batch, np.uint32(p), grids, np.float32(settings.tolerance or 0), **static
            )
            for p in range(passes)
        ]
        kept = at.stop - at.start
        parts.append([[np.asarray(a, np.float64)[:kept] for a in run] for run in runs])
    # (passes, 4, B)
    values = np.concatenate([np.asarray(part) for part in parts], axis=-1)
    nats, errors, differences, calls = np.moveaxis(values, 1, 0)
    if passes > 1:
        error = nats.std(axis=0, ddof=1) / math.sqrt(passes)
    elif method == "flow" and dequantisation != "none":
        error = np.full(count, np.nan)  # the spread over dequantisation is unknown
    else:
        error = errors[0]
    return Likelihood(
        nats.mean(axis=0), error, differences.mean(axis=0), calls.sum(axis=0).astype(int),
        math.prod(model.image_shape), settings_json(model, settings),
    )  # fmt: skip


def _grids(model: Model, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
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
