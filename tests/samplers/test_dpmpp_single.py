"""DPM-Solver++(2S) and its kin for any place of the second evaluation, as published."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, grids, samplers

BED = exact.Gaussian(0.3, 0.5)


def _denoise(x, sigma):
    return 0.3 + 0.25 / (0.25 + sigma**2) * (x - 0.3)


def _published(x, sigmas, r):
    """Lu et al. 2022, Algorithm "DPM-Solver++(2S)", with alpha = 1 and lambda = -ln sigma."""
    for now, after in itertools.pairwise(sigmas[:-1]):
        h = np.log(now) - np.log(after)
        middle = now * np.exp(-r * h)
        first = _denoise(x, now)
        u = middle / now * x - (np.exp(-r * h) - 1) * first
        mixed = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * _denoise(u, middle)
        x = after / now * x - (np.exp(-h) - 1) * mixed
    return _denoise(x, sigmas[-2])


@pytest.mark.parametrize("r", [0.2, 0.5, 0.8, 1.0])
def test_any_place_of_the_second_evaluation(r, x64):
    sigmas = grids.karras_sigmas(5, sigma_min=0.05, sigma_max=20.0)
    x = np.array([[1.0, -0.5, 0.1]]) * sigmas[0]
    expected = _published(x, sigmas, r)
    # Float64 on both sides, the same sums in another order.
    np.testing.assert_allclose(
        samplers.sample_dpmpp_2s(BED.denoise, x, sigmas, r=r), expected, rtol=1e-10
    )
    traced = jax.jit(lambda s, r: samplers.sample_dpmpp_2s(BED.denoise, x, s, r=r))
    np.testing.assert_allclose(traced(sigmas, r), expected, rtol=1e-10)
    step = samplers.dpmpp_2s_step(BED.denoise, jnp.asarray(x), sigmas[0], sigmas[1], r)
    one = _published(x, np.array([sigmas[0], sigmas[1], 0.0]), r)
    np.testing.assert_allclose(_denoise(step[0], sigmas[1]), one, rtol=1e-10)


@pytest.mark.parametrize("r", [0.2, 0.8, 1.0])
def test_without_noise_the_sde_form_is_2s(r, x64):
    sigmas = grids.karras_sigmas(5, sigma_min=0.05, sigma_max=20.0)
    x = np.array([[1.0, -0.5, 0.1]]) * sigmas[0]
    result = samplers.sample_dpmpp_sde(
        BED.denoise, x, sigmas, jax.random.key(0), eta=0.0, r=r, noise="step"
    )
    np.testing.assert_allclose(result, _published(x, sigmas, r), rtol=1e-10)


@pytest.mark.parametrize("r", [0.0, 1.1, -0.5])
def test_places_outside_the_step_are_refused(r):
    with pytest.raises(ValueError, match="r must be positive and at most 1"):
        samplers.sample_dpmpp_2s(BED.denoise, jnp.ones((1, 2)), grids.karras_sigmas(4), r=r)


def _ancestral(now, after, eta):
    """Karras et al. as k-diffusion writes it: where a step goes, and the noise it then adds."""
    up = min(after, eta * after * np.sqrt(now**2 - after**2) / now)
    return np.sqrt(after**2 - up**2), up


def _noise(num):
    return np.random.default_rng(2).normal(size=(num, 1, 3))


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_2s_with_ancestral_noise(eta, x64):
    """2S down, in the middle of ln sigma, then noise up to sigma'."""
    sigmas = grids.karras_sigmas(4, sigma_min=0.05, sigma_max=20.0)
    start = x = np.array([[1.0, -0.5, 0.1]]) * sigmas[0]
    noise = _noise(4)
    for i, (now, after) in enumerate(itertools.pairwise(sigmas[:-1])):
        down, up = _ancestral(now, after, eta)
        if down > 0:
            middle = np.sqrt(now * down)
            u = middle / now * x + (1 - middle / now) * _denoise(x, now)
            x = down / now * x + (1 - down / now) * _denoise(u, middle)
        x = x + 1.1 * up * noise[i]
    table = jnp.asarray(noise)
    result = samplers.sample_dpmpp_2s_ancestral(
        BED.denoise, start, sigmas, eta=eta, s_noise=1.1, noise_fn=lambda i: table[i]
    )
    np.testing.assert_allclose(result, _denoise(x, sigmas[-2]), rtol=1e-9)


@pytest.mark.parametrize("how", ["tree", "step"])
@pytest.mark.parametrize(("eta", "r"), [(1.0, 0.5), (0.6, 0.3)])
def test_sde_form_with_noise_of_a_path(eta, r, how, x64):
    """Both draws of a step as given, or those of its two parts; the second call sees the first.

    On the clock -eta^2 ln sigma the path of both parts, d_1 and d_2 long, is
    sqrt(1 - e^{-2 (d_1 + d_2)}) xi_b
        = e^{-d_2} sqrt(1 - e^{-2 d_1}) xi_1 + sqrt(1 - e^{-2 d_2}) xi_2.
    """
    sigmas = grids.karras_sigmas(4, sigma_min=0.05, sigma_max=20.0)
    start = x = np.array([[1.0, -0.5, 0.1]]) * sigmas[0]
    noise = _noise(8)
    for i, (now, after) in enumerate(itertools.pairwise(sigmas[:-1])):
        inner, whole = noise[2 * i], noise[2 * i + 1]
        if how == "step":
            d_1, d_2 = eta**2 * np.log(now / after) * np.array([r, 1 - r])
            part = np.exp(-d_2) * np.sqrt(1 - np.exp(-2 * d_1)) * inner
            part = part + np.sqrt(1 - np.exp(-2 * d_2)) * whole
            whole = part / np.sqrt(1 - np.exp(-2 * (d_1 + d_2)))
        middle = now ** (1 - r) * after**r
        first = _denoise(x, now)
        down, up = _ancestral(now, middle, eta)
        u = down / now * x + (1 - down / now) * first + 1.1 * up * inner
        second = _denoise(u, middle)
        down, up = _ancestral(now, after, eta)
        mixed = (1 - 1 / (2 * r)) * first + second / (2 * r)
        x = down / now * x + (1 - down / now) * mixed + 1.1 * up * whole
    table = jnp.asarray(noise)
    result = samplers.sample_dpmpp_sde(
        BED.denoise, start, sigmas, eta=eta, r=r, s_noise=1.1, noise=how,
        noise_fn=lambda i: table[i],
    )  # fmt: skip
    np.testing.assert_allclose(result, _denoise(x, sigmas[-2]), rtol=1e-9)


def test_the_second_evaluation_is_in_the_middle_by_default(x64):
    sigmas = grids.karras_sigmas(3, sigma_min=0.05, sigma_max=20.0)
    x = jnp.array([[1.0, -0.5, 0.1]]) * sigmas[0]
    middle = _published(x, sigmas, 0.5)
    np.testing.assert_allclose(samplers.sample_dpmpp_2s(BED.denoise, x, sigmas), middle, rtol=1e-10)
    for after in sigmas[1:-1]:
        x = samplers.dpmpp_2s_step(BED.denoise, x, sigmas[0], after)[0]
        sigmas = sigmas[1:]
    np.testing.assert_allclose(_denoise(x, sigmas[0]), middle, rtol=1e-10)
    bare = samplers.sample_dpmpp_sde(
        BED.denoise, x, [20.0, 1.0, 0.0], jax.random.key(0), eta=0.0, noise="step"
    )
    np.testing.assert_allclose(bare, _published(x, np.array([20.0, 1.0, 0.0]), 0.5), rtol=1e-10)
