"""Extrapolation of the Frechet distance."""

import numpy as np

from edm_jax.metrics.fid_infinity import extrapolated_distance, line_at_zero
from edm_jax.metrics.frechet import frechet_between


def test_line():
    x = np.array([0.1, 0.2, 0.4, 0.5])
    np.testing.assert_allclose(line_at_zero(x, 3 - 2 * x), (3, 0), atol=1e-12)
    # Residuals (1, -1, -1, 1): numbers of the textbook formula for the intercept's error.
    value, error = line_at_zero(np.array([1.0, 2, 3, 4]), np.array([1.0, 0, 1, 4]))
    np.testing.assert_allclose((value, error), (-1, np.sqrt(4 / 2 * 1.5)), rtol=1e-12)


def test_less_biased_than_the_distance_itself():
    """Samples of the reference's own Gaussian: the truth is 0."""
    rng = np.random.default_rng(0)
    features = np.float32(rng.standard_normal((2000, 16)))
    value, error = extrapolated_distance(features, np.zeros(16), np.eye(16))
    plain = frechet_between(features, rng.standard_normal((400_000, 16)))
    assert abs(value) < plain / 3 and 0 < error < plain
