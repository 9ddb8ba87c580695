"""The bound against entropies, the flow against exact densities of golden file 13."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.domains.box import Box
from edm_jax.likelihood import reflected_bound as likelihood
from edm_jax.likelihood.flow import flow_log_likelihood
from edm_jax.likelihood.levels import flow_levels
from edm_jax.reflected.sources import ReflectedCells, ReflectedPoints
from edm_jax.seeds import image_keys

UNIT = Box(0.0, 1.0)


def _levels(arrays):
    return ReflectedPoints(arrays["elbo/levels"], arrays["elbo/prob"], UNIT)


def _nodes(sigma, num=4000):
    """Midpoints and ``(K, num)`` kernel densities times their weight, for all levels."""
    x = (np.arange(num) + 0.5) / num
    return x, lambda y: np.exp(UNIT.log_kernel(x, np.full_like(x, y), sigma)) / num


def _integrand(source, sigma):
    """E |D - D*|^2 / sigma^2 over levels and the kernel, by quadrature."""
    x, density = _nodes(sigma)
    scaled = source.scaled_score(x, sigma)
    total = 0.0
    for y, w in zip(source.points, source.weights, strict=True):
        error = scaled - UNIT.scaled_score(x, np.full_like(x, y), sigma)
        total += w * float(np.sum(density(y) * error**2))
    return total


def test_terms_of_the_bound(golden, x64):
    """With the exact D and decoder they sum to the entropy; each is the golden one."""
    arrays = golden("13_reflected")
    source, ends = _levels(arrays), json.loads(str(arrays["elbo/settings"]))
    found = [_integrand(source, s) for s in arrays["elbo/sigma"]]
    np.testing.assert_allclose(found, arrays["elbo/integrand"], rtol=1e-7, atol=1e-12)
    # Gauss-Legendre in ln sigma; the integrand is analytic.
    low, high = math.log(ends["sigma_min"]), math.log(ends["sigma_max"])
    nodes, masses = np.polynomial.legendre.leggauss(40)
    taus = low + (high - low) * (nodes + 1) / 2
    integrand = jax.jit(lambda s: _integrand_traced(source, s))
    diffusion = (
        (high - low)
        / 2
        * sum(m * float(integrand(math.exp(t))) for m, t in zip(masses, taus, strict=True))
    )
    np.testing.assert_allclose(diffusion, arrays["elbo/diffusion"], atol=1e-7)
    decoders = {}
    for name, weights in [("decoder", source.weights), ("decoder_uniform", None)]:
        x, density = _nodes(ends["sigma_min"])
        decoders[name] = sum(
            w * float(np.sum(density(y) * likelihood.level_nats(
                jnp.asarray(x), jnp.full(x.shape, y), ends["sigma_min"], source.points,
                box=UNIT, weights=weights,
            )))
            for y, w in zip(source.points, source.weights, strict=True)
        )  # fmt: skip
        np.testing.assert_allclose(decoders[name], arrays[f"elbo/{name}"], atol=1e-8)
    prior = likelihood.prior_divergence(jnp.asarray(source.points)[:, None], 5.0, UNIT)
    np.testing.assert_allclose(prior, arrays["elbo/prior_kl"], atol=1e-15)
    entropy = -np.sum(source.weights * np.log(source.weights))
    np.testing.assert_allclose(entropy, arrays["elbo/entropy"], rtol=1e-12)
    np.testing.assert_allclose(diffusion + decoders["decoder"], entropy, atol=1e-7)


def _integrand_traced(source, sigma, num=4000):
    x = (jnp.arange(num) + 0.5) / num
    y = jnp.broadcast_to(jnp.asarray(source.points)[:, None], (len(source.points), num))
    x = jnp.broadcast_to(x[None], y.shape)
    density = jnp.exp(UNIT.log_kernel(x, y, sigma)) / num
    error = source.scaled_score(x, sigma) - UNIT.scaled_score(x, y, sigma)
    return jnp.asarray(source.weights) @ jnp.sum(density * jnp.square(error), axis=1)


def test_prior_divergence_bounds_the_divergence(x64):
    y, x = jnp.array([0.0, 0.2, 0.5]), (np.arange(2000) + 0.5) / 2000
    for sigma, slack in [(0.6, 0.2), (1.0, 1e-2), (1.5, 1e-8)]:
        log_q = [UNIT.log_kernel(x, np.full_like(x, value), sigma) for value in y]
        exact = np.array([np.mean(np.exp(q) * q) for q in log_q])
        bound = np.asarray(likelihood.prior_divergence(y[:, None], sigma, UNIT))
        assert np.all(bound >= exact - 1e-15)
        # chi^2 is twice the divergence to first order.
        np.testing.assert_allclose(bound, 2 * exact, rtol=slack, atol=1e-12)
    # 2.3e-10 of a coordinate at sigma = 1.5 (reflected.md, 7): half of the bound.
    assert bound.max() / 2 == pytest.approx(2.3e-10, rel=0.03)


def test_bound_estimates_the_entropy():
    """Monte Carlo on elements drawn from the source, in float32; D is exact."""
    levels, prob = np.array([-1.0, -1 / 3, 1 / 3, 1.0]), np.array([0.1, 0.4, 0.3, 0.2])
    source = ReflectedPoints(np.float32(levels), np.float32(prob))
    y = source.sample(jax.random.key(0), (24, 16, 16, 1))

    def denoise(x, sigma):
        return source.denoise(x, sigma)

    @jax.jit
    def run(y, keys):
        return likelihood.reflected_bound(
            denoise, y, keys, sigma_min=0.1, sigma_max=4.0, num_levels=32, levels=levels
        )

    bound = run(y, image_keys(range(24)))
    nats = -np.asarray(bound.log_likelihood) / 256
    # The sample's own entropy; its levels are not in their exact proportions.
    counts = np.bincount(np.abs(np.asarray(y).ravel()[:, None] - levels).argmin(1)) / y.size
    entropy = -np.sum(counts * np.log(prob))
    error = nats.std() / math.sqrt(24)
    # At s0 = 0.1 levels 2/3 apart are 3 deviations from being taken for one another: the
    # equal weights of the decoder cost less than 1e-3.
    assert abs(nats.mean() - entropy) < 4 * error + 1e-3
    assert error < 0.02
    assert np.all(bound.standard_error > 0)
    np.testing.assert_allclose(bound.prior, 0, atol=1e-4)
    # An image's number does not depend on its batch.
    alone = run(y[:24].at[1:].set(0.0), image_keys(range(24)))
    np.testing.assert_allclose(alone.log_likelihood[0], bound.log_likelihood[0], rtol=1e-5)


def test_flow_gives_the_exact_density(golden, x64):
    """Golden `bpd`: density of a dequantised source, by formula and by the flow on the lift."""
    arrays = golden("13_reflected")
    settings, table = json.loads(str(arrays["bpd/settings"])), arrays["bpd/table"]
    corners = np.stack(np.meshgrid(*2 * [np.arange(4) / 4], indexing="ij"), -1).reshape(-1, 2)
    source = ReflectedCells(corners, 0.25, table.ravel(), UNIT)
    x, low, high = arrays["bpd/x"], settings["sigma_min"], settings["sigma_max"]
    np.testing.assert_allclose(
        jax.jit(source.log_density)(x, low), arrays["bpd/log_density_exact"], atol=1e-9
    )
    np.testing.assert_allclose(jax.jit(source.denoise)(x, low), arrays["bpd/D"], atol=1e-9)
    lifted, prior = UNIT.lift(source.denoise), likelihood.UniformPrior(UNIT)
    levels = flow_levels(128, sigma_min=low, sigma_max=high)
    flow = jax.jit(lambda x: flow_log_likelihood(lifted, x, levels, num_probes=0, prior=prior))(x)
    log_density = flow.log_density
    # The order of RK4: 1e-6 at 128 steps.
    np.testing.assert_allclose(UNIT.fold(flow.latent * high), arrays["bpd/x_end"], atol=1e-6)
    np.testing.assert_allclose(log_density, arrays["bpd/log_density_ode"], atol=1e-6)
    np.testing.assert_allclose(log_density, arrays["bpd/log_density_exact"], atol=1e-6)
    np.testing.assert_allclose(flow.log_prior, 0, atol=1e-12)  # ln of the unit box
    bits = -log_density / (2 * math.log(2)) + math.log2(4)
    np.testing.assert_allclose(bits, arrays["bpd/bits_per_dim"], atol=1e-6)
    entropy = -np.sum(table * np.log2(table)) / 2
    np.testing.assert_allclose(entropy, arrays["bpd/entropy_bits_per_dim"], rtol=1e-9)
    # The blur by s0 costs 0.02 to 0.04 bits (reflected.md, 7).
    assert 0.015 < arrays["bpd/expected_bits_per_dim"] - entropy < 0.045


def test_uniform_prior_of_another_box():
    prior = likelihood.UniformPrior(Box(-1.0, 1.0))
    x = jnp.zeros((3, 4, 2))
    expected = 8 * (-math.log(2) + 0.5 * math.log(2 * math.pi) + math.log(10.0))
    np.testing.assert_allclose(prior.log_ratio(x, 10.0), expected, rtol=1e-6)


def test_bad_input():
    run = lambda y, **options: likelihood.reflected_bound(  # noqa: E731
        lambda x, sigma: x, y, image_keys([0]), **options
    )
    with pytest.raises(ValueError, match="data must lie in the box"):
        run(jnp.full((1, 2), 200.0))
    with pytest.raises(ValueError, match="num_levels must be an even integer >= 2"):
        run(jnp.zeros((1, 2)), num_levels=7)
    with pytest.raises(ValueError, match="they are in units of the box"):
        run(jnp.zeros((1, 2)), sigma_max=80.0)
