"""The variational bound: recorded terms of a discrete toy, closed forms, its stated error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, precond, seeds
from edm_jax.likelihood.bound import elbo
from edm_jax.likelihood.levels import known_levels
from tests.support import likelihood_golden as recorded

COPIES = 256


@pytest.fixture(scope="module")
def toy():
    """Bounds of the eight integers of `discrete1`, COPIES of each, at the recorded s0."""
    data = recorded.archive()
    levels, probs = data["discrete1/levels"], data["discrete1/probs"]
    spikes = exact.GaussianMixture(levels[:, None], 0.0, probs)
    x = np.repeat(levels, COPIES)[:, None]
    keys = seeds.image_keys(range(len(x)))
    sigma = float(data["discrete1/sigma_min"][3])
    with jax.enable_x64(True):
        bound = jax.jit(
            lambda x, keys: elbo(
                spikes.denoise, x, keys, sigma_min=sigma, num_levels=64, levels=levels
            )
        )(jnp.asarray(x), keys)
    expected = data["discrete1/vlb_terms"][3]
    return jax.tree.map(lambda a: np.asarray(a).reshape(8, COPIES), bound), probs, expected


def test_recorded_terms(toy):
    bound, probs, (prior, diffusion, _, reconstruction) = toy
    np.testing.assert_allclose(probs @ bound.prior.mean(1), prior, rtol=1e-10)
    np.testing.assert_allclose(probs @ bound.reconstruction.mean(1), reconstruction, rtol=1e-10)
    errors = bound.diffusion.std(1, ddof=1) / np.sqrt(COPIES)
    error = np.sqrt(np.sum((probs * errors) ** 2))
    assert error < 0.02 * diffusion  # so that the next line says something
    assert abs(probs @ bound.diffusion.mean(1) - diffusion) < 4 * error
    total = -(bound.prior + bound.diffusion + bound.reconstruction)
    np.testing.assert_allclose(bound.log_likelihood, total, rtol=1e-12)


def test_stated_error_is_that_of_repetition(toy):
    bound, *_ = toy
    seen = bound.log_likelihood.std(1, ddof=1)
    stated = np.sqrt(np.mean(np.square(bound.standard_error), axis=1))
    # Neighbouring strata also differ in their means, so the stated one is not smaller; 256
    # copies know a deviation to 4 / sqrt(512) = 18 per cent, with heavy tails a little worse.
    assert np.all(stated > 0.75 * seen) and np.all(stated < 1.6 * seen), stated / seen


def test_half_the_levels_is_unbiased(toy):
    bound, *_ = toy
    difference = bound.step_difference
    error = difference.std(1, ddof=1) / np.sqrt(COPIES)
    assert np.all(np.abs(difference.mean(1)) < 4.5 * error) and np.all(error > 0)


def test_gaussian_in_closed_form(x64):
    """E|x - D|^2 / sigma^2 of a Gaussian, integrated over ln sigma by quadrature in NumPy."""
    mean, var, low, high = 0.3, 0.25, 0.01, 80.0
    x, count = 0.9, 2000
    tau = np.linspace(np.log(low), np.log(high), 20001)
    sigma2 = np.exp(2 * tau)
    a = var / (var + sigma2)
    integrand = (1 - a) ** 2 * (x - mean) ** 2 / sigma2 + a**2
    diffusion = np.sum((integrand[1:] + integrand[:-1]) / 2) * (tau[1] - tau[0])
    bed = exact.Gaussian(mean, var**0.5)
    keys = seeds.image_keys(range(count))
    bound = jax.jit(
        lambda x: elbo(bed.denoise, x, keys, sigma_min=low, sigma_max=high, num_levels=16)
    )(jnp.full(count, x))
    error = float(bound.diffusion.std(ddof=1)) / np.sqrt(count)
    assert error < 0.02 * diffusion
    assert abs(float(bound.diffusion.mean()) - diffusion) < 4 * error
    np.testing.assert_allclose(bound.prior, 0.5 * (x / high) ** 2, rtol=1e-12)
    np.testing.assert_allclose(
        bound.reconstruction, 0.5 * np.log(2 * np.pi * np.e * low**2), rtol=1e-12
    )


def test_table_of_levels_and_independence():
    """Only levels of the table are asked for, and an image does not see its batch."""
    table = known_levels(precond.iddpm_preconditioning()).astype(np.float32)
    seen = []

    def denoise(x, sigma):
        jax.debug.callback(lambda s: seen.append(np.asarray(s)), sigma)
        return x / (1 + jnp.square(sigma)).reshape(-1, 1)

    x, keys = np.ones((3, 2), np.float32), seeds.image_keys([7, 8, 9])
    low, high = float(table[0]), float(table[-1])
    run = lambda x, keys: elbo(  # noqa: E731
        denoise, x, keys, sigma_min=low, sigma_max=high, num_levels=8, table=table
    )
    together = jax.jit(run)(x, keys)
    jax.effects_barrier()
    levels = np.concatenate(seen)
    assert np.isin(levels, table).all() and len(np.unique(levels)) > 12
    alone = jax.jit(run)(x[1:2], keys[1:2])
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a[0], b[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_levels": 7}, "even integer >= 2, got 7"),
        ({"sigma_min": 1.0, "sigma_max": 0.5}, "sigma_max must be above 1"),
        ({"sigma_min": 0.0}, "sigma_min must be positive"),
        ({"key": seeds.image_keys([1, 2, 3])}, "one key per image"),
    ],
)
def test_bad_input(arguments, message):
    call = {"key": seeds.image_keys([1]), **arguments}
    with pytest.raises(ValueError, match=message):
        elbo(lambda x, sigma: x, jnp.ones((1, 2)), call.pop("key"), **call)
