"""Traces of Jacobians: exact, by recorded probes, their variance, without forward mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, seeds
from edm_jax.likelihood import divergence
from edm_jax.likelihood.flow import flow_log_likelihood
from tests.support import likelihood_golden as recorded


@pytest.fixture(scope="module")
def data():
    return recorded.archive()


@pytest.mark.parametrize("name", recorded.NAMES)
def test_recorded_traces(data, name, x64):
    """Denoiser, trace and v^T J v at seven noise levels."""
    denoise, probe = recorded.denoiser(data, name), data[f"{name}/grid/probe"].astype(float)

    @jax.jit
    def evaluate(x, sigma):
        fn = lambda x: denoise(x, sigma)  # noqa: E731
        return (
            *divergence.exact_trace()(fn, x),
            *divergence.hutchinson_trace(jnp.asarray(probe)[None])(fn, x),
        )

    for i, sigma in enumerate(data[f"{name}/grid/sigma"]):
        value, trace, again, estimate = evaluate(data[f"{name}/grid/x"][i], sigma)
        # Of size 1; box densities differentiate twice through small numbers.
        atol = 1e-7 if "box" in name else 1e-10
        np.testing.assert_allclose(value, data[f"{name}/grid/D"][i], atol=atol, rtol=1e-9)
        np.testing.assert_allclose(trace[0], data[f"{name}/grid/trace"][i], atol=atol, rtol=1e-9)
        np.testing.assert_allclose(
            estimate[0], data[f"{name}/grid/probe_J_probe"][i], atol=atol, rtol=1e-9
        )
        np.testing.assert_allclose(again, value, rtol=1e-12)


@pytest.mark.parametrize("name", ["gauss16", "mix8"])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_recorded_probes_along_the_trajectory(data, name, kind, x64):
    probes = jnp.asarray(data[f"{name}/hutchinson/{kind}/probes"], float)
    denoise = recorded.denoiser(data, name)
    result = jax.jit(
        lambda x, sigmas: flow_log_likelihood(
            denoise, x, sigmas, trace=divergence.hutchinson_trace(probes)
        )
    )(data[f"{name}/flow/x0"], recorded.levels(data, name, 64))
    expected = data[f"{name}/hutchinson/{kind}/delta"]
    np.testing.assert_allclose(result.volume, expected.mean(axis=0), rtol=1e-9)
    error = expected.std(axis=0, ddof=1) / np.sqrt(len(expected))
    np.testing.assert_allclose(result.standard_error, error, rtol=1e-7)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_probes_are_unbiased_with_the_stated_variance(data, kind, x64):
    """512 probes of v^T M v with the recorded integral M of J, against its trace and 2 |M_s|^2."""
    matrix = jnp.asarray(data["mix8/hutchinson/integrated_jacobian"][0])
    count = 512
    shape = (count, 8)
    probes = divergence.probe_vectors(seeds.image_keys(range(count)), 1, shape, kind=kind)
    trace = divergence.hutchinson_trace(probes.astype(float))
    _, estimates = trace(lambda x: x @ matrix.T, jnp.zeros(shape))
    deviation = float(data[f"mix8/hutchinson/std_{kind}"][0])
    mean, std = float(estimates.mean()), float(estimates.std(ddof=1))
    # Four standard errors of the mean, and 1 / sqrt(2 count) of the deviation with a kurtosis
    # of up to 12 (these are quadratic forms): four times 0.11.
    assert abs(mean - float(jnp.trace(matrix))) < 4 * deviation / np.sqrt(count)
    assert std == pytest.approx(deviation, rel=0.44)


def test_random_signs_are_exact_for_a_diagonal_jacobian(data, x64):
    x = jnp.asarray(data["diag64/flow/x0"])
    sigmas = recorded.levels(data, "diag64", 16)
    bed = recorded.denoiser(data, "diag64")
    keys = seeds.image_keys(range(len(x)))
    run = jax.jit(
        lambda x, n: flow_log_likelihood(bed, x, sigmas, key=keys, num_probes=n),
        static_argnums=1,
    )
    probed, whole = run(x, 2), run(x, 0)
    np.testing.assert_allclose(probed.log_density, whole.log_density, rtol=1e-12)
    np.testing.assert_allclose(probed.standard_error, 0, atol=1e-10)
    assert np.all(whole.standard_error == 0)


def test_blocks_change_nothing(x64):
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(7, 7)))
    x = jnp.ones((2, 7))
    for block in (1, 3, 7, 100):
        _, trace = divergence.exact_trace(block)(lambda x: jnp.tanh(x @ matrix), x)
        jacobian = jax.jacobian(lambda x: jnp.tanh(x @ matrix))(x[0])
        np.testing.assert_allclose(trace[0], jnp.trace(jacobian), rtol=1e-12)


@pytest.mark.parametrize("num_probes", [0, 1, 2])
def test_function_without_forward_mode(num_probes, x64):
    """Such as a network that recomputes its activations: J^T has the same trace."""
    bed = exact.GaussianMixture(np.array([[0.3, -0.2, 0.5], [-0.4, 0.6, 0.1]]), 0.3)
    plain = lambda x: bed.denoise(x, 0.7)  # noqa: E731
    reverse = jax.custom_vjp(plain)
    reverse.defvjp(lambda x: jax.vjp(plain, x), lambda pull_back, g: pull_back(g))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)))
    trace = divergence.default_trace(x.shape, seeds.image_keys(range(4)), num_probes)
    for a, b in zip(jax.jit(trace, static_argnums=0)(reverse, x), trace(plain, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_probe_belongs_to_its_image():
    keys = seeds.image_keys([5, 7, 9])
    probes = divergence.probe_vectors(keys, 2, (3, 4, 4, 1))
    assert set(np.unique(probes)) == {-1.0, 1.0}
    alone = divergence.probe_vectors(keys[1:2], 3, (1, 4, 4, 1))
    np.testing.assert_array_equal(alone[:2, 0], probes[:, 1])
    assert not np.array_equal(alone[0], alone[1])


def test_bad_arguments():
    keys = seeds.image_keys(range(2))
    with pytest.raises(ValueError, match="need a key for each image"):
        divergence.default_trace((2, 32, 32, 3), None, None)
    with pytest.raises(ValueError, match="num_probes must be an integer >= 1, got 0"):
        divergence.probe_vectors(keys, 0, (2, 3))
    with pytest.raises(ValueError, match="kind of probe"):
        divergence.probe_vectors(keys, 1, (2, 3), kind="uniform")
    with pytest.raises(ValueError, match=r"shape \(P, 2, 3\), got \(2, 3\)"):
        divergence.hutchinson_trace(jnp.ones((2, 3)))(lambda x: x, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="block"):
        divergence.exact_trace(0)
