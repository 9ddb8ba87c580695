"""The Frechet distance against published implementations and closed forms."""

import numpy as np
import pytest

from edm_jax.metrics.classifier import class_accuracy
from edm_jax.metrics.frechet import (
    covariance_root,
    distance,
    frechet_between,
    frechet_distance,
    gaussian_statistics,
)


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


def test_never_negative_and_zero_of_itself():
    """Also where covariances are singular: 50 rows of 192 numbers, as images of 8x8x3 are."""
    rng = np.random.default_rng(0)
    for n, d, scale in ((50, 192, 1.0), (50, 192, 1e3), (500, 60, 1e-3), (30, 5, 1.0)):
        rows = scale * rng.standard_normal((n, d))
        value = frechet_between(rows, rows)
        # A few roundings of the traces, not their square roots.
        assert 0 <= value <= 1e-12 * scale**2 * d
        assert frechet_between(rows, rows[::-1]) >= 0


def test_singular_covariances_in_closed_form():
    """Gaussians on orthogonal subspaces: the product vanishes, the traces add up."""
    first, second = np.zeros((2, 40, 40))
    first[:15, :15], second[15:, 15:] = 2 * np.eye(15), 3 * np.eye(25)
    found = distance(np.zeros(40), first, np.ones(40), second)
    np.testing.assert_allclose(found.value, 40 + 30 + 75, rtol=1e-14)
    assert found.ranks == (15, 25)
    # And rotated, where rank and subspaces are seen through rounding.
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0]
    turned = [rotation @ cov @ rotation.T for cov in (first, second)]
    found = distance(np.zeros(40), turned[0], np.zeros(40), turned[1])
    np.testing.assert_allclose(found.value, 105, rtol=1e-12)
    assert found.ranks == (15, 25)


def test_large_matrices_in_closed_form(monkeypatch):
    """By eigenvalues of the squared product, and by singular values where that is not enough."""
    monkeypatch.setattr("edm_jax.metrics.frechet._SMALL", 10)
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((80, 80)))[0]
    for least in (1e-1, 1e-9):
        s1, s2 = np.geomspace(least, 1, 80), np.geomspace(2, 3 * least, 80)
        covs = [(rotation * s**2) @ rotation.T for s in (s1, s2)]
        value = frechet_distance(np.zeros(80), covs[0], np.zeros(80), covs[1])
        # Squares of 1e-9 are lost beside 1: the root of eps where they are.
        np.testing.assert_allclose(value, np.sum((s1 - s2) ** 2), rtol=1e-7)


def test_root():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((9, 20))
    cov = rows.T @ rows
    root = covariance_root(cov)
    assert root.shape == (20, 9)
    np.testing.assert_allclose(root @ root.T, cov, atol=1e-12)
    assert covariance_root(np.zeros((3, 3))).shape == (3, 0)


@pytest.mark.parametrize(("count", "power"), [(100, 1), (3000, 2)])
def test_covariances_that_were_rounded_to_float32(count, power):
    """Singular or nearly so, they have negative variances, which no program minds."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((400, 400)))[0] / np.arange(1.0, 401)[:, None] ** power
    exact = [gaussian_statistics(rng.standard_normal((count, 400)) @ turn * s) for s in (1, 1.1)]
    rounded = [(mean, np.float64(np.float32(cov))) for mean, cov in exact]
    assert np.linalg.eigvalsh(rounded[0][1])[0] < -1e-9
    found, expected = distance(*rounded[0], *rounded[1]), distance(*exact[0], *exact[1])
    # Variances below the rounding of an entry, 6e-8 of the largest, are lost.
    assert found.value == pytest.approx(expected.value, rel=1e-3)


@pytest.mark.parametrize(
    ("cov", "said"),
    [
        (np.diag([1.0, -1.0]), "positive semi-definite"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "finite"),
        (np.ones((2, 3)), r"\(D, D\) matrix, got \(2, 3\)"),
    ],
)
def test_what_is_no_covariance(cov, said):
    with pytest.raises(ValueError, match=said):
        covariance_root(cov)


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="2 and 3 dimensions"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))


def test_one_row_is_refused():
    with pytest.raises(ValueError, match=r"\(n >= 2, D\), got \(1, 4\)"):
        gaussian_statistics(np.zeros((1, 4)))


def test_class_accuracy():
    assert class_accuracy([0, 1, 2, 2], [0, 1, 1, 2]) == 0.75
