"""A model's arguments cut into batches of one size, checked once, and placed on devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import check_count, check_sharding
from edm_jax.model import Model
from edm_jax.names import brief
from edm_jax.progress import ReportFn, reporter
from edm_jax.typing import Array, ArrayLike, PyTree

# A sample may leave [-1, 1] a little; bytes and [0, 255] are far outside.
MOST = 1.5
GRID_SLACK = 1e-3  # of a level: float32 arithmetic on v / 127.5 - 1 is exact to 2e-5


def refuse_guidance(guidance: Any) -> None:
    """Raise ValueError if guidance is asked for."""
    if guidance is not None:
        raise ValueError(
            f"likelihood and codes take no guidance, got {brief(guidance)}: a guided, "
            "thresholded or clipped denoiser is not the flow of a density; leave it out"
        )


def check_images(images: ArrayLike, model: Model) -> np.ndarray:
    """Images as float32 in [-1, 1].

    Args:
      images: ``(B, H, W, C)`` uint8, or floats nominally in [-1, 1] (v / 127.5 - 1).
      model: whose images they are to be.

    Raises:
      ValueError: for another shape, type or range.
    """
    images, shape = np.asarray(images), model.image_shape
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise ValueError(
            f"images must have shape (B, {', '.join(map(str, shape))}), got {images.shape}"
        )
    if images.dtype == np.uint8:
        return (images / 127.5 - 1).astype(np.float32)
    if images.dtype.kind not in "f" and images.dtype.name != "bfloat16":
        raise ValueError(
            f"images must be uint8, or floats in [-1, 1], got {images.dtype}; convert them with "
            ".astype(np.uint8) if they hold 0..255"
        )
    images = images.astype(np.float32)
    most = np.max(np.abs(images))
    if not most <= MOST:
        raise ValueError(
            f"images of floats must lie in [-1, 1], got values up to {most:g}; scale bytes by "
            "v / 127.5 - 1, or pass them as uint8"
        )
    return images


def level_index(x: np.ndarray) -> np.ndarray:
    """The integers v of images v / 127.5 - 1; ValueError if they are not on that grid."""
    values = (x.astype(np.float64) + 1) * 127.5
    index = np.rint(values)
    if np.max(np.abs(values - index)) > GRID_SLACK or index.min() < 0 or index.max() > 255:
        raise ValueError(
            "images of floats are not 8-bit ones (v / 127.5 - 1 with v in 0..255), which have a "
            "probability; pass uint8, or dequantisation='none' for the density at the images"
        )
    return index.astype(np.int32)


def check_label_rows(labels: ArrayLike | None, model: Model, count: int) -> np.ndarray | None:
    """Labels of any accepted form as ``(count, num_classes)`` rows; None for no classes.

    Raises:
      ValueError: for labels that do not fit, or none for a class-conditional model, whose flow
        differs from class to class.
    """
    if labels is None:
        if model.num_classes:
            raise ValueError(
                f"the model has {model.num_classes} classes and another flow for each; pass "
                f"labels, or np.zeros(({count}, {model.num_classes})) for the unconditional flow "
                "of a model trained with label dropout"
            )
        return None
    return np.asarray(model.label_rows(labels, count))


def check_batch_size(batch_size: int, count: int) -> int:
    """A batch size no larger than the number of images."""
    return min(check_count("batch_size", batch_size), count)


def image_ids(ids: ArrayLike | None, count: int) -> np.ndarray:
    """One non-negative integer per image, from which its random draws come."""
    values = np.arange(count) if ids is None else np.asarray(ids)
    if values.shape != (count,) or values.dtype.kind not in "iu" or values.min() < 0:
        raise ValueError(
            f"image_ids must be {count} integers >= 0, one per image, got {brief(values)}"
        )
    return (values % 2**32).astype(np.uint32)


def batches(
    arrays: PyTree,
    count: int,
    batch_size: int,
    sharding: jax.sharding.NamedSharding | None = None,
    progress: bool | ReportFn = False,
) -> Iterator[tuple[slice, PyTree]]:
    """Rows and their arrays on the devices; the last batch is padded, so one program serves all.

    Args:
      arrays: pytree of arrays with leading axis ``count``.
      count: number of images.
      batch_size: images at a time; with a sharding, made a multiple of its devices.
      sharding: of the batch axis; by default one device.
      progress: shows images done.
    """
    if sharding is not None:
        check_sharding(sharding)
        batch_size = -(-batch_size // sharding.mesh.size) * sharding.mesh.size
    report_fn = reporter(progress)
    if report_fn is not None:
        report_fn(0, count)
    for start in range(0, count, batch_size):
        rows = slice(start, min(start + batch_size, count))

        def place(values: np.ndarray, rows: slice = rows) -> Array:
            part = np.asarray(values)[rows]
            part = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), axis=0)])
            return jnp.asarray(part) if sharding is None else jax.device_put(part, sharding)

        yield rows, jax.tree.map(place, arrays)
        if report_fn is not None:
            report_fn(rows.stop, count)


def everywhere(model: Model, sharding: jax.sharding.NamedSharding | None) -> Model:
    """The model on every device of the sharding's mesh."""
    if sharding is None:
        return model
    check_sharding(sharding)
    spec = jax.sharding.PartitionSpec()
    return jax.device_put(model, jax.sharding.NamedSharding(sharding.mesh, spec))
