"""Loss per noise level against its closed form."""

import jax
import numpy as np

from edm_jax import models
from edm_jax.evaluation.loss_levels import loss_at_levels
from edm_jax.model import describe, from_description


def silent_model():
    """A network that has not been trained: its last layer is nearly zero, so D = c_skip x."""
    network = dict(
        name="SongUNet", img_resolution=4, in_channels=1, out_channels=1, label_dim=3,
        model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[],
    )  # fmt: skip
    description = describe(
        network=network,
        precond={"name": "edm", "sigma_data": 0.5},
        image_shape=(4, 4, 1),
        num_classes=3,
    )
    net = models.build(network.pop("name"), **network)
    return from_description(description, models.init_variables(net, jax.random.key(0)))


def test_of_black_images_it_is_that_of_the_skip_connection():
    """y = 0: lambda |c_skip n|^2 = sigma_data^2 / (sigma^2 + sigma_data^2) on average."""
    sigmas = np.array([0.002, 0.1, 0.5, 3.0, 80.0])
    images, labels = np.zeros((128, 4, 4, 1)), np.arange(128) % 3
    levels = loss_at_levels(silent_model(), images, sigmas, labels)
    assert levels.shape == (5, 128)
    expected = 0.25 / (sigmas**2 + 0.25)
    # The mean of 2048 squared normals is 1 within 3 %; the last layer adds 1e-3 at most.
    np.testing.assert_allclose(levels.mean(1), expected, rtol=0.12, atol=2e-3)


def test_the_same_seed_adds_the_same_noise():
    model, sigmas = silent_model(), np.array([1.0])
    images, labels = np.zeros((2, 4, 4, 1)), [0, 1]
    first = loss_at_levels(model, images, sigmas, labels)
    np.testing.assert_array_equal(loss_at_levels(model, images, sigmas, labels), first)
    assert not np.array_equal(loss_at_levels(model, images, sigmas, labels, seed=1), first)
