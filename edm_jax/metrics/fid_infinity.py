"""The Frechet distance extrapolated to infinitely many images.

The distance of n images is too large by about a constant over n.  A line through distances of
several n, as a function of 1/n, is read at 0.  This is another number than FID: it is compared
with its like only.

Source: Chong & Forsyth 2020, *Effectively Unbiased FID and Inception Score*.
"""

from __future__ import annotations

import numpy as np

from edm_jax.metrics.frechet import frechet_distance, gaussian_statistics
from edm_jax.metrics.reference import Reference
from edm_jax.metrics.result import Accumulated, Result, enough

NUM_POINTS = 15
SEED = 0
_LEAST_SHARE = 10  # the smallest subset has one in so many of the images


def line_at_zero(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Least squares ``y = a + b x``: the intercept a and its standard error."""
    design = np.stack([np.ones_like(x), x], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual = y - design @ coefficients
    variance = residual @ residual / max(len(x) - 2, 1) * np.linalg.inv(design.T @ design)[0, 0]
    return float(coefficients[0]), float(np.sqrt(variance))


def extrapolated_distance(
    features: np.ndarray,
    mean: np.ndarray,
    cov: np.ndarray,
    num_points: int = NUM_POINTS,
    seed: int = SEED,
) -> tuple[float, float]:
    """The distance at 1/n = 0, and the standard error of the fit.

    Args:
      features: ``(n, D)``.
      mean, cov: ``(D,)`` and ``(D, D)`` of the reference.
      num_points: subsets of n/10 to n images, each drawn without replacement.
      seed: of the draw.
    """
    rng = np.random.RandomState(seed)
    n = len(features)
    sizes = np.unique(np.linspace(max(n // _LEAST_SHARE, 2), n, num_points).astype(int))
    found = [
        frechet_distance(*gaussian_statistics(features[rng.choice(n, size, False)]), mean, cov)
        for size in sizes
    ]
    return line_at_zero(1 / sizes, np.array(found))


def measure(accumulated: Accumulated, reference: Reference | None) -> dict[str, Result]:
    """FID-infinity of the accumulated features."""
    assert reference is not None
    features = accumulated["features"].result()
    width = features.shape[1]
    n = enough(len(features), 10 * NUM_POINTS, "the extrapolated Frechet distance")
    value, error = extrapolated_distance(features, reference.mean, reference.cov)
    remarks = [
        f"extrapolated from {NUM_POINTS} subsets of {n // _LEAST_SHARE} to {n} images; the "
        "uncertainty is the standard error of the fit; not comparable with FID"
    ]
    if n // _LEAST_SHARE < 2 * width:
        remarks.append(f"subsets smaller than {2 * width} images: the line may not be straight")
    return {"": Result(value, error, tuple(remarks))}
