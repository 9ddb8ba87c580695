"""Guidance on a box: linear in D, so faces stay faces, at any scale and with the ODE."""

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import grids, samplers
from edm_jax.reflected import sampling
from edm_jax.seeds import image_keys
from tests.support import reflected_toy as toy
from tests.support.reflected_toy import UNIT


def _guided(arrays, label, scale):
    conditional, free = toy.source(arrays, label), toy.source(arrays)

    def denoise(x, sigma):
        d_c = conditional.denoise(x, sigma)
        return d_c + scale * (d_c - free.denoise(x, sigma))

    return denoise


def test_guided_denoiser_keeps_the_faces(golden, x64):
    """Neumann's condition is linear: D_i = x_i on faces, for w' = 0 to 15."""
    arrays, rng = golden("13_reflected"), np.random.default_rng(0)
    x = rng.uniform(size=(40, 1, 1, 2))
    x[:20, ..., 0], x[20:, ..., 1] = rng.integers(2, size=(20, 1, 1)), 1.0
    on_face = (x == 0) | (x == 1)
    for scale in (0.0, 1.5, 15.0):
        for sigma in (0.03, 0.3, 1.0):
            denoised = np.asarray(toy.call(_guided(arrays, 1, scale), x, sigma))
            np.testing.assert_allclose(denoised[on_face], x[on_face], atol=1e-10)
            assert np.all(np.isfinite(denoised))


def test_no_guidance_is_the_conditional_model(golden, x64):
    arrays = golden("13_reflected")
    plain = toy.call(toy.source(arrays, 1).denoise, arrays["toy/x"], arrays["toy/sigma"])
    guided = toy.call(_guided(arrays, 1, 0.0), arrays["toy/x"], arrays["toy/sigma"])
    np.testing.assert_array_equal(guided, plain)


def test_strong_guidance_with_the_ode_stays_in_the_box(golden):
    """Scales at which models on the whole space need thresholding (reflected.md, 8)."""
    arrays = golden("13_reflected")
    # The ODE of w' = 15 is stiff where classes meet; 60 steps resolve it.
    sigmas = grids.make_sigmas("ve", 60, sigma_min=0.01, sigma_max=2.0)
    noise = np.float32(np.random.default_rng(0).normal(size=(500, 1, 1, 2)))
    keys, heun = image_keys(range(500)), samplers.get("heun")

    @jax.jit
    def run(noise, scale):
        guided = _guided(arrays, 1, scale)
        return sampling.run(heun, guided, noise, sigmas, keys, domain=UNIT)

    points = np.asarray(arrays["toy/points"][arrays["toy/class"] == 1]).reshape(-1, 2)
    for scale in (1.5, 15.0):
        x = np.asarray(run(noise, jnp.float32(scale)))
        assert np.all((x >= 0) & (x <= 1))
        distance = np.linalg.norm(x.reshape(-1, 1, 2) - points, axis=-1).min(-1)
        # Nearly all samples are data of their class; w' > 0 sharpens, it makes nothing new.
        assert np.mean(distance < 0.05) > 0.9
