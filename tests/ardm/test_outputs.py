"""Output distributions against float64 NumPy, sums over all values, and frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.ardm import outputs

# float32 against float64 formulas of a few operations, log probabilities of size ten.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def archive(golden):
    return golden("14_ardm")


def _mixture_sizes(archive):
    return int(archive["logistic/num_classes"]), int(archive["logistic/mixtures"])


def test_logistic_log_prob(archive):
    output = outputs.DiscretizedLogistic(*_mixture_sizes(archive))
    params, x = archive["logistic/independent/params"], archive["logistic/independent/x"]
    got = jax.jit(output.log_prob)(jnp.asarray(params), jnp.asarray(x))
    np.testing.assert_allclose(got, archive["logistic/independent/log_prob"], **TOLERANCE)


def test_logistic_log_prob_of_every_value(archive):
    output = outputs.DiscretizedLogistic(*_mixture_sizes(archive))
    params = jnp.broadcast_to(archive["logistic/independent/params"][0, 0], (256, 35))
    x = jnp.broadcast_to(jnp.arange(256)[:, None], (256, 3))
    got = jax.jit(output.log_prob)(params, x)
    np.testing.assert_allclose(got, archive["logistic/independent/log_prob_all"], **TOLERANCE)


def test_rgb_log_prob(archive):
    output = outputs.DiscretizedLogisticRGB(*_mixture_sizes(archive))
    params, x = jnp.asarray(archive["logistic/rgb/params"]), jnp.asarray(archive["logistic/rgb/x"])
    channels = jax.jit(output.channel_log_prob)(params, x)
    np.testing.assert_allclose(channels, archive["logistic/rgb/log_prob_channels"], **TOLERANCE)
    pixels = jax.jit(output.log_prob)(params, x)
    np.testing.assert_allclose(pixels[..., 0], archive["logistic/rgb/log_prob"], **TOLERANCE)


@pytest.mark.parametrize("num_values", [2, 256, 65536])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_logistic_sums_to_one(num_values, spread):
    """For 2^16 values too, where four of them lie beyond 0.9999: edges go by index."""
    output = outputs.DiscretizedLogistic(num_values, num_mixtures=4)
    params = spread * np.random.default_rng(0).standard_normal(12).astype(np.float32)
    params = jnp.broadcast_to(params, (num_values, 12))
    log_prob = np.asarray(jax.jit(output.log_prob)(params, jnp.arange(num_values)), np.float64)
    # The floor of 1e-12 in every bin adds at most 7e-8.
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1, rtol=2e-5)


def test_logistic_at_zero_outputs_is_nearly_uniform():
    output = outputs.DiscretizedLogistic(256)
    log_prob = jax.jit(output.log_prob)(jnp.zeros((256, 90)), jnp.arange(256))
    bits = -np.mean(np.asarray(log_prob)) / np.log(2)
    assert 8 <= bits < 8.2


def test_logistic_tails_keep_their_digits():
    """Where both sigmoids round to 1 in float32, against the difference in float64."""
    output = outputs.DiscretizedLogistic(256, num_mixtures=1)
    params = jnp.array([[0.0, -0.2, -3.0]])
    x = 200
    v, g, inverse = 2 * x / 255 - 1, 1 / 255, np.exp(3.0)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    exact = sigmoid(inverse * (v + 0.2 + g)) - sigmoid(inverse * (v + 0.2 - g))
    np.testing.assert_allclose(output.log_prob(params, jnp.array([x]))[0], np.log(exact), rtol=1e-5)


def _frequencies(output, params, shape, count=20000):
    uniform = jax.random.uniform(jax.random.key(0), output.noise_shape((count, *shape)))
    params = jnp.broadcast_to(params, (count, *params.shape))
    return np.asarray(jax.jit(output.draw)(params, uniform))


def _assert_frequencies(drawn, probabilities):
    """Each count within five standard deviations of its expectation (a few dozen counts)."""
    counts = np.bincount(drawn, minlength=len(probabilities))
    expected = len(drawn) * probabilities
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected) + 5)


def test_softmax_draws_its_distribution():
    output = outputs.Softmax(5)
    logits = np.random.default_rng(1).standard_normal((2, 5)).astype(np.float32)
    drawn = _frequencies(output, jnp.asarray(logits), (2,))
    for i in range(2):
        probabilities = np.exp(logits[i]) / np.exp(logits[i]).sum()
        _assert_frequencies(drawn[:, i], probabilities)


def test_logistic_draws_its_distribution():
    output = outputs.DiscretizedLogistic(8, num_mixtures=3)
    params = jnp.asarray(np.random.default_rng(2).standard_normal(15).astype(np.float32))
    drawn = _frequencies(output, params, (2,))  # two channels
    for c in range(2):
        x = jnp.broadcast_to(jnp.arange(8)[:, None], (8, 2))
        log_prob = jax.jit(output.log_prob)(jnp.broadcast_to(params, (8, 15)), x)
        _assert_frequencies(drawn[:, c], np.exp(log_prob[:, c]))


def test_rgb_draws_its_distribution():
    """All 27 pixels of three values per channel."""
    output = outputs.DiscretizedLogisticRGB(3, num_mixtures=2)
    params = jnp.asarray(np.random.default_rng(3).standard_normal(20).astype(np.float32))
    drawn = _frequencies(output, params, (3,))
    pixels = np.indices((3, 3, 3)).reshape(3, -1).T
    log_prob = jax.jit(output.log_prob)(jnp.broadcast_to(params, (27, 20)), jnp.asarray(pixels))[
        :, 0
    ]
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1, rtol=1e-5)  # 27 float32 numbers
    _assert_frequencies(drawn @ np.array([9, 3, 1]), np.exp(log_prob))


def test_softmax_reads_channels_with_the_value_fastest():
    raw = jnp.arange(12.0).reshape(1, 1, 1, 12)
    log_prob = outputs.Softmax(4).log_prob(raw, jnp.array([[[[3, 0, 1]]]]))
    block = np.arange(4.0) - np.log(np.exp(np.arange(4.0)).sum())
    np.testing.assert_allclose(log_prob.reshape(-1), block[[3, 0, 1]], rtol=1e-5)


def test_rgb_refuses_other_images():
    with pytest.raises(ValueError, match="3 channels, got 1"):
        outputs.DiscretizedLogisticRGB(4).num_outputs(1)
