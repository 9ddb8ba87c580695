"""Bits of a loaded model: exact where the model is uniform, unbiased where it is not."""

import numpy as np
import pytest

from edm_jax.ardm.likelihood import estimate
from edm_jax.ardm.model_bits import model_bits, model_values
from tests.support.ardm import tiny_model

PLAIN = {"name": "absorbing", "num_values": 4}
UPSCALE = {"name": "upscale", "num_values": 16, "base": 4}
SHAPE = (4, 4, 1)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, *SHAPE)).astype(np.uint8)


@pytest.mark.parametrize("process, bits", [(PLAIN, 2), (UPSCALE, 4)])
def test_a_uniform_model_costs_log_2_k(process, bits, images):
    """Whatever the order, step, or policy."""
    model = tiny_model(process, SHAPE, noise=0.0, levels=True)
    for options in ({}, {"policies": [0, 8, 16]}, {"exact": True, "policies": [0, 5, 16]}):
        # Float32 sums of 16 logarithms.
        np.testing.assert_allclose(model_bits(model, images, **options)[:2], bits, rtol=1e-5)


def test_random_steps_and_whole_orders_agree(images):
    """Their means over orders are the same bound, that of all calls and that of a policy."""
    model = tiny_model(UPSCALE, SHAPE, levels=True)
    for policies in (None, np.array([0, 5, 16])):
        one = model_bits(model, images, policies=policies, passes=400)
        whole = model_bits(model, images, policies=policies, passes=30, exact=True, seed=1)
        error = np.hypot(
            one.std(axis=0, ddof=1) / np.sqrt(400), whole.std(axis=0, ddof=1) / np.sqrt(30)
        )
        assert np.all(np.abs(one.mean(axis=0) - whole.mean(axis=0)) < 5 * error)
    # Drawing several at once costs more than one at a time, which orders do not hide.
    exact = model_bits(model, images, passes=30, exact=True, seed=1)
    assert abs(estimate(exact).mean - estimate(whole).mean) > 1e-3


def test_an_image_does_not_depend_on_its_batch(images):
    model = tiny_model(PLAIN, SHAPE, num_classes=3, levels=True)
    rows = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    told = []
    whole = model_bits(model, images, rows, batch_size=5, on_batch=told.append)
    # Another program of another batch: float32 rounding.
    np.testing.assert_allclose(
        model_bits(model, images, rows, batch_size=2, on_batch=told.append), whole, rtol=1e-5
    )
    assert told == [5, 2, 4, 5]
    part = model_bits(model, images[3:], rows[3:], ids=[3, 4], batch_size=2)
    np.testing.assert_allclose(part, whole[:, 3:], rtol=1e-5)
    # The class is told to the network.
    assert np.all(model_bits(model, images, rows[::-1])[:, :2] != whole[:, :2])


def test_values(images):
    model = tiny_model(PLAIN, SHAPE, levels=True)
    expected = np.rint(images / 85).astype(int)  # 255 / 3: the nearest of four grey levels
    np.testing.assert_array_equal(model_values(model, images), expected)
    # The range of what `sample` returns, and what no byte holds.
    for wrong in (images / 127.5 - 1, images.astype(int) + 1000, -images.astype(int)):
        with pytest.raises(ValueError, match=r"pixels must hold integers 0\.\.255"):
            model_values(model, wrong)
    with pytest.raises(ValueError, match="a policy must begin with 0"):
        model_bits(model, images, policies=[2, 16], exact=True)
    plain = tiny_model(PLAIN, SHAPE)
    np.testing.assert_array_equal(model_values(plain, expected), expected)
    with pytest.raises(ValueError, match=r"data must hold integers 0\.\.3, got"):
        model_values(plain, images)
    with pytest.raises(ValueError, match=r"data must have shape \(B, 4, 4, 1\), got \(5, 6\)"):
        model_values(plain, np.zeros((5, 6), int))
    with pytest.raises(ValueError, match="need at least one image and pass, got 0 and 4"):
        model_bits(plain, np.zeros((0, *SHAPE), int))
