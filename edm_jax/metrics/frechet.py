"""The Frechet distance between two Gaussians (the D of FID and of FD-DINOv2)."""

from __future__ import annotations

import dataclasses

import numpy as np

from edm_jax.metrics.moments import Moments
from edm_jax.metrics.reference import Reference
from edm_jax.metrics.result import Accumulated, Result, enough
from edm_jax.pytree import short_repr

# Published numbers are of this many images; fewer give larger distances.
USUAL_COUNT = 50_000
# Above this size singular values take longer than eigenvalues of the squared product.
_SMALL = 1200
# Relative to the traces: what squaring the product may cost before the slower way is taken.
_TOLERANCE = 1e-8
# Relative to the trace: what a factor may miss, and how negative variances may be together.
# Covariances that other programs kept in float32 have some 1e-6 below zero.
_MISSING, _NEGATIVE = 1e-6, 1e-4


def gaussian_statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``(D,)`` and unbiased covariance ``(D, D)`` of ``(n, D)`` features, float64.

    Raises:
      ValueError: for fewer than two rows.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or features.shape[0] < 2:
        raise ValueError(f"features must have shape (n >= 2, D), got {features.shape}")
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / (features.shape[0] - 1)


@short_repr
@dataclasses.dataclass(frozen=True)
class Distance:
    """A Frechet distance, and the ranks of the two covariances.

    Attributes:
      value: at least 0.
      ranks: numerical ranks; below the dimension where a covariance is singular.
    """

    value: float
    ranks: tuple[int, int]


def covariance_root(cov: np.ndarray) -> np.ndarray:
    """A factor A with ``A A^T = cov``, by Cholesky with pivoting; it survives singular ones.

    Any factor serves as a square root here: A differs from the symmetric one by a rotation.
    Directions whose variance is rounding error (below D eps of the largest) are left out, so
    that the number of columns says the rank.  A matrix with slightly negative variances, as one
    rounded to float32 has, is taken apart into its eigenvectors; what is no larger than the
    most negative one is left out.

    Args:
      cov: ``(D, D)``, symmetric and positive semi-definite.

    Returns:
      ``(D, rank)`` float64.

    Raises:
      ValueError: it is no covariance.
    """
    from scipy.linalg.lapack import dpstrf

    if cov.ndim != 2 or cov.shape[0] != cov.shape[1] or not np.isfinite(cov).all():
        raise ValueError(f"a covariance must be a finite (D, D) matrix, got {cov.shape}")
    tolerance = len(cov) * np.finfo(float).eps * np.abs(cov.diagonal()).max(initial=0.0)
    lower, pivots, rank, _ = dpstrf(cov, lower=1, tol=tolerance)
    rank = int(rank) if cov.any() else 0
    root = np.zeros((len(cov), rank))
    root[pivots - 1] = np.tril(lower)[:, :rank]
    trace = np.trace(cov)
    if abs(trace - np.sum(root**2)) <= _MISSING * abs(trace):
        return root
    values, vectors = np.linalg.eigh(cov)
    negative = np.sum(values[values < 0])
    if not np.allclose(cov, cov.T, rtol=1e-6, atol=1e-8 * np.abs(cov).max()) or (
        -negative > _NEGATIVE * abs(trace)
    ):
        raise ValueError(
            "a covariance must be symmetric and positive semi-definite; variances of the trace "
            f"{trace:g} are negative, {negative:g} together"
        )
    kept = values > max(tolerance, -values[0])
    return vectors[:, kept] * np.sqrt(values[kept])


def _nuclear_norm(product: np.ndarray, scale: float) -> float:
    """The sum of singular values; ``scale``: what they are compared with in the end."""
    if min(product.shape) == 0:
        return 0.0
    if min(product.shape) > _SMALL:
        tall = product if product.shape[0] >= product.shape[1] else product.T
        values = np.maximum(np.linalg.eigvalsh(tall.T @ tall), 0)
        roots = np.sqrt(values)
        # An eigenvalue is off by some eps of the largest, its root by at most these.
        off = 4 * np.finfo(float).eps * values[-1]
        error = np.sum(off / np.maximum(2 * roots, np.sqrt(off)))
        if error <= _TOLERANCE * scale:
            return float(roots.sum())
    return float(np.linalg.svd(product, compute_uv=False).sum())


def distance(
    mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray
) -> Distance:
    """Squared 2-Wasserstein distance of two Gaussians, see `frechet_distance`.

    With A A^T = S_1 and B B^T = S_2, the trace of (S_1 S_2)^(1/2) is the sum of the singular
    values of A^T B.  They are computed to rounding, not to its square root as eigenvalues of
    S_1 S_2 are where a covariance is singular, and what is left below 0 is cut off.
    """
    mean_1, cov_1, mean_2, cov_2 = (
        np.asarray(a, np.float64) for a in (mean_1, cov_1, mean_2, cov_2)
    )
    if mean_1.shape != mean_2.shape or cov_1.shape != cov_2.shape:
        raise ValueError(
            f"two Gaussians of {mean_1.size} and {mean_2.size} dimensions have no distance; "
            "take both from the same extractor"
        )
    root_1, root_2 = covariance_root(cov_1), covariance_root(cov_2)
    traces = np.trace(cov_1) + np.trace(cov_2)
    spread = traces - 2 * _nuclear_norm(root_1.T @ root_2, traces)
    value = float(np.sum((mean_1 - mean_2) ** 2) + max(spread, 0.0))
    return Distance(value, (root_1.shape[1], root_2.shape[1]))


def frechet_distance(
    mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray
) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, never below 0.

        |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

    Args:
      mean_1, mean_2: ``(D,)``.
      cov_1, cov_2: ``(D, D)``, symmetric and positive semi-definite.

    Raises:
      ValueError: the dimensions differ, or a matrix is no covariance.

    Source: Dowson & Landau 1982; Heusel et al. 2017.
    """
    return distance(mean_1, cov_1, mean_2, cov_2).value


def frechet_between(features_1: np.ndarray, features_2: np.ndarray) -> float:
    """Frechet distance between two sets of features, ``(n, D)`` and ``(m, D)``."""
    return frechet_distance(*gaussian_statistics(features_1), *gaussian_statistics(features_2))


# ---------------------------------------------------------------- the metric


def count_remarks(count: int, width: int, ranks: tuple[int, int]) -> list[str]:
    """What a reader must know of a distance of few images."""
    remarks = []
    if count < USUAL_COUNT:
        remarks.append(
            f"{count} images: the distance is biased upwards against the usual {USUAL_COUNT}; "
            "compare it with distances of as many images only"
        )
    if count < 2 * width:
        remarks.append(f"fewer than two images per dimension ({count} for {width}): very uncertain")
    for which, rank in zip(("images", "reference"), ranks, strict=True):
        if rank < width:
            remarks.append(f"the covariance of the {which} is singular: rank {rank} of {width}")
    return remarks


def measure(accumulated: Accumulated, reference: Reference | None) -> dict[str, Result]:
    """The Frechet distance of the accumulated features to those of a reference."""
    assert reference is not None
    moments: Moments = accumulated["moments"]
    count = enough(moments.count, 2, "the Frechet distance")
    mean, cov = moments.result()
    found = distance(mean, cov, reference.mean, reference.cov)
    remarks = count_remarks(count, len(mean), found.ranks)
    if reference.floor is not None:
        remarks.append(
            f"two halves of the reference, {reference.floor_count} images each, are "
            f"{reference.floor:.4g} apart"
        )
    return {"": Result(found.value, remarks=tuple(remarks))}
