"""From densities to bits: recorded conversions and the exact bounds of discrete toys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, seeds
from edm_jax.likelihood import quantisation
from edm_jax.likelihood.flow import flow_log_likelihood
from tests.support import likelihood_golden as recorded


@pytest.fixture(scope="module")
def data():
    return recorded.archive()


def test_recorded_bits_per_dimension(data):
    for i, size in enumerate(data["bits/dim"]):
        bits = quantisation.bits_per_dim(
            data["bits/log_density"][i], int(size), float(data["bits/bin_width"][i])
        )
        np.testing.assert_allclose(bits, data["bits/bits_per_dim"][i], rtol=1e-12)
    # EDM's scaling of bytes, as the spec states it.
    assert -np.log2(quantisation.BIN_WIDTH) == pytest.approx(6.99435, abs=1e-5)
    levels = quantisation.eight_bit_levels()
    assert levels[0] == -1 and levels[-1] == 1 and len(levels) == 256
    np.testing.assert_allclose(np.diff(levels), quantisation.BIN_WIDTH, rtol=1e-12)


@pytest.mark.parametrize("name", ["discrete1", "discrete2"])
def test_recorded_uniform_dequantisation(data, name, x64):
    """Recorded draws -> x -> log likelihood through the flow -> bits per dimension."""
    get = lambda key: np.asarray(data[f"{name}/{key}"])  # noqa: E731
    width, index = float(get("bin_width")), get("sample/level_index")
    x = get("levels")[index] + (get("sample/uniforms") - 0.5) * width
    np.testing.assert_allclose(x, get("sample/x"), rtol=1e-12)
    low = float(get("sample/sigma_min"))
    from edm_jax.likelihood.levels import flow_levels

    sigmas = flow_levels(64, sigma_min=low, sigma_max=80.0)
    box = recorded.denoiser(data, name.replace("discrete", "box"))
    result = flow_log_likelihood(box, jnp.asarray(x), sigmas)
    size = x.shape[1]
    log_p = quantisation.log_probability(
        result.log_density, jnp.asarray(index), low, "uniform", get("levels")
    )
    # 64 steps: 2e-4 bits per dimension, the largest of the spec's table.
    np.testing.assert_allclose(
        quantisation.bits_per_dim(log_p, size), get("sample/bits_per_dim"), atol=2e-4
    )
    direct = quantisation.bits_per_dim(get("sample/log_likelihood"), size, width)
    np.testing.assert_allclose(direct, get("sample/bits_per_dim"), rtol=1e-12)


@pytest.mark.parametrize("method", ["uniform", "gaussian"])
def test_bounds_of_spikes_at_the_levels(data, method, x64):
    """A network trained on raw integers: both bounds, by quadrature over the noise."""
    get = lambda key: np.asarray(data[f"discrete1/{key}"])  # noqa: E731
    levels, probs = get("levels"), get("probs")
    width = levels[1] - levels[0]
    spikes = exact.GaussianMixture(levels[:, None], 0.0, probs)
    expected = {
        "uniform": get("uniform_spikes_bits_per_dim"),
        "gaussian": get("gaussian_level_decoder_bits_per_dim"),
    }[method]
    for sigma, bits in list(zip(get("sigma_min"), expected, strict=True))[2:]:
        if method == "uniform":
            offset = (np.arange(4000) + 0.5) / 4000 * width - width / 2
            density = np.full(4000, 1 / 4000)
        else:
            offset = np.linspace(-9, 9, 1201) * sigma
            density = np.exp(-0.5 * (offset / sigma) ** 2)
            density /= density.sum()
        z = (levels[:, None] + offset[None]).reshape(-1, 1)
        log_density = np.asarray(spikes.log_density(jnp.asarray(z), sigma)).reshape(8, -1)
        index = jnp.arange(8)[:, None]
        bound = quantisation.log_probability(
            jnp.asarray(log_density @ density), index, sigma, method, levels
        )
        # The midpoint rule of the uniform noise: 1e-6 relative at these widths.
        mean = float(np.sum(probs * np.asarray(bound)))
        np.testing.assert_allclose(quantisation.bits_per_dim(mean, 1), bits, rtol=1e-5)


def test_recorded_cost_of_the_level_decoder(data, x64):
    terms = zip(data["discrete1/sigma_min"], data["discrete1/vlb_terms"], strict=True)
    for sigma, (_, _, _, expected) in terms:
        nats = quantisation.decoder_nats(data["discrete1/levels"], sigma)
        np.testing.assert_allclose(data["discrete1/probs"] @ nats, expected, atol=1e-12)


def test_level_decoder_in_float32():
    """At EDM's lowest level; the first and last level have one neighbour instead of two."""
    nats = quantisation.decoder_nats(quantisation.eight_bit_levels(), 0.002)
    assert nats.dtype == jnp.float32
    with jax.enable_x64(True):
        double = quantisation.decoder_nats(quantisation.eight_bit_levels(), 0.002)
    np.testing.assert_allclose(nats, double, rtol=2e-4)  # gaps of 2 / 255 between numbers near 1
    np.testing.assert_allclose(nats[0], nats[1] / 2, rtol=1e-2)
    # Its index sums over an image.
    index = jnp.zeros((2, 3, 3, 1), int)
    cost = quantisation.decoder_cost(index, quantisation.eight_bit_levels(), 0.002)
    np.testing.assert_allclose(cost, 9 * nats[0], rtol=1e-6)


def test_dequantised_images_depend_on_their_key_alone():
    x = jnp.zeros((3, 4, 4, 1))
    keys = seeds.image_keys([3, 4, 5])
    for method in ("uniform", "gaussian"):
        values = quantisation.dequantise(x, keys, 0.01, method)
        alone = quantisation.dequantise(x[:1], keys[2:], 0.01, method)
        np.testing.assert_array_equal(alone[0], values[2])
        assert not np.array_equal(values[0], values[1])
    uniform = quantisation.dequantise(jnp.zeros((1, 100, 100, 1)), keys[:1], 0.01, "uniform")
    assert np.abs(uniform).max() <= quantisation.BIN_WIDTH / 2
    # Of a uniform variable of width w: w / sqrt(12), to 4 / sqrt(2 * 10^4) and less.
    assert float(uniform.std()) == pytest.approx(quantisation.BIN_WIDTH / 12**0.5, rel=0.03)
    np.testing.assert_array_equal(quantisation.dequantise(x, keys, 0.01, "none"), x)


def test_bad_input():
    with pytest.raises(ValueError, match="bin_width must be positive"):
        quantisation.bits_per_dim(-1.0, 3, 0.0)
    with pytest.raises(ValueError, match="size must be at least 1"):
        quantisation.bits_per_dim(-1.0, 0)
