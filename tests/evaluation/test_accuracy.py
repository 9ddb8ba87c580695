"""Accuracy per noise level against closed forms of a classifier that is known exactly."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.evaluation.accuracy import accuracy_at_levels
from edm_jax.pytree import pytree_dataclass

SIGMAS = np.array([0.1, 0.5, 1.0, 3.0, 80.0])


@pytree_dataclass
class TwoPoints:
    """Bayes' rule for images of one pixel, +1 or -1 alike often: log odds 2 x / sigma^2."""

    scale: float = 1.0

    def logits(self, x, sigma):
        log_odds = 2 * self.scale * x[:, 0, 0, 0] / jnp.square(sigma)
        return jnp.stack([-log_odds / 2, log_odds / 2], axis=-1)


@pytest.fixture(scope="module")
def pixels():
    labels = np.arange(4000) % 2
    return (2.0 * labels - 1).reshape(-1, 1, 1, 1), labels


def test_bayes_rule_of_two_points(pixels):
    found = accuracy_at_levels(TwoPoints(), *pixels, SIGMAS, batch_size=1024)
    # Right where the noise does not change the sign: Phi(1 / sigma).
    expected = [0.5 * (1 + math.erf(1 / sigma / math.sqrt(2))) for sigma in SIGMAS]
    # Four standard errors of 4000 draws.
    np.testing.assert_allclose(found.top_1, expected, atol=4 * 0.5 / math.sqrt(4000))
    assert np.all(found.top_5 == 1)  # of two classes
    # E ln(1 + exp(-2 (1 + sigma n) / sigma^2)) by quadrature; at infinity ln 2.
    n, weight = np.polynomial.hermite_e.hermegauss(120)
    want = [
        np.sum(weight * np.logaddexp(0, -2 * (1 + s * n) / s**2)) / math.sqrt(2 * math.pi)
        for s in SIGMAS
    ]
    # The spread of one draw is below 1 at every level: four standard errors.
    np.testing.assert_allclose(found.cross_entropy, want, atol=4 / math.sqrt(4000))
    assert found.cross_entropy[-1] == pytest.approx(math.log(2), abs=1e-3)


def test_batches_and_label_vectors_change_nothing(pixels):
    images, labels = (a[:100] for a in pixels)
    whole = accuracy_at_levels(TwoPoints(), images, labels, SIGMAS[:2])
    parts = accuracy_at_levels(TwoPoints(), images, labels, SIGMAS[:2], batch_size=64)
    rows = accuracy_at_levels(TwoPoints(), images, np.eye(2)[labels], SIGMAS[:2])
    for other in (parts, rows):  # sums in another order
        np.testing.assert_allclose(other, whole, rtol=1e-6)


def test_refusals(pixels):
    with pytest.raises(ValueError, match="labels must be as many as images"):
        accuracy_at_levels(TwoPoints(), pixels[0], [0, 1], SIGMAS)
