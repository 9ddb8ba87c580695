"""The bound of autoregressive models beside the other numbers of an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np

from edm_jax.ardm.likelihood import estimate
from edm_jax.ardm.model_bits import model_bits
from edm_jax.data.sources.base import ImageSource
from edm_jax.model import Model

PASSES = 4
MAX_IMAGES = 10_000


def bound(
    model: Model, train: ImageSource | None, test: ImageSource | None, *, batch_size: int
) -> dict[str, Any]:
    """Bits per dimension of the test images, or of those trained on where there are no others.

    Args:
      model: of any kind; of all but "ardm" there is nothing to say.
      train, test: the data, as far as they are at hand.
      batch_size: images at a time.

    Returns:
      JSON values: the mean, its standard error over images, and of what.
    """
    source = train if test is None else test
    if model.kind != "ardm" or source is None:
        return {}
    count = min(MAX_IMAGES, len(source))
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    examples = [source[i] for i in chosen.tolist()]
    rows = None
    if model.num_classes:
        rows = model.label_rows(np.stack([example["label"] for example in examples]), count)
    images = np.stack([example["image"] for example in examples])
    values = model_bits(model, images, rows, ids=chosen, passes=PASSES, batch_size=batch_size)
    found = estimate(values)
    return {
        "bits_per_dim": found.mean,
        "bits_per_dim_error": found.standard_error,
        "bits_per_dim_images": found.num_images,
        "bits_per_dim_split": "train" if test is None else "test",
    }


def table(result: dict[str, Any]) -> str:
    """The bound as a line for the user."""
    return (
        f"  {result['bits_per_dim']:.4f} +- {result['bits_per_dim_error']:.4f} bits per dimension "
        f"({result['bits_per_dim_images']:,} {result['bits_per_dim_split']} examples, bound)"
    )
