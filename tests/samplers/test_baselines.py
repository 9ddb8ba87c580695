"""DDIM beyond its own noise: never more than the level it steps to."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, grids, samplers, seeds
from edm_jax.samplers import baselines, rows

BED = exact.Gaussian(0.3, 0.5)


def test_noise_is_kept_within_the_level():
    """A large eta draws all of the noise anew and removes all of the old."""
    sigmas = grids.karras_sigmas(6)
    table = baselines.ddim_rows(sigmas, eta=50.0)
    np.testing.assert_allclose(table.c, [*sigmas[1:-1], 0.0])
    np.testing.assert_array_equal(table.a, 0.0)
    np.testing.assert_array_equal(table.b, 1.0)
    # One step of it is clamped, the others are not: sqrt(1 - (1/20)^2) > 1/1.2 > sqrt(1 - (2/3)^2).
    down, up = rows.ancestral(np, np.array([20.0, 1.5]), np.array([1.0, 1.0]), 1.2)
    np.testing.assert_allclose(up, [1.0, 1.2 * np.sqrt(1.5**2 - 1) / 1.5], rtol=1e-14)
    np.testing.assert_allclose(down**2 + up**2, 1.0, rtol=1e-14)


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.5])
def test_ddim_as_published(eta, x64):
    """Song et al. 2020, Eq. 12 with x = z / sqrt(abar), in NumPy."""
    sigmas = grids.karras_sigmas(5, sigma_min=0.1, sigma_max=10.0)
    noise = np.random.default_rng(0).normal(size=(5, 2, 3))
    x = start = np.array([[1.0, -0.5, 0.1], [0.3, 2.0, -1.0]]) * sigmas[0]
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        denoised = 0.3 + 0.25 / (0.25 + now**2) * (x - 0.3)
        up = min(after, eta * after * np.sqrt(now**2 - after**2) / now)
        x = denoised + np.sqrt(after**2 - up**2) * (x - denoised) / now + up * noise[i]
    table = jnp.asarray(noise)
    result = samplers.sample_ddim(BED.denoise, start, sigmas, eta=eta, noise_fn=lambda i: table[i])
    np.testing.assert_allclose(result, x, rtol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 2.0])
def test_traced_noise_is_finite(eta):
    sigmas = grids.karras_sigmas(5)
    x = jnp.ones((2, 3)) * sigmas[0]
    run = jax.jit(
        lambda eta: samplers.sample_ddim(BED.denoise, x, sigmas, jax.random.key(0), eta=eta)
    )
    assert np.all(np.isfinite(run(eta)))


def test_least_steps_of_the_predictors():
    """The rates of the discrete ones, up to (beta_d + beta_min)/N = 20/N, must not exceed 1."""
    x, keys = jnp.ones((1, 2)), seeds.image_keys([0])
    few = grids.vp_sigmas(4)
    result = samplers.sample_vp(BED.denoise, x, few, keys)
    assert np.all(np.isfinite(result))
    for method in ("reverse_diffusion", "ancestral"):
        with pytest.raises(ValueError, match="at least 21 steps"):
            samplers.sample_vp(BED.denoise, x, few, keys, method=method)
