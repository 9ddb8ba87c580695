"""The kernel inception distance: an unbiased squared maximum mean discrepancy.

Source: Binkowski et al. 2018, *Demystifying MMD GANs*; subsets and seed as in torch-fidelity.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edm_jax.metrics.reference import Reference
from edm_jax.metrics.result import Accumulated, Result, enough

NUM_SUBSETS = 100
SUBSET_SIZE = 1000
SEED = 2020


def subsets(
    n: int, m: int, size: int = SUBSET_SIZE, num_subsets: int = NUM_SUBSETS, seed: int = SEED
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of either set for every subset, drawn without replacement."""
    rng = np.random.RandomState(seed)
    for _ in range(num_subsets):
        first = rng.choice(n, size, replace=False)
        yield first, rng.choice(m, size, replace=False)


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate with the kernel ``(x . y / D + 1)^3``; may be negative.

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j)

    Args:
      x, y: ``(n, D)`` and ``(m, D)``, at least two rows each.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / x.shape[1] + 1) ** 3

    def within(a: np.ndarray) -> float:
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def kernel_distance(
    features_1: np.ndarray,
    features_2: np.ndarray,
    *,
    subset_size: int = SUBSET_SIZE,
    num_subsets: int = NUM_SUBSETS,
    seed: int = SEED,
) -> tuple[float, float]:
    """Mean and population standard deviation of `squared_mmd` over random subsets.

    Args:
      features_1, features_2: ``(n, D)`` and ``(m, D)``.
      subset_size: rows of a subset, of either set.
      num_subsets: how many.
      seed: of the draw.

    Raises:
      ValueError: fewer rows than a subset has, or other widths.
    """
    n, m = len(features_1), len(features_2)
    if not 2 <= subset_size <= min(n, m):
        raise ValueError(
            f"subset_size must be 2 to {min(n, m)}, the smaller set, got {subset_size}"
        )
    if features_1.shape[1:] != features_2.shape[1:]:
        raise ValueError(
            f"features of {features_1.shape[1]} and {features_2.shape[1]} numbers have no "
            "distance; take both from the same extractor"
        )
    found = [
        squared_mmd(features_1[i], features_2[j])
        for i, j in subsets(n, m, subset_size, num_subsets, seed)
    ]
    return float(np.mean(found)), float(np.std(found))


def measure(accumulated: Accumulated, reference: Reference | None) -> dict[str, Result]:
    """KID of the accumulated features to those of a reference."""
    assert reference is not None and reference.features is not None
    features = accumulated["features"].result()
    size = min(SUBSET_SIZE, enough(len(features), 2, "KID"), len(reference.features))
    mean, std = kernel_distance(features, reference.features, subset_size=size)
    remarks = [f"the uncertainty is the deviation over {NUM_SUBSETS} subsets of {size} images"]
    if size < SUBSET_SIZE:
        remarks.append(f"subsets of {size} instead of {SUBSET_SIZE} images: there are no more")
    return {"": Result(mean, std, tuple(remarks))}
