"""From seeds to images: the whole of sampling in one call (EDM section F.3)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import seeds as seeds_lib
from edm_jax.arguments import check_protocol
from edm_jax.grids import make_sigmas
from edm_jax.model import Model, check_labels
from edm_jax.precond import Preconditioning, precondition
from edm_jax.samplers import Churn, Trajectory, sample_heun, sample_stochastic
from edm_jax.typing import Array, ArrayLike, PyTree


def to_uint8(images: ArrayLike) -> np.ndarray:
    """[-1, 1] -> bytes: ``trunc(clip(127.5 x + 128, 0, 255))``, inverse of v/127.5 - 1."""
    return np.clip(np.asarray(images) * 127.5 + 128, 0, 255).astype(np.uint8)


@functools.partial(
    jax.jit,
    static_argnames=("net", "preconditioning", "shape", "num_classes", "stochastic", "trajectory"),
)
def _sample_batch(
    variables: PyTree,
    seeds: Array,
    labels: Array | None,
    sigmas: Array,
    churn: Churn,
    *,
    net: nn.Module,
    preconditioning: Preconditioning,
    shape: tuple[int, ...],
    num_classes: int,
    stochastic: bool,
    trajectory: bool,
) -> Array | Trajectory:
    """One batch; compiled once per (network, shape, N), with and without churn."""
    keys = seeds_lib.image_keys(seeds)
    rows = None
    if num_classes:
        if labels is None:
            labels = seeds_lib.random_labels(keys, num_classes)
        rows = labels if labels.ndim == 2 else jax.nn.one_hot(labels, num_classes)
    denoiser = precondition(functools.partial(net.apply, variables), preconditioning)

    def denoise(x: Array, sigma: Array) -> Array:
        return denoiser(x, sigma, rows)

    x = seeds_lib.latents(keys, (seeds.shape[0], *shape)) * sigmas[0]
    if not stochastic:
        return sample_heun(denoise, x, sigmas, trajectory=trajectory)
    rounding = preconditioning.round_sigma if preconditioning.rounds else None
    return sample_stochastic(
        denoise, x, sigmas, keys, churn, round_sigma=rounding, trajectory=trajectory
    )


def _check_seeds(seeds: Iterable[int] | int) -> np.ndarray:
    try:
        values = np.atleast_1d(np.asarray(seeds if hasattr(seeds, "shape") else list(seeds)))
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iu":
        raise ValueError(f"seeds must be a non-empty list of integers, got {seeds!r}")
    if values.min() < 0:
        raise ValueError(f"seeds must not be negative, got {values.min()}")
    return (values % 2**32).astype(np.uint32)


def _expand_labels(labels: ArrayLike | None, model: Model, count: int) -> np.ndarray | None:
    if labels is None:
        return None
    if not model.num_classes:
        raise ValueError("the model is unconditional; leave labels out")
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iufb":
        raise ValueError(f"labels must be class indices or rows of numbers, got {labels.dtype}")
    if labels.ndim == 2:
        if labels.shape != (count, model.num_classes):
            raise ValueError(
                f"label rows must have shape ({count}, {model.num_classes}), got {labels.shape}"
            )
        return labels.astype(np.float32)
    check_labels(labels, model.num_classes, count)
    return np.broadcast_to(labels, (count,)).astype(np.int32)


def sample(
    model: Model,
    seeds: Iterable[int],
    labels: ArrayLike | None = None,
    *,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    churn: Churn | None = None,
    batch_size: int = 64,
    trajectory: bool = False,
    sharding: jax.sharding.NamedSharding | None = None,
    on_batch: Callable[[int], Any] | None = None,
) -> np.ndarray | Trajectory:
    """Draw one image for each seed; image i depends on seed i (and its label) alone.

    Args:
      model: as `load` returns it.
      seeds: integers >= 0, taken mod 2^32.
      labels: None (a conditional model then draws a class for each seed), a class index
        for all, one per seed, or ``(len(seeds), num_classes)`` vectors.
      num_steps: N >= 1; the network is called 2N - 1 times.
      sigma_min, sigma_max, rho: of the grid, see karras_sigmas; kept within the
        network's range.
      churn: constants of the stochastic sampler; None samples deterministically.
      batch_size: images at a time; the last batch is padded, so one program serves all.
      trajectory: return all states.
      sharding: of the batch axis over a mesh of devices; by default one device.
      on_batch: called with the number of images done after each batch.

    Returns:
      ``(len(seeds), H, W, C)`` float32, nominally in [-1, 1] (see to_uint8), or a
      Trajectory with axis 1 running over images.

    Raises:
      ValueError: for bad seeds, labels, ranges or step counts, before any work.
    """
    seeds = _check_seeds(seeds)
    labels = _expand_labels(labels, model, len(seeds))
    if batch_size != int(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer >= 1, got {batch_size}")
    if churn is not None:
        check_protocol("churn", churn, ("gamma",), "use Churn(s_churn)")
        churn = jax.tree.map(np.float32, churn)  # types that never recompile
    sigmas = make_sigmas(
        "edm",
        num_steps,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        rho=rho,
        preconditioning=model.preconditioning,
    ).astype(np.float32)
    batch_size = min(batch_size, len(seeds))
    variables = model.variables
    if sharding is not None:
        devices = sharding.mesh.size
        batch_size = -(-batch_size // devices) * devices
        everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        variables = jax.device_put(variables, everywhere)

    def place(values: np.ndarray) -> Array:
        padding = batch_size - len(values)
        values = np.concatenate([values, np.repeat(values[-1:], padding, axis=0)])
        return jnp.asarray(values) if sharding is None else jax.device_put(values, sharding)

    results = []
    for start in range(0, len(seeds), batch_size):
        rows = slice(start, min(start + batch_size, len(seeds)))
        result = _sample_batch(
            variables,
            place(seeds[rows]),
            None if labels is None else place(labels[rows]),
            sigmas,
            Churn() if churn is None else churn,
            net=model.net,
            preconditioning=model.preconditioning,
            shape=model.image_shape,
            num_classes=model.num_classes,
            stochastic=churn is not None,
            trajectory=trajectory,
        )
        count = rows.stop - rows.start
        if trajectory:
            results.append(jax.tree.map(lambda a, n=count: np.asarray(a)[:, :n], result))
        else:
            results.append(np.asarray(result)[:count])
        if on_batch is not None:
            on_batch(rows.stop)
    if trajectory:
        return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *results)
    return np.concatenate(results)
