"""Running moments: exact, and the same bits however the images come."""

import numpy as np
import pytest

from edm_jax.metrics.moments import Halves, Moments
from edm_jax.metrics.rows import BLOCK, Rows

COUNT, WIDTH = 5 * BLOCK + 100, 7


@pytest.fixture(scope="module")
def features():
    """Far from zero, where sums of squares lose digits."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((WIDTH, WIDTH))
    return np.float32(1000 + rng.standard_normal((COUNT, WIDTH)) @ mixing)


def filled(kind, rows, batch, order=None):
    accumulator = kind()
    starts = np.arange(0, len(rows), batch)
    for start in starts if order is None else starts[order]:
        accumulator.update(rows[start : start + batch], start)
    return accumulator


def assert_same_bits(a, b):
    for x, y in zip(a.result(), b.result(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_two_pass_in_extended_precision(features):
    mean, cov = filled(Moments, features, 64).result()
    rows = features.astype(np.longdouble)
    exact_mean = rows.mean(axis=0)
    exact = (rows - exact_mean).T @ (rows - exact_mean) / (COUNT - 1)
    # Rounding of float64 for sums of five thousand terms.
    np.testing.assert_allclose(mean, np.float64(exact_mean), rtol=1e-15)
    np.testing.assert_allclose(cov, np.float64(exact), rtol=1e-13, atol=1e-13)
    # Sums of products, as some programs take them, are a thousand times worse here.
    sums = np.float64(features).T @ np.float64(features)
    plain = (sums - COUNT * np.outer(mean, mean)) / (COUNT - 1)
    assert np.abs(plain - np.float64(exact)).max() > 100 * np.abs(cov - np.float64(exact)).max()


def test_bits_do_not_depend_on_batches_order_or_hosts(features):
    whole = filled(Moments, features, COUNT)
    for batch in (1000, 333, 64):
        assert_same_bits(whole, filled(Moments, features, batch))
    order = np.random.default_rng(1).permutation(-(-COUNT // 333))
    assert_same_bits(whole, filled(Moments, features, 333, order))
    # Three hosts: every third batch, and consecutive shares.
    interleaved, consecutive = [Moments() for _ in range(3)], [Moments() for _ in range(3)]
    for i, start in enumerate(range(0, COUNT, 64)):
        interleaved[i % 3].update(features[start : start + 64], start)
        consecutive[3 * start // COUNT].update(features[start : start + 64], start)
    for hosts in (interleaved, consecutive):
        hosts[1].merge(hosts[2])
        hosts[0].merge(hosts[1])
        assert hosts[0].count == COUNT
        assert_same_bits(whole, hosts[0])


@pytest.mark.parametrize("kind", [Moments, Halves])
def test_going_on_from_a_state(features, kind):
    whole, half = filled(kind, features, COUNT), filled(kind, features[:3000], 500)
    again = kind.from_state(half.state())
    assert (again.count, again.width) == (3000, WIDTH)
    again.update(features[3000:], 3000)
    assert_same_bits(whole, again)


def test_indices_of_single_rows(features):
    order = np.random.default_rng(2).permutation(COUNT)
    scattered = Moments()
    for part in np.array_split(order, 40):
        scattered.update(features[part], part)
    assert_same_bits(filled(Moments, features, COUNT), scattered)


def test_halves(features):
    halves = filled(Halves, features, 100)
    mean, cov = halves.result()
    expected, expected_cov = filled(Moments, features, 100).result()
    np.testing.assert_allclose(mean, expected, rtol=1e-15)
    np.testing.assert_allclose(cov, expected_cov, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        halves.parts[1].result()[0], features[1::2].mean(axis=0, dtype=np.float64), rtol=1e-14
    )


def test_images_given_twice_are_refused(features):
    moments = filled(Moments, features, COUNT)
    for rows, index in ((features[:3], 5), (features[:3], COUNT - 1)):
        with pytest.raises(ValueError, match=f"image {index} is given a second time"):
            moments.update(rows, index)
    with pytest.raises(ValueError, match="second time"):
        filled(Moments, features[:BLOCK], 64).merge(moments)
    with pytest.raises(ValueError, match="twice in one batch"):
        Moments().update(features[:2], np.array([4, 4]))
    assert moments.count == COUNT


def test_shapes_are_checked(features):
    moments = filled(Moments, features[:10], 10)
    with pytest.raises(ValueError, match="rows of 3 numbers after rows of 7"):
        moments.update(features[:5, :3], 10)
    with pytest.raises(ValueError, match=r"\(B, D\), got \(7,\)"):
        moments.update(features[0], 10)
    with pytest.raises(ValueError, match="at least 2 images, got 0"):
        Moments().result()


def test_kept_rows(features):
    rows = Rows()
    for start in (2000, 0, 1000):
        rows.update(features[start : start + 1000], start)
    again = Rows.from_state(rows.state())
    again.update(features[3000:], 3000)
    np.testing.assert_array_equal(again.result(), features)
    other = filled(Rows, features[:500], 100)
    with pytest.raises(ValueError, match="image 0 is given a second time"):
        again.merge(other)
    assert Rows.from_state(Rows().state()).count == 0
