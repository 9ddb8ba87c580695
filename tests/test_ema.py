"""Averages of the weights against closed forms; train/test_step_published.py has the tables."""

import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import ema


@pytest.mark.parametrize(
    ("nimg", "halflife", "ratio", "expected"),
    [
        (1e6, 1000.0, 0.05, 0.5 ** (64 / 1000)),  # long after the ramp
        (1000.0, 1000.0, 0.05, 0.5 ** (64 / 50)),  # a twentieth of the images seen
        (1000.0, 1000.0, 0.5, 0.5 ** (64 / 500)),
        (1000.0, 1000.0, None, 0.5 ** (64 / 1000)),
        (0.0, 1000.0, 0.05, 0.0),  # the weights themselves
        (1000.0, 0.0, None, 0.0),
    ],
)
def test_decay_of_one_step(nimg, halflife, ratio, expected):
    found = ema.ema_beta(jnp.float32(nimg), 64, halflife, ratio)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_ramp_is_a_twentieth_by_default():
    found = ema.ema_beta(1000.0, 64, 1000.0)
    np.testing.assert_allclose(found, 0.5 ** (64 / 50), rtol=1e-6)


def test_an_average_halves_its_distance_in_a_half_life():
    average, weights = {"a": jnp.float32(3.0), "b": [jnp.zeros(2)]}, {
        "a": jnp.float32(1.0), "b": [jnp.array([1.0, -4.0])],
    }  # fmt: skip
    for _ in range(8):
        beta = ema.ema_beta(1e6, 64, 8 * 64.0, None)
        average = ema.ema_update(average, weights, beta)
    np.testing.assert_allclose(average["a"], 2.0, rtol=1e-5)
    np.testing.assert_allclose(average["b"][0], [0.5, -2.0], rtol=1e-5)
    kept = ema.ema_update(average, weights, 1.0)
    np.testing.assert_array_equal(kept["a"], average["a"])
    taken = ema.ema_update(average, weights, 0.0)
    np.testing.assert_array_equal(taken["b"][0], weights["b"][0])
