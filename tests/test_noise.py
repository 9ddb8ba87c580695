"""Noise distributions and weights: published values, ranges, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from edm_jax import noise


def test_published_edm_weights():
    weights = noise.edm_weight(jnp.array([0.01, 0.5, 1.0, 20.0]))
    np.testing.assert_allclose(weights, [10004, 8, 5, 4.0025], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "cdf"),
    [
        ("lognormal", lambda s: scipy.stats.norm(-1.2, 1.2).cdf(np.log(s))),
        ("loguniform", lambda s: np.log(s / 0.02) / np.log(100 / 0.02)),
        (
            "uniform_time",
            lambda s: (np.sqrt(0.01 + 39.8 * np.log1p(s**2)) - 0.1) / 19.9,
        ),
    ],
)
def test_continuous_distributions(name, cdf):
    """Kolmogorov-Smirnov against the distribution of Table 1."""
    sigma = noise.sample_sigma(noise.DISTRIBUTIONS[name](), jax.random.key(0), (4000,))
    statistic = scipy.stats.kstest(np.asarray(sigma, np.float64), cdf).statistic
    assert statistic < 1.63 / np.sqrt(4000)  # the 1 % point, for a fixed key


@pytest.mark.parametrize("name", sorted(noise.DISTRIBUTIONS))
def test_draws_depend_on_the_key_and_settings_may_be_traced(name):
    distribution = noise.DISTRIBUTIONS[name]()
    draw = jax.jit(lambda d, key: noise.sample_sigma(d, key, (16,)))
    first, again = draw(distribution, jax.random.key(0)), draw(distribution, jax.random.key(0))
    other = draw(distribution, jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other) and np.all(np.asarray(first) > 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", sorted(noise.WEIGHTS))
def test_weights_stay_finite(name, dtype):
    sigma = jnp.asarray([0.001, 0.02, 80.0, 20291.0], dtype)
    assert np.all(np.isfinite(np.asarray(noise.WEIGHTS[name]()(sigma), np.float32)))


@pytest.mark.parametrize("name", sorted(noise.DISTRIBUTIONS))
def test_ends_of_the_draws_give_finite_levels(name):
    ends = {"lognormal": [-6.0, 6.0], "discrete": [0, 999]}.get(name, [0.0, 1 - 2**-24])
    sigma = noise.DISTRIBUTIONS[name]().sigma(jnp.asarray(ends))
    assert np.all(np.isfinite(sigma)) and np.all(sigma > 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: noise.LogNormal(0.0, -1.0), "p_std must be positive"),
        (lambda: noise.LogNormal(np.nan), "p_mean must be finite"),
        (lambda: noise.UniformTime(beta_d=0.0), "beta_d must be positive"),
        (lambda: noise.UniformTime(eps_t=2.0), "eps_t must be positive and at most 1"),
        (lambda: noise.LogUniform(1.0, 0.5), "sigma_min must be below sigma_max, got 1.0 and 0.5"),
        (lambda: noise.DiscreteLevels([1.0, 2.0, 0.0]), "levels must be strictly decreasing"),
        (lambda: noise.EdmWeight(0.0), "sigma_data must be positive"),
    ],
)
def test_what_is_no_distribution_or_weight(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "draws", "levels"),
    [
        ("lognormal", [0.0, 1.0, -1.0], [np.exp(-1.2), 1.0, np.exp(-2.4)]),
        # sigma_vp at t = 1 and at t = 1e-5.
        ("uniform_time", [0.0, 1.0], [np.sqrt(np.expm1(10.05)), np.sqrt(np.expm1(1.000995e-6))]),
        ("loguniform", [0.0, 0.5, 1.0], [0.02, np.sqrt(2.0), 100.0]),
        ("discrete", [0, 991, 999], [20291, 0.00642, 0.00642]),
    ],
)
def test_defaults_are_those_of_table_1(name, draws, levels, x64):
    found = np.asarray(noise.DISTRIBUTIONS[name]().sigma(jnp.asarray(draws)))
    if name == "discrete":  # its ends; the table has its own tests
        found, levels = found[[0, 2]], [levels[0], levels[2]]
    # 1e-3: the digits of the discrete levels; 1e-6 elsewhere, in double precision.
    np.testing.assert_allclose(found, levels, rtol=1e-3 if name == "discrete" else 1e-6)


def test_weights_of_other_data():
    np.testing.assert_allclose(noise.EdmWeight(2.0)(jnp.float32(0.5)), 4 + 0.25, rtol=1e-6)
    np.testing.assert_allclose(noise.EdmWeight()(jnp.float32(0.5)), 8.0, rtol=1e-6)
    np.testing.assert_allclose(noise.InverseSquareWeight()(jnp.float32(4.0)), 1 / 16, rtol=1e-6)


@pytest.mark.parametrize("ends", [(1.0, 1.0), ([1.0, 2.0], [2.0, 1.0])])
def test_empty_ranges_are_refused(ends):
    with pytest.raises(ValueError, match="sigma_min must be below sigma_max"):
        noise.LogUniform(*map(np.asarray, ends))


def test_discrete_levels_are_drawn_evenly_and_zero_never():
    distribution = noise.DiscreteLevels(np.array([7.0, 3.0, 2.0, 0.0], np.float32))
    sigma = np.asarray(noise.sample_sigma(distribution, jax.random.key(0), (1000, 3)))
    counts = [np.sum(sigma == level) for level in (7, 3, 2)]
    assert sum(counts) == sigma.size
    assert scipy.stats.chisquare(counts).pvalue > 0.01  # for a fixed key
