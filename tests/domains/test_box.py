"""Folding, the process, and the lift, on any box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.domains.box import Box

UNIT = Box(0.0, 1.0)


def test_fold(golden, x64):
    arrays = golden("13_reflected")
    v = arrays["reflect/v"]
    np.testing.assert_allclose(UNIT.fold(v), arrays["reflect/x"], atol=1e-15)
    np.testing.assert_allclose(Box(-1.0, 1.0).fold(v), arrays["reflect/box_x"], atol=1e-15)
    # The face belongs to both cells; on that of the box itself the sign is +1 here.
    expected = np.where(v == 1, 1, arrays["reflect/sign"])
    np.testing.assert_array_equal(UNIT.sign(v), expected)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 1.0), (0.1, 0.7), (0.0, 255.0), (-3.3, -1.1)])
def test_fold_properties(ends):
    box, length = Box(*ends), ends[1] - ends[0]
    rng = np.random.default_rng(0)
    v = rng.normal(np.mean(ends), 10 * length, 20000).astype(np.float32)
    x = box.fold(v)
    assert x.dtype == jnp.float32
    low, high = np.float32(ends[0]), np.float32(ends[1])
    assert np.all((low <= x) & (x <= high))
    np.testing.assert_array_equal(box.fold(x), x)  # the identity inside, bit for bit
    far = 60 * length * np.finfo(np.float32).eps * 4  # |v| reaches 50 lengths
    np.testing.assert_allclose(box.fold(2 * high - v), x, atol=far)
    np.testing.assert_allclose(box.fold(v + 2 * np.float32(length)), x, atol=far)
    slopes = jax.jit(jax.vmap(jax.grad(box.fold)))(v)
    np.testing.assert_array_equal(slopes, box.sign(v))
    assert set(np.unique(slopes)) == {-1.0, 1.0}


def test_corrupt_has_the_law_of_the_kernel(x64):
    """Frequencies of samples against the integrated density."""
    rng = np.random.default_rng(0)
    num, bins = 400_000, 20
    for y, sigma in [(0.05, 0.1), (0.9, 0.4), (0.0, 1.0)]:
        x = UNIT.corrupt(np.full(num, y), sigma, rng.normal(size=num))
        counts, _ = np.histogram(x, bins, (0, 1))
        fine = (np.arange(bins * 100) + 0.5) / (bins * 100)
        density = np.exp(UNIT.log_kernel(fine, np.full_like(fine, y), sigma))
        expected = density.reshape(bins, 100).mean(1) / bins
        # Chi-squared of 19 degrees of freedom: 50 is one in 7000.
        assert np.sum((counts - num * expected) ** 2 / (num * expected)) < 50


def test_scaled_units_are_the_same_process(x64):
    """[-1, 1] with twice the sigma is [0, 1] after the affine map."""
    rng = np.random.default_rng(0)
    y, noise = rng.uniform(size=(2, 5, 3, 2, 1))
    sigma = np.array([0.01, 0.1, 0.4, 0.6, 2.0])
    box = Box(-1.0, 1.0)
    x, wide = UNIT.corrupt(y, sigma, noise), box.corrupt(2 * y - 1, 2 * sigma, noise)
    np.testing.assert_allclose(wide, 2 * x - 1, atol=1e-14)
    np.testing.assert_allclose(
        box.target(wide, 2 * y - 1, 2 * sigma), 2 * UNIT.target(x, y, sigma) - 1, atol=1e-13
    )
    np.testing.assert_allclose(
        box.scaled_score(wide, 2 * y - 1, 2 * sigma), UNIT.scaled_score(x, y, sigma), atol=1e-11
    )


def test_lift_is_even_about_faces_and_calls_inside(x64):
    seen = []

    def denoise(x, sigma, rows):
        seen.append(np.asarray(x))
        return 0.7 * x + rows

    rng = np.random.default_rng(0)
    v, rows = rng.normal(0, 4, size=(200, 1)), 0.2
    lifted = UNIT.lift(denoise)
    result = lifted(v, 0.3, rows)
    assert np.all((seen[0] >= 0) & (seen[0] <= 1))
    mirrored = lifted(2 - v, 0.3, rows)  # about the upper face
    np.testing.assert_allclose(mirrored, 2 - result, atol=1e-13)
    np.testing.assert_allclose(lifted(v + 2, 0.3, rows), result + 2, atol=1e-13)
    inside = rng.uniform(size=(50, 1))
    np.testing.assert_allclose(lifted(inside, 0.3, rows), 0.7 * inside + rows, atol=1e-15)
    # On the upper face D itself, not its mirror image: an inexact network differs there.
    np.testing.assert_allclose(lifted(np.ones((1, 1)), 0.3, rows), 0.9, atol=1e-15)


def test_prior():
    box = Box(-1.0, 1.0)
    noise = jax.random.normal(jax.random.key(0), (200, 32, 32, 1))
    x = np.asarray(box.prior(noise))
    assert x.min() >= -1 and x.max() <= 1
    counts, _ = np.histogram(x, 64, (-1, 1))
    expected = x.size / 64
    assert np.sum((counts - expected) ** 2 / expected) < 120  # 63 degrees of freedom: 1e-5
    np.testing.assert_allclose(box.prior_log_density(x[:2]), -1024 * np.log(2), rtol=1e-6)


def test_box_is_a_pytree_of_traced_numbers():
    traces = []

    @jax.jit
    def fold(box, v):
        traces.append(None)
        return box.fold(v)

    v = jnp.asarray([1.25, -0.5])
    np.testing.assert_allclose(fold(Box(0.0, 1.0), v), [0.75, 0.5])
    np.testing.assert_allclose(fold(Box(0.0, 2.0), v), [1.25, 0.5])
    assert len(traces) == 1


def test_bad_input():
    with pytest.raises(ValueError, match=r"a box needs low < high, got low=1\.0, high=0\.0"):
        Box(1.0, 0.0)
    with pytest.raises(ValueError, match="low of a box must be finite"):
        Box(float("nan"), 1.0)
    Box().check(np.array([-1.0, 1.0]))
    with pytest.raises(
        ValueError, match=r"data must lie in the box \[-1, 1\], got values from 0 to"
    ):
        Box().check(np.array([0, 255]))
    with pytest.raises(ValueError, match="points must lie in the box"):
        Box().check(np.array([np.nan]), "points")
    Box().check_levels(0.02, 10.0)
    UNIT.check_levels(1e-4, 1.5)
    for levels in [(0.01, 0.9), (0.002, 80.0), (0.5, 5.0), (0.01, 5.0)]:
        with pytest.raises(ValueError, match="they are in units of the box"):
            Box().check_levels(*levels)
