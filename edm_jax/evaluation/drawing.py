"""Images for an evaluation, over all devices of all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from edm_jax import generate
from edm_jax.generate import Sampling
from edm_jax.model import Model
from edm_jax.train.sharding import batch_sharding, make_mesh


def progress_bar(total: int, name: str) -> Any:
    """A bar with rate and time left, on a terminal only, of one process."""
    from tqdm import tqdm

    disable = True if jax.process_index() else None
    return tqdm(total=total, desc=name, unit="img", disable=disable, leave=False)


def draw(
    model: Model,
    seeds: np.ndarray,
    labels: np.ndarray | None = None,
    sampling: Sampling | None = None,
    *,
    batch_size: int = 64,
    name: str = "samples",
    poll: Callable[[], None] | None = None,
) -> np.ndarray:
    """Samples as bytes, drawn by all devices of all processes, which must call this together.

    Args:
      model: to sample from; the same on every process.
      seeds, labels, sampling: see `edm_jax.generate.batches`.
      batch_size: images at a time of one process.
      name: shown with the progress.
      poll: called after each batch; may raise, then on every process.

    Returns:
      ``(len(seeds), H, W, C)`` uint8, on every process.
    """
    parts = []
    with progress_bar(len(seeds), name) as bar:
        for some, images in generate.batches(
            model,
            seeds,
            labels,
            sampling,
            batch_size=batch_size * jax.process_count(),
            sharding=batch_sharding(make_mesh()),
        ):
            parts.append(generate.to_uint8(images))
            bar.update(len(some))
            if poll is not None:
                poll()
    return np.concatenate(parts)
