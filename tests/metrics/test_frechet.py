"""The Frechet distance against published implementations and closed forms."""

import numpy as np
import pytest

from edm_jax.metrics.classifier import class_accuracy
from edm_jax.metrics.frechet import frechet_between, frechet_distance, gaussian_statistics


def cases(archive, prefix):
    return sorted({name.split("/")[1] for name in archive if name.startswith(prefix + "/")})


def test_golden_statistics(golden):
    g = golden("06_metrics")
    for case in cases(g, "frechet"):
        mu1, s1, mu2, s2 = (g[f"frechet/{case}/{n}"] for n in ("mu1", "sigma1", "mu2", "sigma2"))
        value = frechet_distance(mu1, s1, mu2, s2)
        # Singular covariances: the reference itself carries noise of 1e-7.
        tolerance = dict(atol=1e-4) if "lowrank" in case else dict(rtol=1e-8)
        np.testing.assert_allclose(value, g[f"frechet/{case}/fd"], **tolerance)
        np.testing.assert_allclose(value, g[f"frechet/{case}/fd_sym"], rtol=1e-8, atol=1e-8)


def test_golden_features(golden):
    g = golden("06_metrics")
    for case in cases(g, "frechet_features"):
        f1, f2 = (g[f"frechet_features/{case}/features{i}"] for i in (1, 2))
        for features, i in ((f1, 1), (f2, 2)):
            mean, cov = gaussian_statistics(features)
            np.testing.assert_allclose(mean, g[f"frechet_features/{case}/mu{i}"], rtol=1e-12)
            expected = g[f"frechet_features/{case}/sigma{i}"]
            np.testing.assert_allclose(cov, expected, atol=1e-10 * np.abs(expected).max())
        # Fewer rows than dimensions make the covariances singular.
        np.testing.assert_allclose(
            frechet_between(f1, f2), g[f"frechet_features/{case}/fd"], rtol=1e-6, atol=1e-4
        )


def test_specification_example():
    rng = np.random.RandomState(0)
    a = rng.standard_normal((50, 6))
    b = 1.3 * rng.standard_normal((60, 6)) + 0.2
    np.testing.assert_allclose(frechet_between(a, b), 0.8359267274665906, rtol=1e-12)


def test_closed_form_for_commuting_covariances():
    """|mu|^2 + sum (s1 - s2)^2 for diagonal covariances of deviations s1, s2."""
    s1, s2, mu = np.array([1.0, 2.0, 0.0]), np.array([3.0, 2.5, 1.0]), np.array([1.0, 0.0, 2.0])
    value = frechet_distance(np.zeros(3), np.diag(s1**2), mu, np.diag(s2**2))
    np.testing.assert_allclose(value, 5 + np.sum((s1 - s2) ** 2), rtol=1e-12)


def test_one_row_is_refused():
    with pytest.raises(ValueError, match=r"\(n >= 2, D\), got \(1, 4\)"):
        gaussian_statistics(np.zeros((1, 4)))


def test_class_accuracy():
    assert class_accuracy([0, 1, 2, 2], [0, 1, 1, 2]) == 0.75
