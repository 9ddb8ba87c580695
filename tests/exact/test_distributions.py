"""Exact distributions against closed forms, SciPy, autodiff and the golden ideal denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from edm_jax import exact

EVENTS = [(), (3,), (2, 3, 1)]


def _beds(event):
    rng = np.random.default_rng(len(event))
    return {
        "gaussian": exact.Gaussian(rng.normal(size=event), rng.uniform(0.2, 1.0, size=event)),
        "mixture": exact.GaussianMixture(
            rng.normal(size=(4, *event)), rng.uniform(0.1, 0.5, size=4), [1.0, 2.0, 3.0, 4.0]
        ),
        "finite": exact.FiniteData(rng.normal(size=(6, *event))),
    }


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", ["gaussian", "mixture", "finite"])
def test_score_is_gradient_and_denoiser_follows_tweedie(event, name, x64):
    bed = _beds(event)[name]

    @jax.jit
    def evaluate(x, sigma):
        gradient = jax.grad(lambda x: jnp.sum(bed.log_density(x, sigma)))(x)
        return bed.denoise(x, sigma), bed.score(x, sigma), bed.log_density(x, sigma), gradient

    for sigma in (0.05, 1.0, 80.0):
        x = jnp.asarray(np.random.default_rng(1).normal(size=(5, *event))) * (1 + sigma)
        denoised, score, log_density, gradient = evaluate(x, sigma)
        np.testing.assert_allclose(score, gradient, rtol=1e-8, atol=1e-12)
        # D = x + sigma^2 score, which loses about 2 log10(sigma) of 16 digits.
        np.testing.assert_allclose(denoised, x + sigma**2 * gradient, rtol=1e-9, atol=1e-9)
        assert log_density.shape == (5,)
        for one, each in zip(evaluate(x, sigma), evaluate(x, np.full(5, sigma)), strict=True):
            # The same numbers, grouped differently by the compiler.
            np.testing.assert_allclose(one, each, rtol=1e-11, atol=1e-14)


def test_densities_match_scipy(x64):
    bed = _beds((3,))["mixture"]
    x, sigma = np.random.default_rng(2).normal(size=(7, 3)), 0.7
    weights = np.array(bed.weights) / np.sum(bed.weights)
    density = sum(
        w * scipy.stats.multivariate_normal(m, (s**2 + sigma**2) * np.eye(3)).pdf(x)
        for w, m, s in zip(weights, bed.means, bed.stds, strict=True)
    )
    np.testing.assert_allclose(np.exp(bed.log_density(x, sigma)), density, rtol=1e-12)
    finite = _beds((3,))["finite"]
    density = np.mean(
        [scipy.stats.multivariate_normal(m, sigma**2 * np.eye(3)).pdf(x) for m in finite.points],
        axis=0,
    )
    np.testing.assert_allclose(np.exp(finite.log_density(x, sigma)), density, rtol=1e-12)
    gaussian = exact.Gaussian(np.array([1.0, 2.0]), 0.5)
    expected = scipy.stats.norm([1.0, 2.0], np.hypot(0.5, sigma)).logpdf(x[:, :2]).sum(1)
    np.testing.assert_allclose(gaussian.log_density(x[:, :2], sigma), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "mixture", "finite"])
def test_flow_solves_the_probability_flow_ode(name, x64):
    """Against an adaptive eighth-order solution of dx/dsigma = (x - D) / sigma."""
    bed = _beds(())[name]
    x = np.array([-200.0, -70.0, -3.0, 0.1, 30.0, 160.0])
    denoise = jax.jit(bed.denoise)
    solution = scipy.integrate.solve_ivp(
        lambda tau, x: np.asarray(x - denoise(x, np.exp(tau))),
        (np.log(80.0), np.log(0.1)),
        x,
        method="DOP853",
        rtol=1e-11,
        atol=1e-11,
    )
    flow = jax.jit(lambda x: bed.flow(x, 80.0, 0.1))
    # 1e-7: the reference solution's own error, amplified where trajectories part.
    np.testing.assert_allclose(flow(x), solution.y[:, -1], rtol=1e-7, atol=1e-7)
    slope = jax.grad(lambda x: jnp.sum(flow(x)))(x)
    difference = (flow(x + 1e-3) - flow(x - 1e-3)) / 2e-3
    np.testing.assert_allclose(slope, difference, rtol=1e-5)  # central differences


def test_quantiles_invert_the_distribution_function(x64):
    bed, p = _beds(())["mixture"], np.array([1e-6, 0.1, 0.5, 0.9, 1 - 1e-6])
    weights = np.array(bed.weights) / np.sum(bed.weights)
    for sigma in (0.0, 0.7):
        x = np.asarray(jax.jit(bed.quantile)(p, sigma))
        below = sum(
            w * scipy.stats.norm(m, np.hypot(s, sigma)).cdf(x)
            for w, m, s in zip(weights, bed.means, bed.stds, strict=True)
        )
        np.testing.assert_allclose(below, p, rtol=1e-9)


def test_single_point_flow_is_a_straight_line(x64):
    bed = exact.FiniteData(np.ones((1, 2, 2)))
    x = np.arange(4.0).reshape(1, 2, 2)
    np.testing.assert_allclose(bed.flow(x, 2.0, 0.5), 1 + (x - 1) / 4, rtol=1e-15)


def test_flow_of_points_to_zero_ends_on_them(x64):
    bed = exact.FiniteData(np.array([0.5, -1.0, 2.0]))
    # Under p(x; 80) a third of the probability lies below each next pair of points.
    edges = 0.5 + 80 * np.array([-0.4307272992954576, 0.4307272992954576])  # ndtri(1/3), ndtri(2/3)
    x = jnp.array([-300.0, edges[0] - 1, edges[0] + 1, edges[1] - 1, edges[1] + 1, 300.0])
    np.testing.assert_array_equal(bed.flow(x, 80.0, 0.0), [-1.0, -1.0, 0.5, 0.5, 2.0, 2.0])
    np.testing.assert_allclose(bed.flow(x, 80.0, 1e-3), bed.flow(x, 80.0, 0.0), atol=5e-3)


def test_flow_of_images_is_refused():
    with pytest.raises(ValueError, match="scalar data"):
        _beds((3,))["mixture"].flow(jnp.zeros((1, 3)), 1.0, 0.5)


def test_chunks_give_the_same_answer(x64, golden):
    archive = golden("03_samplers")
    points = archive["data_points"]
    x = archive["latents"].astype(np.float64) * 0.7
    whole = exact.FiniteData(points)
    for chunk in (1, 2, len(points)):
        parts = exact.FiniteData(points, chunk=chunk)
        # Reordered sums only.
        np.testing.assert_allclose(parts.denoise(x, 0.7), whole.denoise(x, 0.7), rtol=1e-13)
        density = whole.log_density(x, 0.7)
        np.testing.assert_allclose(parts.log_density(x, 0.7), density, rtol=1e-13)
    with pytest.raises(ValueError, match="chunk must divide"):
        exact.FiniteData(points, chunk=4).denoise(x, 1.0)


def test_ideal_denoiser_reproduces_golden_steps(x64, golden):
    """x_1 of the two-step golden run gives D(x_0; 80) through the last Euler step."""
    archive = golden("03_samplers")
    bed = exact.FiniteData(archive["data_points"])
    x = archive["edm/det_N2/x_traj"]
    sigma = archive["edm/det_N2/t_steps"]
    np.testing.assert_allclose(bed.denoise(x[1], sigma[1]), x[2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["gaussian", "mixture", "finite"])
def test_finite_at_both_ends_of_the_range(name, dtype):
    bed = _beds((3,))[name]
    evaluate = jax.jit(lambda x, sigma: (bed.denoise(x, sigma), bed.log_density(x, sigma)))
    for sigma in (0.002, 80.0, 20291.0):
        x = (jnp.ones((2, 3)) * max(sigma, 1)).astype(dtype)
        assert all(np.all(np.isfinite(value)) for value in evaluate(x, sigma))


@pytest.mark.parametrize("name", ["gaussian", "mixture", "finite"])
def test_samples_have_the_moments_of_the_distribution(name):
    bed = _beds((2,))[name]
    x = bed.sample(jax.random.key(0), (20000,))
    # D at a huge noise level is the mean of the data.
    mean = bed.denoise(jnp.zeros((1, 2)), 1e4)[0]
    # 20000 draws of standard deviation below 2: four standard errors are 0.06.
    np.testing.assert_allclose(x.mean(0), mean, atol=0.06)
    # Of products, of variance below 8: four standard errors are 0.08.
    np.testing.assert_allclose(np.cov(x.T), _covariance(bed), atol=0.08)


def _covariance(bed):
    """That of the data, in closed form."""
    if isinstance(bed, exact.Gaussian):
        return np.diag(np.square(bed.std))
    points = np.asarray(bed.points if isinstance(bed, exact.FiniteData) else bed.means)
    weights = np.asarray(getattr(bed, "weights", np.ones(len(points))))
    between = np.cov(points.T, aweights=weights, ddof=0)
    within = np.average(np.square(getattr(bed, "stds", np.zeros(len(points)))), weights=weights)
    return between + within * np.eye(len(between))


def test_components_are_chosen_and_blurred_independently():
    """One draw from each key: the noise within a component does not know which one it is."""
    means, stds, weights = np.array([-50.0, 0.0, 50.0]), np.array([0.5, 1, 2]), [0.2, 0.3, 0.5]
    bed = exact.GaussianMixture(means, stds, np.array(weights) * 7)
    x = np.asarray(jax.vmap(bed.sample)(jax.random.split(jax.random.key(1), 5000)))
    chosen = np.argmin(np.abs(x[:, None] - means), axis=1)
    for k, weight in enumerate(weights):
        own = (x[chosen == k] - means[k]) / stds[k]
        # For a fixed key: the 1 % points.
        assert scipy.stats.binomtest(len(own), 5000, weight).pvalue > 0.01
        assert scipy.stats.kstest(own, "norm").pvalue > 0.01
