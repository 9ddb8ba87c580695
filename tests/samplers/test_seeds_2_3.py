"""SEEDS-2 with its second evaluation anywhere in a step, written out in NumPy as published."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import grids, samplers


def _denoise(x, sigma):
    """Not linear in x, so that the place of an evaluation matters; NumPy and JAX."""
    return 0.3 + 0.25 / (0.25 + sigma**2) * (x - 0.3 + 0.1 * x**2 / (1 + x**2))


@pytest.mark.parametrize("variant", ["phi_1", "phi_2"])
@pytest.mark.parametrize(("r", "eta"), [(0.3, 0.6), (0.8, 1.0), (0.8, 0.0)])
def test_any_place_of_the_second_evaluation(variant, r, eta, x64):
    """Gonzalez et al. 2023 in lambda = -ln sigma, with the noise of both parts of a step."""
    sigmas = grids.karras_sigmas(4, sigma_min=0.1, sigma_max=10.0)
    noise = np.random.default_rng(0).normal(size=(6, 2, 3))
    x = start = np.array([[1.0, -0.5, 0.1], [0.3, 2.0, -1.0]]) * sigmas[0]
    for i, (now, after) in enumerate(itertools.pairwise(sigmas[:-1])):
        h = np.log(now / after)
        g, middle = (1 + eta) * h, now * np.exp(-r * h)
        d_0 = _denoise(x, now)
        first = np.sqrt(1 - np.exp(-2 * r * eta * h)) * noise[2 * i]
        u = np.exp(-r * g) * x + (1 - np.exp(-r * g)) * d_0 + middle * first
        weight = (1 - np.exp(-g)) / (2 * r)
        if variant == "phi_2":
            weight = (1 - (1 - np.exp(-g)) / g) / r
        rest = (1 - r) * eta * h
        both = np.exp(-rest) * first + np.sqrt(1 - np.exp(-2 * rest)) * noise[2 * i + 1]
        step = (1 - np.exp(-g)) * d_0 + weight * (_denoise(u, middle) - d_0)
        x = np.exp(-g) * x + step + after * both
    table = jnp.asarray(noise)
    result = samplers.sample_seeds_2(
        _denoise, start, sigmas, r=r, eta=eta, variant=variant, noise_fn=lambda i: table[i]
    )
    np.testing.assert_allclose(result, _denoise(x, sigmas[-2]), rtol=1e-10)
