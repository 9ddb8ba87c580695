"""From seeds to images: the whole of sampling in one request (EDM section F.3).

    images = sample(model, seeds, labels=3, sampling=Sampling("dpmpp_2m", num_steps=20))
    for seeds, images in batches(model, range(50_000), sampling=Sampling(num_steps=18)):
        ...

`batches` is the one loop that draws images: whatever needs some consumes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import samplers
from edm_jax import seeds as seeds_lib
from edm_jax.ardm.drawing import draw_batch
from edm_jax.ardm.request import Decoding
from edm_jax.ardm.sample import Path
from edm_jax.arguments import (
    check_count,
    check_function,
    check_kind,
    check_sharding,
    check_switch,
)
from edm_jax.guidance.base import Evaluated
from edm_jax.guidance.compose import label_dim, mean_shift
from edm_jax.model import Labels, Model, check_labels
from edm_jax.models.ops import target
from edm_jax.reflected import sampling as reflected
from edm_jax.requests import check_request, checked, completed, learns_variance
from edm_jax.samplers import Churn, Trajectory
from edm_jax.sampling import Sampling
from edm_jax.typing import Array, ArrayLike, PyTree


def to_uint8(images: ArrayLike) -> np.ndarray:
    """[-1, 1] -> bytes: ``trunc(clip(127.5 x + 128, 0, 255))``, inverse of v/127.5 - 1."""
    return np.clip(np.asarray(images) * 127.5 + 128, 0, 255).astype(np.uint8)


def drawn_labels(model: Model, seeds: Iterable[int] | ArrayLike) -> np.ndarray | None:
    """The class that each seed draws where none is asked for, of those trained on.

    Returns:
      ``(n,)`` int32; ``(n, num_classes)`` float32, of `Model.label_vectors`, where labels are
      vectors; None without classes.
    """
    if not model.num_classes:
        return None
    vectors = model.label_vectors
    classes = np.asarray(model.classes, np.int32) if vectors is None else vectors
    keys = seeds_lib.image_keys(seeds)
    return classes[np.asarray(seeds_lib.random_labels(keys, len(classes)))]


def batches(
    model: Model,
    seeds: Iterable[int] | ArrayLike,
    labels: Labels | None = None,
    sampling: Sampling | Decoding | None = None,
    guidance: PyTree | None = None,
    *,
    batch_size: int = 64,
    sharding: jax.sharding.NamedSharding | None = None,
    trajectory: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray | Trajectory | Path]]:
    """Draw images batch by batch; the memory does not grow with the number of seeds.

    Image i depends on seed i (and its label) alone, so a call that was stopped goes on with
    the seeds that are left.

    Args:
      model: as `load` returns it.
      seeds: integers >= 0, taken mod 2^32.
      labels: None (a conditional model then draws a class, or vector, for each seed,
        `drawn_labels`), a class index or name for all, one per seed, or ``(n, num_classes)``
        vectors.
      sampling: the request, of a model of kind "ardm" a `Decoding`; None for the defaults.
      guidance: None, or what has ``guide(denoise) -> denoise`` (`edm_jax.guidance`).
      batch_size: images at a time over all devices; the last batch is padded, so one program
        serves all.
      sharding: of the batch axis over a mesh of devices, which may be those of several
        processes; all of these then call this alike.  By default one device.
      trajectory: yield everything the sampler visited.

    Returns:
      A generator of ``(seeds, images)``: ``(b,)`` seeds as they were given and
      ``(b, H, W, C)`` float32, nominally in [-1, 1] (see to_uint8), on every process; of a model
      of sequences ``(b, L)`` int32; or a Trajectory (of kind "ardm" a `Path`) with axis 1
      running over images.

    Raises:
      ValueError: for bad seeds, labels or requests, before anything is drawn.
    """
    check_kind("model", model, Model, "edm_jax.load or from_denoiser makes one")
    seeds = seeds_lib.check_seeds(seeds)
    sampling = checked(model, sampling)
    batch_size = check_count("batch_size", batch_size)
    trajectory = check_switch("trajectory", trajectory)
    if sharding is not None:
        check_sharding(sharding)
    asked = check_request(model, sampling, guidance)
    size = min(batch_size, len(seeds))
    if isinstance(sampling, Decoding):
        program = functools.partial(
            draw_batch, policies=asked, guidance=None, trajectory=trajectory
        )
        rows_of = row_source(model, seeds, labels, model.num_classes)
        return _draw(model, seeds, rows_of, program, size, sharding)
    rows_of = row_source(model, seeds, labels, label_dim(model, guidance))
    program = functools.partial(
        sample_batch,
        sigmas=sampling.grid(model.preconditioning).astype(np.float32),
        asked=asked,
        guidance=guidance,
        trajectory=trajectory,
    )
    return _draw(model, seeds, rows_of, program, size, sharding)


def _draw(
    model: Model,
    seeds: np.ndarray,
    rows_of: Callable[[np.ndarray], np.ndarray | None],
    program: Callable[..., Array | Trajectory | Path],
    batch_size: int,
    sharding: jax.sharding.NamedSharding | None,
) -> Iterator[tuple[np.ndarray, np.ndarray | Trajectory | Path]]:
    """Places, runs and collects the batches of `batches`."""
    processes = 1
    if sharding is not None:
        processes = len({device.process_index for device in sharding.mesh.devices.flat})
        if processes > 1:
            # Each process draws its part of a batch; a program of its own is one that others
            # cannot hold up.
            local = np.asarray(sharding.mesh.local_devices)
            mesh = jax.sharding.Mesh(local, sharding.mesh.axis_names[:1])
            sharding = jax.sharding.NamedSharding(mesh, sharding.spec)
        devices = sharding.mesh.size
        replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        model, guidance = jax.device_put((model, program.keywords["guidance"]), replicated)
        program = functools.partial(program, guidance=guidance, mesh=sharding.mesh)
    else:
        devices = 1
    part = -(-batch_size // (processes * devices)) * devices
    mine = part * (jax.process_index() if processes > 1 else 0)

    def place(values: np.ndarray | None) -> Array | None:
        if values is None:
            return None
        return jnp.asarray(values) if sharding is None else jax.device_put(values, sharding)

    for start in range(0, len(seeds), part * processes):
        stop = min(start + part * processes, len(seeds))
        index = np.minimum(start + mine + np.arange(part), stop - 1)  # padded with the last
        with target.batch_over(1 if sharding is None else sharding.mesh):
            result = program(model, place(seeds_lib.seed_bits(seeds[index])), place(rows_of(index)))
        yield seeds[start:stop], _collect(result, stop - start, processes)


def _collect(
    result: Array | Trajectory | Path, count: int, processes: int
) -> np.ndarray | Trajectory | Path:
    """The first ``count`` images of all processes, on the host of every process."""
    axis = 1 if isinstance(result, Trajectory | Path) else 0

    def whole(values: Array) -> np.ndarray:
        values = np.moveaxis(np.asarray(values), axis, 0)
        if processes > 1:
            from jax.experimental import multihost_utils

            values = np.asarray(multihost_utils.process_allgather(values, tiled=True))
        return np.moveaxis(values[:count], 0, axis)

    return jax.tree.map(whole, result)


def lower_batch(
    model: Model,
    sampling: Sampling,
    batch_size: int,
    sharding: jax.sharding.NamedSharding,
) -> jax.stages.Lowered:
    """The program of `batches` for one batch, traced ahead of time.

    Args:
      model: its variables may be ShapeDtypeStructs.
      sampling: the request.
      batch_size: images at a time over all devices of the mesh, a multiple of their number.
      sharding: of the batch axis; its devices may be described ones, which are not there.
    """
    replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    model = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated), model
    )
    rows = None
    if model.num_classes:
        shape = (batch_size, model.num_classes)
        rows = jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
    seeds = seeds_lib.seed_bits(np.arange(batch_size))
    with target.batch_over(sharding.mesh):
        return sample_batch.lower(
            model,
            jax.ShapeDtypeStruct(seeds.shape, seeds.dtype, sharding=sharding),
            rows,
            sigmas=sampling.grid(model.preconditioning).astype(np.float32),
            asked=sampling.request(model.preconditioning),
            guidance=None,
            trajectory=False,
            mesh=sharding.mesh,
        )


@functools.partial(jax.jit, static_argnames=("trajectory", "mesh"))
def sample_batch(
    model: Model,
    seeds: Array,
    rows: Array | None,
    *,
    sigmas: Array,
    asked: samplers.Request,
    guidance: PyTree | None,
    trajectory: bool,
    mesh: jax.sharding.Mesh | None = None,
) -> Array | Trajectory:
    """One batch; compiled once per (network, shape, sampler, N), and mesh (`target.batch_over`)."""
    keys = seeds_lib.image_keys(seeds)
    learned = learns_variance(asked)
    denoiser = model.denoiser(model.variables, variance=learned)

    def of_rows(x: Array, sigma: Array, rows: Array | None = None) -> Any:
        # Of an unconditional model only the guidance sees the labels.
        return denoiser(x, sigma, rows if model.num_classes else None)

    if guidance is None:
        guided = of_rows
    elif not learned:
        guided = guidance.guide(of_rows)
    else:  # the variance stays that of the model

        def guided(x: Array, sigma: Array, rows: Array | None) -> tuple[Array, Array]:
            denoised, v = of_rows(x, sigma, rows)
            known = Evaluated(lambda *at: of_rows(*at)[0], (x, sigma, rows), denoised)
            return guidance.guide(known)(x, sigma, rows), v

    def denoise(x: Array, sigma: Array) -> Any:
        return guided(x, sigma, rows)

    shift = mean_shift(guidance, rows)
    noise = seeds_lib.latents(keys, (seeds.shape[0], *model.image_shape))
    options = {"preconditioning": model.preconditioning, "trajectory": trajectory}
    options |= {} if shift is None else {"shift": shift}
    if model.kind == "reflected":
        return reflected.run(asked, denoise, noise, sigmas, keys, **options)
    return asked(denoise, noise * sigmas[0], sigmas, keys, **options)


def row_source(
    model: Model, seeds: np.ndarray, labels: Labels | None, num_classes: int
) -> Callable[[np.ndarray], np.ndarray | None]:
    """Gives the label rows of some of the images: ``(b,)`` positions -> ``(b, num_classes)``.

    ``num_classes`` are those of the model, or else of the classifier that guides it.
    """
    if not num_classes:
        if labels is not None:
            raise ValueError("the model is unconditional; leave labels out")
        return lambda index: None
    if labels is None and model.num_classes:
        labels = drawn_labels(model, seeds)
    elif labels is None:
        labels = np.asarray(seeds_lib.random_labels(seeds_lib.image_keys(seeds), num_classes))
    values = np.asarray(model.class_indices(labels))
    if values.ndim == 2:
        rows = np.asarray(model.label_rows(values, len(seeds)))
        return lambda index: rows[index]
    check_labels(values, num_classes, len(seeds))
    values = np.broadcast_to(values, (len(seeds),))
    return lambda index: (values[index, None] == np.arange(num_classes)).astype(np.float32)


def sample(
    model: Model,
    seeds: Iterable[int] | ArrayLike,
    labels: Labels | None = None,
    *,
    sampling: Sampling | Decoding | None = None,
    guidance: PyTree | None = None,
    churn: Churn | None = None,
    batch_size: int = 64,
    trajectory: bool = False,
    sharding: jax.sharding.NamedSharding | None = None,
    on_batch: Callable[[int], Any] | None = None,
    **settings: Any,
) -> np.ndarray | Trajectory | Path:
    """Draw one image for each seed; image i depends on seed i (and its label) alone.

    Args:
      model, seeds, labels, guidance, batch_size, sharding: see `batches`.
      sampling: the request; None for Heun on 18 steps, of a model of kind "ardm" one variable
        at a time.
      churn: constants of the stochastic sampler, short for ``sampler="edm"`` with them.
      trajectory: return all states.
      on_batch: called with the number of images done after each batch.
      **settings: short for a `Sampling`: its fields, and options of the sampler, such as
        ``sampler="ddim", num_steps=20, eta=0.5``; of a model of kind "ardm" ``num_steps`` and
        ``policy``.  Beside ``sampling``, what that leaves at its default.

    Returns:
      ``(len(seeds), H, W, C)`` float32, nominally in [-1, 1] (see to_uint8), of sequences
      ``(len(seeds), L)`` int32, or a Trajectory or `Path` with axis 1 running over images.

    Raises:
      ValueError: for bad seeds, labels, ranges or step counts, or a setting that is given
        twice with different values, before any work.
    """
    check_kind("model", model, Model, "edm_jax.load or from_denoiser makes one")
    sampling = completed(checked(model, sampling), churn, settings)
    check_function("on_batch", on_batch)
    done, results = 0, []
    for some, images in batches(
        model, seeds, labels, sampling, guidance,
        batch_size=batch_size, sharding=sharding, trajectory=trajectory,
    ):  # fmt: skip
        results.append(images)
        done += len(some)
        if on_batch is not None:
            on_batch(done)
    axis = 1 if trajectory else 0
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis=axis), *results)
