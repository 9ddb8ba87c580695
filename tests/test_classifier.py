"""The learned classifier in sigma form (golden 11 and 12: noisy)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import guidance as g
from edm_jax import models, respacing
from edm_jax.classifier import Classifier
from edm_jax.precond import iddpm_preconditioning
from tests.support import guided_classifier as gc
from tests.support import guided_mixture as gm


@pytest.fixture(scope="module")
def arrays():
    return gc.arrays()


@pytest.fixture(scope="module")
def golden():
    return gm.arrays()


@pytest.fixture(scope="module")
def net(arrays):
    return models.build(**gc.network(arrays))


@pytest.fixture(scope="module")
def classifier(arrays, net):
    levels = respacing.ddpm_levels("cosine").astype(np.float32)
    return Classifier(gc.variables(arrays), net, iddpm_preconditioning(levels=levels))


def nhwc(x):
    return jnp.asarray(np.transpose(x, (0, 2, 3, 1)), jnp.float32)


def test_gradient_with_respect_to_x(golden, classifier):
    """c_in enters the gradient: log p is a function of x, not of the network's input."""
    x, sigma = nhwc(golden["noisy/x"]), jnp.asarray(golden["noisy/sigma"], jnp.float32)
    rows = jax.nn.one_hot(golden["noisy/y"], 7)
    scale = gm.settings(golden, "noisy/settings")["scale"]
    label = classifier.preconditioning(sigma).c_noise
    np.testing.assert_array_equal(label, golden["noisy/timestep"])
    guidance = g.classifier_guidance(classifier, scale)

    @jax.jit
    def run(x, sigma):
        guided = guidance.guide(lambda x, sigma, rows: jnp.zeros_like(x))
        return classifier.logits(x, sigma), guided(x, sigma, rows)

    logits, shift = run(x, sigma)
    np.testing.assert_allclose(logits, golden["noisy/logits"], atol=2e-5)  # suggested
    square = np.square(sigma).reshape(-1, 1, 1, 1)
    grad = shift / (scale * square)
    np.testing.assert_allclose(grad, nhwc(golden["noisy/grad_x_f64"]), atol=2e-6)  # suggested
    error = np.abs(shift - nhwc(golden["noisy/D_shift_f64"]))
    assert np.all(error <= 2e-6 * scale * square)  # that of the gradient


def test_a_classifier_is_an_argument(classifier, golden):
    """Guiding with other weights of the same network compiles nothing."""
    x, rows = nhwc(golden["noisy/x"]), jax.nn.one_hot(golden["noisy/y"], 7)

    @jax.jit
    def run(guidance, sigma):
        return guidance.guide(lambda x, sigma, rows: x)(x, sigma, rows)

    first = run(g.classifier_guidance(classifier, 2.0, (0.1, 3.0)), 0.5)
    other = jax.tree.map(lambda v: 1.1 * v, classifier)
    second = run(g.classifier_guidance(other, 1.0, (0.2, 2.0)), 0.7)
    assert run._cache_size() == 1 and np.any(first != second)
