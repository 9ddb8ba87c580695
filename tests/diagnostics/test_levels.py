"""Errors per noise level where they are known, and the ideal denoiser of labelled images."""

import jax
import numpy as np
import pytest

from edm_jax.diagnostics import levels
from edm_jax.noise import edm_weight
from tests.support import exact_model as toy

MODEL = toy.exact_model()
RNG = np.random.default_rng(0)
TRAINING = np.float32(RNG.normal(size=(40, *toy.SHAPE)) * toy.STD)


def ideal(x, points, sigma):
    """In float64 NumPy, one image after the other."""
    found = []
    for one in np.asarray(x, np.float64):
        logits = -np.sum((one - points) ** 2, axis=(1, 2, 3)) / (2 * sigma**2)
        weights = np.exp(logits - logits.max())
        found.append(np.tensordot(weights / weights.sum(), points, 1))
    return np.array(found)


def noisy(images, sigmas, seed=0):
    """The noise that is added at each level."""
    key = jax.random.key(seed, impl="threefry2x32")
    return [
        np.asarray(jax.random.normal(jax.random.fold_in(key, i), images.shape))
        for i in range(len(sigmas))
    ]


@pytest.mark.parametrize("labelled", [False, True])
def test_errors_are_those_of_the_formulas(labelled):
    sigmas, images = np.array([0.1, 0.7, 20.0]), TRAINING[:8]
    # classes of 14 and of 26 images
    labels = np.minimum(np.arange(8) % 3, 1) if labelled else None
    training_labels = np.minimum(np.arange(40) % 3, 1) if labelled else None
    model, means = toy.exact_model(num_classes=2) if labelled else MODEL, np.array([0.25, -0.25])
    found = levels.measure(
        model, images, sigmas, TRAINING, edm_weight,
        labels=labels, training_labels=training_labels,
    )  # fmt: skip
    for i, (sigma, noise) in enumerate(zip(sigmas, noisy(images, sigmas), strict=True)):
        x = images + sigma * noise.astype(np.float64)
        mean = means[labels].reshape(-1, 1, 1, 1) if labelled else 0.0
        denoised = mean + toy.STD**2 / (toy.STD**2 + sigma**2) * (x - mean)
        if labelled:
            best = np.empty_like(x)
            for label in range(2):
                mine = TRAINING[training_labels == label].astype(np.float64)
                best[labels == label] = ideal(x[labels == label], mine, sigma)
        else:
            best = ideal(x, TRAINING.astype(np.float64), sigma)
        rms = lambda a: np.sqrt(np.mean(np.square(a)))  # noqa: E731
        # float32 of differences between numbers of size sigma
        tolerance = 1e-5 * (1 + sigma)
        assert found.error[i] == pytest.approx(rms(denoised - images), abs=tolerance)
        assert found.ideal_error[i] == pytest.approx(rms(best - images), abs=tolerance)
        assert found.from_ideal[i] == pytest.approx(rms(denoised - best), abs=tolerance)
        weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
        expected = weight * np.mean(np.square(denoised - images), axis=(1, 2, 3))
        np.testing.assert_allclose(found.loss[i], expected, rtol=1e-3, atol=1e-4)


def test_the_gradient_is_that_of_the_mean_loss():
    """Only the mean of the class that is asked for moves D: dD/dm = sigma^2/(std^2 + sigma^2)."""
    model = toy.exact_model(num_classes=2)
    labels, sigma = np.zeros(8, int), 0.7
    found = levels.measure(
        model, TRAINING[:8], [sigma], TRAINING, edm_weight,
        labels=labels, training_labels=np.zeros(40, int),
    )  # fmt: skip
    x = TRAINING[:8] + sigma * noisy(TRAINING[:8], [sigma])[0].astype(np.float64)
    share = toy.STD**2 / (toy.STD**2 + sigma**2)
    denoised = 0.25 + share * (x - 0.25)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    expected = abs(weight * np.mean(2 * (denoised - TRAINING[:8]) * (1 - share)))
    assert found.gradient[0] == pytest.approx(expected, rel=1e-4)  # float32


def test_padding_weighs_nothing():
    data = levels.ideal_denoiser_points(TRAINING[:5], 12)
    assert len(data.points) == 12
    x = np.float32(RNG.normal(size=(3, *toy.SHAPE)) * 80)
    for sigma in (0.05, 80.0):
        np.testing.assert_allclose(
            np.asarray(data.denoise(x, sigma)), ideal(x, TRAINING[:5], sigma), atol=1e-4
        )
