"""Images for an evaluation, over all devices of all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from edm_jax import generate
from edm_jax.generate import Sampling
from edm_jax.model import Labels, Model
from edm_jax.progress import is_watched
from edm_jax.train.sharding import batch_sharding, make_mesh
from edm_jax.typing import PyTree


def progress_bar(total: int, name: str, done: int = 0) -> Any:
    """A bar with rate and time left, of one process, on a terminal or in a notebook."""
    from tqdm import tqdm

    disable = jax.process_index() != 0 or not is_watched()
    return tqdm(total=total, initial=done, desc=name, unit="img", disable=disable, leave=False)


def stream(
    model: Model,
    seeds: np.ndarray,
    labels: Labels | None = None,
    sampling: Sampling | None = None,
    guidance: PyTree | None = None,
    *,
    batch_size: int = 64,
    done: int = 0,
    finite: bool = False,
) -> Iterator[tuple[int, np.ndarray]]:
    """Samples as bytes, batch by batch; all processes call this together.

    A call that goes on after ``done`` images compiles the same program and, where that is a
    multiple of the batch, gives the same bits as one that began at 0.

    Args:
      model: to sample from; the same on every process.
      seeds, labels, sampling, guidance: see `edm_jax.generate.batches`.
      batch_size: images at a time of one process.
      done: how many of the seeds are left out, from the first.
      finite: whether images that are not finite, which have no bytes, are an error.

    Yields:
      The position of the first image among ``seeds`` and ``(b, H, W, C)`` uint8, on every
      process.
    """
    left = np.asarray(seeds)[done:]
    if not len(left):
        return
    batch_size = min(batch_size * jax.process_count(), len(seeds))
    # Repeated seeds fill a batch whose size would otherwise make another program.
    padding = max(batch_size - len(left), 0)
    if labels is not None and np.ndim(labels):
        labels = np.concatenate([labels[done:], np.repeat(labels[-1:], padding, 0)])
    for some, images in generate.batches(
        model,
        np.concatenate([left, np.repeat(left[-1:], padding)]),
        labels,
        sampling,
        guidance,
        batch_size=batch_size,
        sharding=batch_sharding(make_mesh()),
    ):
        count = min(len(some), len(seeds) - done)
        if finite and not (good := np.isfinite(images).all(axis=(1, 2, 3))).all():
            raise ValueError(
                "the model gives images that are not finite, the first of seed "
                f"{some[np.argmin(good)]}; are these weights of a run that diverged?"
            )
        yield done, generate.to_uint8(images[:count])
        done += count


def draw(
    model: Model,
    seeds: np.ndarray,
    labels: np.ndarray | None = None,
    sampling: Sampling | None = None,
    guidance: PyTree | None = None,
    *,
    batch_size: int = 64,
    name: str = "samples",
    poll: Callable[[], None] | None = None,
) -> np.ndarray:
    """Samples as bytes, all at once; see `stream`.

    Args:
      name: shown with the progress.
      poll: called after each batch; may raise, then on every process.

    Returns:
      ``(len(seeds), H, W, C)`` uint8, on every process.
    """
    parts = []
    with progress_bar(len(seeds), name) as bar:
        for _, images in stream(model, seeds, labels, sampling, guidance, batch_size=batch_size):
            parts.append(images)
            bar.update(len(images))
            if poll is not None:
                poll()
    return np.concatenate(parts)
