"""ER-SDE's Taylor expansion where it is exact."""

import jax.numpy as jnp
import numpy as np

from edm_jax import grids, samplers, seeds


def test_kappa_makes_the_first_derivative_that_of_the_level(x64):
    """dx/dsigma = (x - D)/sigma with D = sigma^2 has x/sigma + sigma constant.

    A quadratic D is its own Taylor expansion, once there are three of them; without kappa D'
    belongs half a step back.
    """
    sigmas = grids.karras_sigmas(7, sigma_min=0.1, sigma_max=3.0)
    options = {"function": "power", "eta": 0.0, "trajectory": True, "kappa": 1.0}
    x, keys = jnp.ones((1, 2)), seeds.image_keys([0])

    def error(**more):
        denoise = lambda x, sigma: jnp.zeros_like(x) + sigma**2  # noqa: E731
        states = samplers.sample_er_sde(denoise, x, sigmas, keys, **{**options, **more}).x
        kept = np.asarray(states)[:-1, 0, 0] / sigmas[:-1] + sigmas[:-1]
        return np.max(np.abs(np.diff(kept[2:])))

    assert error() < 1e-12  # rounding
    assert error(kappa=0.0) > 1e-3 and error(order=2) > 1e-3
