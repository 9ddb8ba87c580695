"""Log likelihood of images under a model, with everything that the number depends on."""

from __future__ import annotations

import math

import jax
import numpy as np

from edm_jax.likelihood import batching, kinds
from edm_jax.likelihood.results import Likelihood
from edm_jax.model import Model
from edm_jax.progress import ReportFn
from edm_jax.typing import ArrayLike


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
    kind = kinds.of(model)
    if dequantisation is None:
        dequantisation = kind.default_dequantisation(images)
    settings = kind.settings(
        model, method=method, dequantisation=dequantisation, num_steps=num_steps,
        sigma_min=sigma_min, sigma_max=sigma_max, solver=solver, tolerance=tolerance,
        num_probes=num_probes, passes=passes,
    )  # fmt: skip
    arrays = kind.arrays(images, model, settings)
    count = len(arrays["x"])
    arrays["ids"] = batching.image_ids(image_ids, count)
    rows = batching.check_label_rows(labels, model, count)
    if rows is not None:
        arrays["rows"] = rows
    one_pass = kind.prepare(model, settings)
    placed = batching.everywhere(model, sharding)
    parts = []
    size = batching.check_batch_size(batch_size, count)
    for at, batch in batching.batches(arrays, count, size, sharding, progress):
        runs = [one_pass(placed, batch, np.uint32(p)) for p in range(passes)]
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
        math.prod(model.image_shape), kinds.settings_json(model, settings),
    )  # fmt: skip
