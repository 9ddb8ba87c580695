"""KID against torch-fidelity."""

import numpy as np
import pytest

from edm_jax.metrics import kid


@pytest.fixture(scope="module")
def g(golden):
    return golden("06_metrics")


def settings(g, case):
    return {k: int(g[f"kid/{case}/{k}"]) for k in ("subset_size", "num_subsets", "seed")}


def test_subsets(g):
    drawn = list(kid.subsets(300, 260, 50, 10, 2020))
    for i, (first, second) in enumerate(drawn):
        np.testing.assert_array_equal(first, g["kid/small/indices1"][i])
        np.testing.assert_array_equal(second, g["kid/small/indices2"][i])
    heads = [(a[:8], b[:8]) for a, b in kid.subsets(1100, 1050)]
    np.testing.assert_array_equal([a for a, _ in heads], g["kid/default_sizes/indices1_head"])
    np.testing.assert_array_equal([b for _, b in heads], g["kid/default_sizes/indices2_head"])


@pytest.mark.parametrize("case", ["small", "default_sizes"])
def test_golden(g, case):
    x, y = g[f"kid/{case}/features1"], g[f"kid/{case}/features2"]
    mean, std = kid.kernel_distance(x, y, **settings(g, case))
    # `mmd_f64` is the float64 evaluation; the mean of the float32 ones is 1e-6 off.
    np.testing.assert_allclose(mean, g[f"kid/{case}/mmd_f64"].mean(), rtol=1e-10)
    np.testing.assert_allclose(std, g[f"kid/{case}/mmd_f64"].std(), rtol=1e-10)
    np.testing.assert_allclose(mean, g[f"kid/{case}/mean"], rtol=1e-4)


def test_unbiased_where_nothing_differs():
    """The mean over many draws from one distribution is 0 within its error."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 400, 5))
    found = [kid.squared_mmd(x[i : i + 10], y[i : i + 10]) for i in range(0, 400, 10)]
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 4 * error and min(found) < 0


def test_too_few_rows():
    with pytest.raises(ValueError, match="subset_size must be 2 to 20, the smaller set, got 30"):
        kid.kernel_distance(np.zeros((40, 3)), np.zeros((20, 3)), subset_size=30)
    with pytest.raises(ValueError, match="3 and 4 numbers"):
        kid.kernel_distance(np.zeros((40, 3)), np.zeros((20, 4)), subset_size=10)
