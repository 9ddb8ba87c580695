"""Likelihood of reflected models in the module's interface, where the law is known exactly."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.likelihood import log_likelihood
from tests.support.reflected import random_model


@pytest.fixture(scope="module")
def silent():
    """A network that is 0 everywhere: D = x, the law is uniform at every level."""
    model = random_model()
    return model.replace(jax.tree.map(jnp.zeros_like, model.variables))


def _bytes(low, high, count=6):
    return np.random.default_rng(0).integers(low, high, (count, 8, 8, 1), np.uint8)


def test_density_of_the_uniform_law(silent):
    images = np.float32(np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)))
    images[0, 0] = -1.0  # faces are part of the box
    for solver in ("rk4", "adaptive"):
        # Of the identity the estimate of the trace is exact.
        found = log_likelihood(silent, images, 1, num_steps=2, solver=solver, num_probes=1)
        np.testing.assert_allclose(found.log_likelihood, -64 * math.log(2), rtol=1e-5)
        assert found.settings["prior"] == "uniform on [-1, 1]"
        assert found.settings["dequantisation"] == "none"
        assert (found.settings["sigma_min"], found.settings["sigma_max"]) == (0.02, 4.0)


def test_bytes_of_the_uniform_law(silent):
    """255 bins tile the box, those of 0 and 255 being halves."""
    images = _bytes(0, 256)
    images[0, 0], images[1] = 0, 255
    found = log_likelihood(silent, images, 1, num_steps=2, num_probes=1, dequantisation="uniform")
    halves = np.sum((images == 0) | (images == 255), axis=(1, 2, 3))
    expected = -64 * math.log(255) - halves * math.log(2)
    assert halves[1] == 64
    np.testing.assert_allclose(found.log_likelihood, expected, rtol=1e-5)
    # Away from faces the levels, blurred with s0, have a density of 127.5: exactly 1/255 as well.
    inner = _bytes(40, 216)
    found = log_likelihood(silent, inner, 1, num_steps=2, num_probes=1)
    assert found.settings["dequantisation"] == "gaussian"
    np.testing.assert_allclose(found.bits_per_dim, math.log2(255), rtol=1e-5)


def test_bound_of_the_uniform_law(silent):
    """The kernel's divergence from the uniform law and the decoder add up to ln 255 of a pixel."""
    inner = _bytes(40, 216, count=32)
    found = log_likelihood(silent, inner, 1, method="bound", num_steps=32)
    error = np.std(found.log_likelihood) / math.sqrt(32)
    assert abs(np.mean(found.log_likelihood) + 64 * math.log(255)) < 4 * error < 8
    assert np.all(found.standard_error > 0) and np.all(found.calls == 32)
    # One level in two is as right in the mean.
    half = found.log_likelihood - found.step_difference
    error = np.std(half) / math.sqrt(32)
    assert abs(np.mean(half) + 64 * math.log(255)) < 4 * error < 12


def test_an_image_does_not_depend_on_its_batch():
    model, images = random_model(), _bytes(0, 256)
    labels = np.arange(6)
    for method in ("flow", "bound"):
        options = {"method": method, "num_steps": 2, "batch_size": 4, "num_probes": 1}
        together = log_likelihood(model, images, labels, **options).log_likelihood
        alone = log_likelihood(model, images[5:], labels[5:], image_ids=[5], **options)
        np.testing.assert_allclose(alone.log_likelihood, together[5:], rtol=1e-4)
        assert np.all(np.isfinite(together))


def test_bad_input(silent):
    zeros = np.zeros((1, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match=r"images must lie in the box \[-1, 1\]"):
        log_likelihood(silent, zeros + 1.2, 1)
    with pytest.raises(ValueError, match="they are in units of the box"):
        log_likelihood(silent, zeros, 1, sigma_max=1.0)
    with pytest.raises(ValueError, match="must lie within the noise levels"):
        log_likelihood(silent, zeros, 1, sigma_min=0.002)
