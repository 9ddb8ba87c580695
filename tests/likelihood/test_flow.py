"""Log densities through the flow: closed forms, recorded values, precision, independence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import adapters, exact, seeds
from edm_jax.guidance import classifier_free, static_threshold
from edm_jax.likelihood import flow, levels
from edm_jax.likelihood.flow import Prior, flow_log_likelihood
from tests.support import likelihood_golden as recorded

# Largest error of 64 steps of rk4 in the spec's table, bits per dimension, with room for others.
STEP_ERROR = 2e-4
MIXTURE = exact.GaussianMixture(
    np.random.default_rng(0).normal(size=(3, 2, 2, 1)), [0.2, 0.3, 0.5], [0.5, 0.3, 0.2]
)


@pytest.fixture(scope="module")
def data():
    return recorded.archive()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(6, 2, 2, 1)).astype(np.float32)


@pytest.mark.parametrize("name", ["mix2", "gauss16", "finite12", "box2"])
def test_recorded_densities(data, name, x64):
    """The converged answer, the exact density behind it, and the prior that parts them."""
    denoise, x = recorded.denoiser(data, name), data[f"{name}/flow/x0"]
    sigmas = recorded.levels(data, name, 64)
    get = lambda key: np.asarray(data[f"{name}/flow/{key}"])  # noqa: E731
    prior = Prior(data[f"{name}/data_mean"], data[f"{name}/data_var"])
    run = jax.jit(
        lambda x, prior: flow_log_likelihood(denoise, x, sigmas, prior=prior), static_argnums=()
    )
    plain, moments = run(x, Prior(0.0, 0.0)), run(x, prior)
    atol = STEP_ERROR * x.shape[1] * np.log(2)
    np.testing.assert_allclose(plain.log_density, get("log_likelihood"), atol=atol)
    np.testing.assert_allclose(plain.log_prior, get("log_prior"), atol=atol)
    np.testing.assert_allclose(plain.latent, get("latent"), atol=1e-4)  # 4th order, as above
    np.testing.assert_allclose(moments.log_prior, get("log_prior_moments"), atol=atol)
    # The remaining error of a prior with the data's moments: up to 1e-3 nats in the records.
    np.testing.assert_allclose(moments.log_density, get("log_density"), atol=atol + 2e-3)
    np.testing.assert_allclose(plain.volume, get("delta")[-1], atol=atol)


def test_gaussian_in_closed_form(x64):
    """x(S) and the volume of spec section 2, to the fourth-order error of 512 steps."""
    bed = exact.Gaussian(np.array([0.3, -0.2, 0.5]), np.array([0.1, 0.5, 2.0]))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)))
    sigmas = levels.flow_levels(512)
    result = jax.jit(lambda x, s: flow_log_likelihood(bed.denoise, x, s))(x, sigmas)
    low, high, var = sigmas[0], sigmas[-1], np.asarray(bed.std) ** 2
    volume = 0.5 * np.sum(np.log((var + high**2) / (var + low**2)))
    moved = bed.mean[None] + (x - bed.mean[None]) * np.sqrt((var + high**2) / (var + low**2))[None]
    # h^4 with h = 0.02 and slopes of size 1: 1e-7; measured 6e-8 (volume) and 4e-9.
    np.testing.assert_allclose(result.volume, volume, atol=3e-7)
    np.testing.assert_allclose(result.latent, moved / high, atol=3e-7)
    prior = -0.5 * np.sum(np.square(moved / high), axis=1) - 1.5 * np.log(2 * np.pi * high**2)
    np.testing.assert_allclose(result.log_density, prior + volume, atol=1e-6)


@pytest.mark.parametrize("event", [(), (1,), (2, 2, 1)])
def test_any_shape(event, x64):
    x = jnp.asarray(np.random.default_rng(3).normal(size=(3, *event))) * 0.5
    bed = exact.Gaussian(np.zeros(event), np.full(event, 0.5))
    result = jax.jit(lambda x: flow_log_likelihood(bed.denoise, x))(x)
    assert result.latent.shape == x.shape and result.calls.tolist() == [128] * 3
    expected = bed.log_density(x, levels.SIGMA_MIN)
    # 32 steps: the tabulated 1e-3 bits, for up to 4 elements; the mean is 0, the prior exact to
    # (std / S)^2.
    np.testing.assert_allclose(result.log_density, expected, atol=4e-3)


def test_difference_to_half_the_steps_bounds_the_error(x64):
    x = jnp.asarray(np.random.default_rng(4).normal(size=(5, 2, 2, 1)))
    run = jax.jit(
        lambda x, s: flow_log_likelihood(MIXTURE.denoise, x, s, compare_steps=True),
    )
    fine, result = run(x, levels.flow_levels(256)), run(x, levels.flow_levels(32))
    half = jax.jit(lambda x, s: flow_log_likelihood(MIXTURE.denoise, x, s))(
        x, levels.flow_levels(16)
    )
    expected = result.log_density - half.log_density
    np.testing.assert_allclose(result.step_difference, expected, atol=1e-9)
    assert np.all(np.isnan(half.step_difference))
    error = np.abs(result.log_density - fine.log_density)
    assert np.all(error < np.abs(result.step_difference) / 4)  # of order 4 it is a fifteenth


def test_float32_against_float64(images):
    """The difference is 1e-5 nats and less per dimension; 1e-4 is allowed."""
    sigmas = levels.flow_levels(32)
    run = jax.jit(lambda x, s: flow_log_likelihood(MIXTURE.denoise, x, s))
    single = run(images, sigmas)
    assert single.log_density.dtype == jnp.float32
    with jax.enable_x64(True):
        double = run(images.astype(np.float64), sigmas)
        assert double.log_density.dtype == jnp.float64
    np.testing.assert_allclose(single.log_density, double.log_density, atol=4e-4)


def test_float32_in_many_dimensions():
    """Thousands of elements: sums of size 3e4 leave 1e-6 bits per dimension."""
    size = 3072
    bed = exact.Gaussian(np.zeros(size, np.float32), np.linspace(0.1, 1, size, dtype=np.float32))
    x = np.asarray(bed.sample(jax.random.key(0), (2,)))
    key = seeds.image_keys(range(2))
    sigmas = levels.flow_levels(32)
    run = jax.jit(lambda x, s, k: flow_log_likelihood(bed.denoise, x, s, key=k))
    single = run(x, sigmas, key)
    with jax.enable_x64(True):
        double = run(jnp.asarray(x, float), sigmas, key)
        truth = bed.log_density(jnp.asarray(x, float), sigmas[0])
    scale = size * np.log(2)
    np.testing.assert_allclose(single.log_density / scale, double.log_density / scale, atol=1e-5)
    # Random signs have no variance for independent elements: what is left is the solver's.
    np.testing.assert_allclose(double.log_density / scale, truth / scale, atol=1e-3)


def test_independent_of_batch_and_devices(images):
    keys = seeds.image_keys(range(6))
    sigmas = levels.flow_levels(8)
    run = jax.jit(lambda x, k, s: flow_log_likelihood(MIXTURE.denoise, x, s, key=k, num_probes=2))
    together = run(images, keys, sigmas)
    order = np.array([3, 1, 5])
    apart = run(images[order], keys[order], sigmas)
    # Vectorised code may round an image differently in another place of the batch.
    for a, b in zip(apart, together, strict=True):
        np.testing.assert_allclose(a, b[order], rtol=2e-5, atol=2e-5)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = run(jax.device_put(images, sharding), jax.device_put(keys, sharding), sigmas)
    assert spread.latent.sharding.is_equivalent_to(sharding, 4)
    for a, b in zip(spread, together, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_rows_reach_the_denoiser(x64):
    """A mean for each image, as labels would give it."""
    means = jnp.array([[0.5], [-0.5]])
    denoise = lambda x, sigma, rows: rows + (x - rows) * 0.25 / (0.25 + sigma**2)  # noqa: E731
    x = jnp.array([[0.2], [0.2]])
    result = jax.jit(lambda x, r: flow_log_likelihood(denoise, x, rows=r))(x, means)
    expected = exact.Gaussian(0.0, 0.5).log_density((x - means)[:, 0], 0.002)
    np.testing.assert_allclose(result.log_density, expected, atol=2e-2)  # |mean| / S in the prior


def test_new_numbers_do_not_recompile_and_gradients_exist(x64):
    traced = 0

    @jax.jit
    def run(x, sigmas, mean):
        nonlocal traced
        traced += 1
        bed = exact.Gaussian(mean, 0.5)
        return jnp.sum(flow_log_likelihood(bed.denoise, x, sigmas).log_density)

    x = jnp.array([0.3, -0.1, 0.8])
    gradient = jax.jit(jax.grad(run, argnums=2))
    for low, high in ((0.002, 80.0), (0.01, 50.0)):
        run(x, jnp.asarray(levels.flow_levels(64, sigma_min=low, sigma_max=high)), 0.2)
    assert traced == 1
    slope = gradient(x, levels.flow_levels(64), 0.1)
    # d/dm of sum -(x - m)^2 / (2 v), less the prior's, which does not know m.
    np.testing.assert_allclose(slope, np.sum(np.asarray(x) - 0.1) / (0.25 + 4e-6), atol=2e-2)


class _Guided:
    guidance = object()

    def __call__(self, x, sigma):
        return x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigmas": np.array([80.0, 1.0, 0.002])}, "increase from sigma_min to sigma_max"),
        ({"sigmas": np.array([0.0, 1.0, 2.0])}, "sigmas must be positive"),
        ({"sigmas": np.array([1.0])}, r"shape \(N\+1,\)"),
        ({"solver": "euler"}, "unknown solver of the flow"),
        ({"x": np.float32(1.0)}, "leading batch axis"),
        ({"x": np.array([[np.nan]])}, "must be finite"),
        ({"denoise": _Guided()}, "is not the flow of a density.*got a guided one"),
        (
            {"denoise": classifier_free(2.0).guide(lambda x, sigma, rows: x)},
            "is not the flow of a density.*got a guided one",
        ),
        ({"denoise": adapters.clipped(MIXTURE.denoise)}, "not the flow.*got a clipped one"),
        (
            {"denoise": static_threshold().guide(lambda x, sigma, rows: x)},
            "is not the flow of a density",
        ),
        ({"x": np.zeros((1, 300))}, "random probes, which need a key"),
        ({"sigmas": np.array([1.0, 2.0]), "compare_steps": True}, "cannot be halved"),
    ],
)
def test_bad_input(arguments, message):
    call = {"denoise": MIXTURE.denoise, "x": np.zeros((1, 2, 2, 1)), **arguments}
    with pytest.raises(ValueError, match=message):
        flow_log_likelihood(call.pop("denoise"), call.pop("x"), **call)


def test_adaptive_steps(data, x64):
    """Against SciPy's RK45 at the same tolerance, where steps of a batch are one image's own."""
    pytest.importorskip("diffrax")
    denoise, x = recorded.denoiser(data, "mix2"), data["mix2/flow/x0"]
    from edm_jax.likelihood.adaptive import adaptive_log_likelihood

    run = jax.jit(lambda x: adaptive_log_likelihood(denoise, x, compare_steps=True))
    result = run(x)
    # The error of either at this tolerance: 1e-4 bits per dimension as tabulated, twice.
    np.testing.assert_allclose(result.log_density, data["mix2/rk45/log_likelihood"], atol=3e-4)
    assert np.all(np.abs(result.calls - int(data["mix2/rk45/evaluations"])) < 30)
    assert np.all(np.abs(result.step_difference) < 1e-2) and np.all(result.step_difference != 0)
    alone = run(x[1:2])
    np.testing.assert_allclose(alone.log_density, result.log_density[1:2], rtol=1e-9)
    assert alone.calls[0] == result.calls[1]
    with pytest.raises(ValueError, match="pass what belongs to each image"):
        offset = jnp.zeros((4, 2))
        adaptive_log_likelihood(lambda x, sigma: denoise(x, sigma) + offset, x)
    with pytest.raises(ValueError, match="tolerance must be positive"):
        adaptive_log_likelihood(denoise, x, tolerance=0)


def test_a_slow_image_ends_as_nan(data):
    pytest.importorskip("diffrax")
    from edm_jax.likelihood.adaptive import adaptive_log_likelihood

    denoise, x = recorded.denoiser(data, "mix2"), data["mix2/flow/x0"].astype(np.float32)
    result = jax.jit(lambda x: adaptive_log_likelihood(denoise, x, max_steps=4))(x)
    assert np.all(np.isnan(result.log_density))


def test_standard_error_of_one_value_is_unknown():
    assert np.all(np.isnan(flow.standard_error(jnp.ones((1, 3)))))
    np.testing.assert_allclose(flow.standard_error(jnp.array([[1.0], [3.0]])), [1.0])
