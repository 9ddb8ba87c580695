"""scikit-learn's handwritten digits: 1797 images of 8x8, ten classes, no download."""

from __future__ import annotations

import numpy as np

from edm_jax.data.sources.base import ArraySource, ImageSource, Unlabelled

NUM_TRAIN = 1500
_SPLIT_SEED = 0  # fixed for good: results are compared across runs


def digits(split: str = "train") -> ArraySource:
    """The digits as a data source.

    Args:
      split: ``train`` (1500 images) or ``test`` (297), by one fixed permutation.

    Returns:
      Source of 8x8x1 uint8 images; the original levels 0..16 are spread over 0..255.
    """
    if split not in ("train", "test"):
        raise ValueError(f"the digits have splits 'train' and 'test', got {split!r}")
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = np.rint(bundle.images * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    chosen = order[:NUM_TRAIN] if split == "train" else order[NUM_TRAIN:]
    names = tuple(str(name) for name in bundle.target_names)
    return ArraySource(images[chosen], bundle.target[chosen].astype(np.int32), names)


def open_split(path: str = "", split: str = "train", *, use_labels: bool = True) -> ImageSource:
    """The digits as `registry.SOURCES` opens them; they are where scikit-learn is."""
    del path
    return digits(split) if use_labels else Unlabelled(digits(split))
