"""The two-dimensional toy: exact scores, and what guidance does to samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.guidance import toy as toy_lib


@pytest.fixture(scope="module")
def toy():
    return toy_lib.branching_toy(depth=3)


@pytest.mark.parametrize("guidance", toy_lib.GUIDANCES)
def test_guided_denoiser_has_the_score_of_the_guided_density(toy, guidance):
    """(D_g - x)/sigma^2 is the gradient of log p + (w - 1)(log p - log p_ref)."""
    sigma, w = 0.3, 2.5
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (16, 2)), jnp.float32)
    rows = jnp.tile(jnp.array([[0.0, 1.0]]), (16, 1))
    chosen = toy_lib.guidance_of(toy, guidance, w)
    denoise = toy.model.denoise if chosen is None else chosen.guide(toy.model.denoise)
    score = (denoise(x, sigma, rows) - x) / sigma**2

    def total(x):
        return jnp.sum(toy_lib.guided_log_density(toy, x, sigma, 1, guidance, w))

    # Scores of size 10 in float32, extrapolated.
    np.testing.assert_allclose(score, jax.grad(total)(x), atol=2e-3)


def test_guidance_moves_samples_to_the_data(toy):
    """Both models are blurred; autoguidance undoes part of it, at every seed."""
    run = jax.jit(
        functools.partial(toy_lib.trajectories, toy, count=128, num_steps=12),
        static_argnames=("guidance",),
    )
    likelihood = {}
    for guidance in ("none", "autoguidance"):
        points = run(jax.random.key(0), guidance=guidance, scale=2.0).x[-1]
        assert points.shape == (128, 2) and np.all(np.isfinite(points))
        likelihood[guidance] = np.asarray(toy.data.log_density(points, 0.0, 0))
    # Outliers of the blurred model lie where the data have next to no density.
    low = {name: np.quantile(values, 0.1) for name, values in likelihood.items()}
    assert low["autoguidance"] > low["none"] + 0.5
    assert np.mean(likelihood["autoguidance"]) > np.mean(likelihood["none"])


def test_blur_is_noise_that_the_model_does_not_know_of(toy):
    """The model at sigma is the data at sqrt(sigma^2 + blur^2)."""
    x = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (8, 2)), jnp.float32)
    got = toy.model.log_density(x, 0.2, 0)
    want = toy.data.log_density(x, float(np.hypot(0.2, 0.03)), 0)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)  # float32 variances


def test_arguments(toy):
    with pytest.raises(ValueError, match="did you mean 'autoguidance'"):
        toy_lib.guidance_of(toy, "autoguide", 2.0)
    with pytest.raises(ValueError, match="must be blurred more"):
        toy_lib.branching_toy(blurs=(0.1, 0.03))
    with pytest.raises(ValueError, match="depth must be at least 1"):
        toy_lib.branching_toy(depth=0)
