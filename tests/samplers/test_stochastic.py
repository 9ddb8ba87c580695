"""Churn at the ends of its range, its noise in every step, and levels that are rounded down."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, grids, precond, samplers, seeds
from edm_jax.samplers import Churn, stochastic

BED = exact.Gaussian(0.3, 0.5)
CAP = math.sqrt(2) - 1


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_both_ends_of_the_range_churn(array):
    """EDM Algorithm 2, line 2: gamma is not 0 if S_tmin <= t_i <= S_tmax."""
    sigma = array(np.float32([4.0, 2.0, 1.5, 0.5, 0.25]))
    gamma = Churn(2.0, 0.5, 2.0).gamma(sigma, 10)
    np.testing.assert_allclose(gamma, [0, 0.2, 0.2, 0.2, 0], rtol=1e-6)
    single = Churn(2.0, 1.5, 1.5).gamma(sigma, 10)
    np.testing.assert_allclose(single, [0, 0, 0.2, 0, 0], rtol=1e-6)
    assert single.dtype == jnp.float32


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_never_more_new_noise_than_old(array):
    sigma = array(np.float32([4.0, 1.0]))
    np.testing.assert_allclose(Churn(100.0).gamma(sigma, 10), CAP, rtol=1e-6)
    np.testing.assert_allclose(Churn(4.0).gamma(sigma, 10), 0.4, rtol=1e-6)  # below the cap
    np.testing.assert_allclose(Churn(4.3).gamma(sigma, 10), CAP, rtol=1e-6)


def test_ranges_of_one_level_are_ranges():
    assert Churn(1.0, 2.0, 2.0).s_tmin == 2.0
    with pytest.raises(ValueError, match=r"s_tmin <= s_tmax, got 3\.0 and 2\.0"):
        Churn(1.0, 3.0, 2.0)


def test_raised_levels():
    """sigma_hat = (1 + gamma) sigma; the noise has the difference of the variances."""
    for xp in (np, jnp):
        level, std = stochastic.raise_level(xp, xp.asarray([3.0, 2.0]), xp.asarray([0.25, 0.0]))
        np.testing.assert_allclose(level, [3.75, 2.0], rtol=1e-6)
        np.testing.assert_allclose(std, [2.25, 0.0], rtol=1e-6)  # a 3-4-5 triangle


def test_added_noise():
    x, noise = jnp.array([1.0, -2.0]), jnp.array([0.5, 2.0])
    noisier, level = stochastic.add_noise(x, 3.0, 0.25, 2.0, noise)
    np.testing.assert_allclose(level, 3.75, rtol=1e-6)
    np.testing.assert_allclose(noisier, [1 + 4.5 * 0.5, -2 + 4.5 * 2.0], rtol=1e-6)


def test_a_level_that_is_rounded_down_gets_no_noise():
    """Its variance would be negative."""
    table = jnp.array([4.0, 2.0, 1.0, 0.0])
    rounding = lambda sigma: precond.round_to_levels(sigma, table)[0]  # noqa: E731
    x = jnp.array([1.0, -2.0])
    same, level = stochastic.add_noise(x, 2.5, 0.1, 1.0, jnp.ones(2), rounding)
    np.testing.assert_array_equal(same, x)
    assert float(level) == 2.0
    raised, level = stochastic.add_noise(x, 2.0, 0.6, 1.0, jnp.ones(2), rounding)
    assert float(level) == 4.0
    np.testing.assert_allclose(raised, x + math.sqrt(16 - 4), rtol=1e-6)


def _by_hand(x, sigmas, churn, noise):
    """EDM Algorithm 2 in NumPy, as printed."""
    num_steps = len(sigmas) - 1
    denoise = lambda x, sigma: 0.3 + 0.25 / (0.25 + sigma**2) * (x - 0.3)  # noqa: E731
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        inside = churn.s_tmin <= now <= churn.s_tmax
        gamma = min(churn.s_churn / num_steps, CAP) if inside else 0.0
        hat = now + gamma * now
        x = x + math.sqrt(hat**2 - now**2) * churn.s_noise * noise[i]
        d = (x - denoise(x, hat)) / hat
        x_next = x + (after - hat) * d
        if after > 0:
            x_next = x + (after - hat) * (0.5 * d + 0.5 * (x_next - denoise(x_next, after)) / after)
        x = x_next
    return x


@pytest.mark.parametrize("sampler", [samplers.sample_stochastic, samplers.sample_general])
@pytest.mark.parametrize("num_steps", [1, 2, 6])
def test_every_step_has_noise_of_its_own(sampler, num_steps, x64):
    """The last one too; from keys as from recorded draws."""
    sigmas = np.append(np.geomspace(8.0, 0.5, num_steps), 0.0)
    churn = Churn(0.3 * num_steps, 0.5, 8.0, 1.1)  # every level, the ends among them
    keys = seeds.image_keys([4, 9])
    x = np.array([[1.0, -0.5], [0.2, 2.0]]) * 8
    noise = [np.float64(seeds.churn_noise(keys, i, x.shape)) for i in range(num_steps)]
    expected = _by_hand(x, sigmas, churn, noise)
    run = functools.partial(sampler, BED.denoise, x, sigmas, churn=churn)
    # The noise itself is float32, where a compiler may fuse its formula otherwise.
    np.testing.assert_allclose(run(key=keys), expected, rtol=1e-5)
    table = jnp.asarray(np.stack(noise))
    np.testing.assert_allclose(run(noise_fn=lambda i: table[i]), expected, rtol=1e-10)
    moved = jax.jit(lambda s: sampler(BED.denoise, x, s, keys, churn=churn))(sigmas)
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_raised_levels_are_those_of_the_network(x64):
    """What the network sees is in its table, whether the grid is known or traced."""
    made = precond.iddpm_preconditioning()
    sigmas = grids.make_sigmas("edm", 5, preconditioning=made)
    x = jnp.ones((1, 2)) * sigmas[0]
    for sampler in (samplers.sample_stochastic, samplers.sample_general):
        seen = []

        def denoise(x, sigma, seen=seen):
            jax.debug.callback(lambda s: seen.append(float(s)), sigma)
            return BED.denoise(x, sigma)

        result = sampler(
            denoise, x, sigmas, jax.random.key(0), churn=Churn(2.0), round_sigma=made.round_sigma
        )
        jax.block_until_ready(result)
        jax.effects_barrier()
        rounded = np.asarray(made.round_sigma(jnp.asarray(seen)))
        # Callbacks see single precision.
        np.testing.assert_allclose(seen, rounded, rtol=1e-6)
        assert max(seen) > sigmas[0] * 1.01


def test_without_settings_nothing_churns():
    plain = Churn()
    assert (plain.s_churn, plain.s_tmin, plain.s_tmax, plain.s_noise) == (0, 0, math.inf, 1)
    sigma = np.array([1e6, 1.0, 1e-6])
    np.testing.assert_array_equal(Churn(4.0).gamma(sigma, 10), 0.4)


def test_gradients_are_finite_where_nothing_churns(x64):
    """The root of the added variance has no derivative at 0."""

    def result(s_churn):
        sigmas, keys = grids.karras_sigmas(3), seeds.image_keys([0])
        x = jnp.ones((1, 2)) * sigmas[0]
        return jnp.sum(samplers.sample_stochastic(BED.denoise, x, sigmas, keys, Churn(s_churn)))

    assert np.isfinite(jax.grad(result)(0.0))
