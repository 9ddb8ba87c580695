"""`edm_jax.sample` of models of kind "ardm"."""

import numpy as np
import pytest

import edm_jax
from edm_jax import generate, requests
from edm_jax.ardm.request import Decoding
from edm_jax.guidance import StaticThreshold
from edm_jax.samplers import Churn
from tests.support.ardm import tiny_model

SHAPE = (4, 4, 1)


@pytest.fixture(scope="module")
def model():
    process = {"name": "absorbing", "num_values": 5}
    return tiny_model(process, SHAPE, num_classes=3, loss_per_step=[1 / (t + 1) for t in range(16)])


def test_images(model):
    """Five grey levels from black to white, of a seed and a label alone."""
    drawn = edm_jax.sample(model, range(5), [0, 1, 2, 0, 1], num_steps=4)
    assert drawn.shape == (5, *SHAPE) and drawn.dtype == np.float32
    assert set(np.unique(drawn)) <= {-1, -0.5, 0, 0.5, 1} and len(np.unique(drawn)) > 2
    np.testing.assert_array_equal(
        edm_jax.sample(model, [3, 4, 1], [0, 1, 1], num_steps=4, batch_size=3), drawn[[3, 4, 1]]
    )
    assert np.any(edm_jax.sample(model, range(5), 2, num_steps=4)[:2] != drawn[:2])
    levels = np.unique(generate.to_uint8(drawn))
    assert set(levels) <= {0, 64, 128, 191, 255}  # k 255 / 4, rounded


def test_requests(model):
    optimal = Decoding(4, "optimal")
    # Steeper first: the first calls are the short ones.
    assert np.all(np.diff(np.diff(optimal.of_model(model)[0])) >= 0)
    assert requests.network_calls(model, optimal) == 4
    assert requests.network_calls(model, Decoding()) == 16
    by_words = edm_jax.sample(model, range(2), 1, num_steps=4, policy="optimal")
    np.testing.assert_array_equal(edm_jax.sample(model, range(2), 1, sampling=optimal), by_words)
    one = edm_jax.sample(model, range(2), 1, sampling=optimal, policy=(0, 16))
    np.testing.assert_array_equal(one, edm_jax.sample(model, range(2), 1, num_steps=1))


def test_trajectory(model):
    seen = edm_jax.sample(model, range(5), 1, num_steps=4, trajectory=True, batch_size=2)
    assert seen.x.shape == seen.known.shape == (5, 5, *SHAPE)
    np.testing.assert_array_equal(seen.known.sum(axis=(2, 3, 4))[:, 0], [0, 4, 8, 12, 16])
    for before, after in zip(range(4), range(1, 5), strict=True):
        assert np.all(seen.known[after] >= seen.known[before])
        kept = seen.known[before]
        np.testing.assert_array_equal(seen.x[after][kept], seen.x[before][kept])
    drawn = edm_jax.sample(model, range(5), 1, num_steps=4)
    np.testing.assert_array_equal(seen.x[-1] / 2 - 1, drawn)


def test_sequences():
    process = {"name": "absorbing", "num_values": 5, "absorbing": 5}
    drawn = edm_jax.sample(tiny_model(process, (6,)), range(3), num_steps=2)
    assert drawn.shape == (3, 6) and drawn.dtype == np.int32
    assert drawn.min() >= 0 and drawn.max() < 5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sampling": edm_jax.Sampling()}, "is drawn from by a Decoding, got Sampling"),
        ({"sigma_min": 0.1}, "sigma_min is about noise levels, which a model of kind 'ardm'"),
        ({"churn": Churn(1.0)}, "churn is about noise levels"),
        ({"guidance": StaticThreshold()}, "a model of kind 'ardm' has none"),
        ({"num_steps": 17}, "num_steps must be at most 16"),
        ({"policy": (0, 3)}, "a policy must end in D = 16, got last entry 3"),
        ({"labels": 3}, "label 3 is out of range"),
    ],
)
def test_refusals(model, options, message):
    with pytest.raises(ValueError, match=message):
        edm_jax.sample(model, [0], **options)


def test_a_denoiser_takes_no_decoding(model):
    class Denoiser:
        kind, preconditioning = "denoiser", None

    with pytest.raises(ValueError, match="kind 'denoiser' is drawn from by a Sampling"):
        requests.check_request(Denoiser(), Decoding())
