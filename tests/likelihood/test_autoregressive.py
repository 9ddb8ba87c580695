"""Likelihoods of autoregressive models by `edm_jax.log_likelihood` and data set by data set."""

import numpy as np
import pytest

import edm_jax
import edm_jax.ardm
from edm_jax.ardm.model_bits import model_bits
from edm_jax.likelihood import likelihood_settings
from edm_jax.likelihood.record import likelihoods
from tests.support.ardm import tiny_model

SHAPE = (4, 4, 1)
PROCESS = {"name": "absorbing", "num_values": 4}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, *SHAPE)).astype(np.uint8)


def test_a_uniform_model(images):
    """ln 4 for each of 16 pixels, two bits per dimension, from one call each."""
    model = tiny_model(PROCESS, SHAPE, noise=0.0, levels=True)
    found = edm_jax.log_likelihood(model, images, method="bound", passes=2)
    np.testing.assert_allclose(found, -16 * np.log(4), rtol=1e-5)
    np.testing.assert_allclose(found.bits_per_dim, 2, rtol=1e-5)
    np.testing.assert_array_equal(found.calls, 2)
    summary = found.summary()
    assert summary["dequantisation"] == "discrete" and summary["solver"] == "uniform"
    assert summary["num_steps"] == 16 and summary["model"]["network"] == "ArdmUNet"
    pixels = edm_jax.log_likelihood(
        tiny_model({**PROCESS, "output": "discretized_logistic_rgb"}, (4, 4, 3), noise=0.0),
        images[:2].repeat(3, axis=-1) % 4, method="bound",
    )  # fmt: skip
    # One variable is a pixel, and bits are those of its three channels: nearly uniform outputs.
    np.testing.assert_allclose(pixels.bits_per_dim, 2, atol=0.5)


@pytest.mark.parametrize("num_steps", [None, 3])
def test_the_mean_is_the_bound(images, num_steps):
    """Against exact code lengths of random orders, of the same policy."""
    model = tiny_model(PROCESS, SHAPE, levels=True, loss_per_step=[1 / (t + 1) for t in range(16)])
    settings = likelihood_settings(model, method="bound", num_steps=num_steps)
    assert settings.solver == "optimal" and settings.num_steps == (num_steps or 16)
    found = edm_jax.log_likelihood(model, images, method="bound", num_steps=num_steps, passes=300)
    policies = edm_jax.ardm.Decoding(num_steps, "optimal").of_model(model)
    exact = model_bits(model, images, policies=policies, exact=True, passes=30)
    error = np.hypot(found.standard_error / (16 * np.log(2)), exact.std(axis=0) / np.sqrt(29))
    assert np.all(np.abs(found.bits_per_dim - exact.mean(axis=0)) < 5 * error)


def test_a_data_set_in_any_batches(images):
    model = tiny_model(PROCESS, SHAPE, num_classes=3, levels=True)
    labels = np.array([0, 1, 2, 0, 1, 2])
    settings = likelihood_settings(model, method="bound", passes=2)
    (*_, whole) = likelihoods(model, [(range(6), images, labels)], settings, batch_size=6)
    parts = [(range(i, i + 2), images[i : i + 2], labels[i : i + 2]) for i in (4, 0, 2)]
    (*_, record) = likelihoods(model, parts, settings, batch_size=2)
    for i in range(6):
        # Float32 sums of another program.
        np.testing.assert_allclose(record.values[i][0], whole.values[i][0], rtol=1e-5)
    assert whole.summary()["bits_per_dim_standard_error"] > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "a model of kind 'ardm' has method='bound', got 'flow'"),
        ({"method": "bound", "sigma_min": 0.1}, "sigma_min belongs to the flow of a denoiser"),
        (
            {"method": "bound", "dequantisation": "uniform"},
            "dequantisation='uniform' means",
        ),
        ({"method": "bound", "num_steps": 17}, "num_steps must be at most 16"),
        ({"method": "bound", "passes": 0}, "passes must be an integer >= 1, got 0"),
        ({"method": "bound", "solver": "rk4"}, "policy must be one of uniform, optimal"),
    ],
)
def test_refusals(images, options, message):
    with pytest.raises(ValueError, match=message):
        edm_jax.log_likelihood(tiny_model(PROCESS, SHAPE, levels=True), images, **options)
    with pytest.raises(ValueError, match=r"data must have shape \(B, 4, 4, 1\)"):
        edm_jax.log_likelihood(
            tiny_model(PROCESS, SHAPE, levels=True), images[:, :3], method="bound"
        )
