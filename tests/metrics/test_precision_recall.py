"""Precision, recall, density and coverage against torch-fidelity and prdc."""

import numpy as np
import pytest

from edm_jax.metrics.precision_recall import precision_recall, squared_radii


@pytest.mark.parametrize("block", [2048, 7])
@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_golden(golden, case, k, block):
    g = golden("06_metrics")
    generated, real = g[f"prdc/{case}/features_gen"], g[f"prdc/{case}/features_real"]
    found = precision_recall(generated, real, k, block)
    for name, value in found.items():
        # Shares of about a hundred; some of the references are rounded to float32.
        np.testing.assert_allclose(value, g[f"prdc/{case}/k{k}_{name}"], atol=1e-6, err_msg=name)


def test_radii_on_a_line():
    """Points 0, 1, 3, 7: the second neighbours are 3, 2, 3 and 6 away."""
    points = np.float32([[0], [1], [3], [7]])
    np.testing.assert_array_equal(squared_radii(points, 2), [9, 4, 9, 36])
    # A point that is there twice is its own double's neighbour, but never its own.
    np.testing.assert_array_equal(squared_radii(np.float32([[0], [0], [5]]), 1, 2), [0, 0, 25])


def test_far_from_the_origin():
    """A common offset changes nothing; its square would cost the digits of the distances."""
    rng = np.random.default_rng(0)
    generated, real = rng.standard_normal((2, 60, 4))
    expected = precision_recall(np.float32(generated), np.float32(real))
    assert precision_recall(generated + 1e4, real + 1e4) == expected
    assert 0 < expected["precision"] < 1


def test_bad_input():
    x = np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match="k must be 1 to 3, the other images, got 4"):
        precision_recall(x, x, k=4)
    with pytest.raises(ValueError, match="2 and 3 numbers"):
        precision_recall(x, np.zeros((4, 3), np.float32))
