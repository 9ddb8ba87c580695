"""The Frechet distance between two Gaussians (the D of FID), in float64 NumPy."""

from __future__ import annotations

import numpy as np


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


def _sqrt_psd(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_distance(
    mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray
) -> float:
    """Squared 2-Wasserstein distance of two Gaussians (spec of FID).

        |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

    The trace of the square root is the sum of the root eigenvalues of the symmetric
    S_1^(1/2) S_2 S_1^(1/2), which stays exact where a covariance is singular.

    Args:
      mean_1, mean_2: ``(D,)``.
      cov_1, cov_2: ``(D, D)``, symmetric and positive semi-definite.
    """
    mean_1, cov_1, mean_2, cov_2 = (
        np.asarray(a, np.float64) for a in (mean_1, cov_1, mean_2, cov_2)
    )
    root = _sqrt_psd(cov_1)
    eigenvalues = np.linalg.eigvalsh(root @ cov_2 @ root)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(np.sum((mean_1 - mean_2) ** 2) + np.trace(cov_1) + np.trace(cov_2) - 2 * cross)


def frechet_between(features_1: np.ndarray, features_2: np.ndarray) -> float:
    """Frechet distance between two sets of features, ``(n, D)`` and ``(m, D)``."""
    return frechet_distance(*gaussian_statistics(features_1), *gaussian_statistics(features_2))
