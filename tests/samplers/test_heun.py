"""Heun and Euler steps against their formulas (EDM Algorithm 1), in NumPy."""

import itertools

import numpy as np
import pytest

from edm_jax import exact, samplers

BED = exact.Gaussian(0.3, 0.5)
X = np.array([[1.0, -0.5], [0.2, 2.0]])


def _denoise(x, sigma):
    return 0.3 + 0.25 / (0.25 + sigma**2) * (x - 0.3)


def _slope(x, sigma):
    return (x - _denoise(x, sigma)) / sigma


def _euler(x, now, after):
    return x + (after - now) * _slope(x, now)


def _heun(x, now, after):
    predicted = _euler(x, now, after)
    return x + (after - now) * (_slope(x, now) + _slope(predicted, after)) / 2


@pytest.mark.parametrize(("now", "after"), [(4.0, 2.5), (0.5, 0.1)])
def test_steps(now, after, x64):
    for step, expected in ((samplers.euler_step, _euler), (samplers.heun_step, _heun)):
        moved, denoised = step(BED.denoise, X, now, after)
        np.testing.assert_allclose(moved, expected(X, now, after), rtol=1e-12)
        np.testing.assert_allclose(denoised, _denoise(X, now), rtol=1e-12)
    np.testing.assert_allclose(
        samplers.euler_step(BED.denoise, X, now, 0.0)[0], _denoise(X, now), rtol=1e-12
    )


@pytest.mark.parametrize("levels", [[3.0], [5.0, 2.0], [9.0, 4.0, 1.0, 0.2]])
def test_every_state_of_a_run(levels, x64):
    """Heun's steps, and Euler's to 0."""
    states, sigmas = [X * levels[0]], [*levels, 0.0]
    for now, after in itertools.pairwise(levels):
        states.append(_heun(states[-1], now, after))
    states.append(_denoise(states[-1], levels[-1]))
    visited = samplers.sample_heun(BED.denoise, X * levels[0], sigmas, trajectory=True)
    np.testing.assert_allclose(visited.x, states, rtol=1e-10)
    expected = [_denoise(x, sigma) for x, sigma in zip(states, levels, strict=False)]
    np.testing.assert_allclose(visited.denoised, expected, rtol=1e-10)
