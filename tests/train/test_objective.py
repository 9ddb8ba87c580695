"""The random numbers of a training loss: which key draws what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.noise import LogNormal, edm_weight
from edm_jax.precond import edm_preconditioning
from edm_jax.train import objective as objective_lib
from edm_jax.train.objective import DenoisingObjective

IDS = jnp.array([0, 3, 70])
IMAGES = np.full((3, 2, 2, 1), 51, np.uint8)  # -0.6 in [-1, 1]


def _per_image(key, ids=IDS, buffers=None, **fields):
    """The loss, and what network and augmentation were given."""
    seen = {}

    def apply(variables, x, c_noise, labels, augment_labels, **options):
        seen.update(x=x, c_noise=c_noise, labels=labels, augment_labels=augment_labels)
        seen.update(variables=variables, **options)
        return jnp.zeros_like(x)

    def augment(keys, images):
        seen.update(keys=keys, images=images)
        return images + 1, jnp.full((images.shape[0], 1), 5.0)

    objective = DenoisingObjective(
        apply, edm_preconditioning(), LogNormal(), edm_weight,
        **{"augment": augment, **fields},
    )  # fmt: skip
    batch = {"image": IMAGES, "label": np.array([2, 0, 1])}
    loss, sigma = objective.per_image({"a": 1.0}, buffers or {}, batch, key, ids)
    return loss, sigma, seen


def _keys(key):
    """Three keys for each position: noise level, augmentation, noise."""
    return [jax.random.split(jax.random.fold_in(key, int(i)), 3) for i in IDS]


def test_noise_level_augmentation_and_noise_have_keys_of_their_own():
    key = jax.random.key(4)
    loss, sigma, seen = _per_image(key)
    keys = _keys(key)
    normal = np.array([jax.random.normal(k[0], ()) for k in keys], np.float64)
    np.testing.assert_allclose(sigma, np.exp(-1.2 + 1.2 * normal), rtol=1e-6)
    expected = np.stack([jax.random.key_data(k[1]) for k in keys])
    np.testing.assert_array_equal(jax.random.key_data(seen["keys"]), expected)
    np.testing.assert_allclose(seen["images"], -0.6, rtol=1e-6)
    noise = np.stack([jax.random.normal(k[2], (2, 2, 1)) for k in keys])
    column = np.asarray(sigma).reshape(3, 1, 1, 1)
    x = 0.4 + column * noise  # the augmentation added 1
    np.testing.assert_allclose(seen["x"], x / np.hypot(column, 0.5), rtol=1e-5)
    # F = 0: D = c_skip x, and lambda = 1 / c_out^2.
    denoised = 0.25 / (column**2 + 0.25) * x
    expected = (1 / column**2 + 4) * (denoised - 0.4) ** 2
    np.testing.assert_allclose(loss, expected.sum((1, 2, 3)), rtol=1e-4)


def test_dropout_has_a_key_for_every_step():
    """That of no image: positions stay below 2^31; the network folds positions in itself."""
    first, second = (_per_image(jax.random.key(step))[2]["rngs"] for step in (0, 1))
    for step, rngs in enumerate((first, second)):
        expected = jax.random.fold_in(jax.random.key(step), 2**31)
        assert list(rngs) == ["dropout"] and rngs["dropout"] == expected
    assert first["dropout"] != second["dropout"]


def test_what_the_network_is_told():
    _, _, seen = _per_image(jax.random.key(0), num_classes=3)
    np.testing.assert_array_equal(seen["labels"], np.eye(3)[[2, 0, 1]])
    np.testing.assert_array_equal(seen["augment_labels"], np.full((3, 1), 5.0))
    np.testing.assert_array_equal(seen["image_ids"], IDS)
    assert seen["train"] is True and seen["variables"] == {"params": {"a": 1.0}}
    _, _, seen = _per_image(jax.random.key(0), augment=None, buffers={"f": 2.0})
    assert seen["labels"] is None and seen["augment_labels"] is None
    assert seen["variables"] == {"params": {"a": 1.0}, "buffers": {"f": 2.0}}


@pytest.mark.parametrize("ids", [IDS, IDS + 1])
def test_what_is_drawn_follows_the_position(ids):
    _, whole, seen = _per_image(jax.random.key(2), ids)
    other, again = _per_image(jax.random.key(2), ids[jnp.array([2, 0, 1])])[1:]
    np.testing.assert_array_equal(other, np.asarray(whole)[[2, 0, 1]])
    np.testing.assert_array_equal(again["x"], np.asarray(seen["x"])[[2, 0, 1]])


def test_pixels_and_labels():
    pixels = objective_lib.to_unit_range(jnp.array([0, 51, 255], jnp.uint8))
    np.testing.assert_allclose(pixels, [-1, -0.6, 1], atol=1e-7)
    vectors = np.array([[0.2, 0.8]])
    np.testing.assert_array_equal(
        objective_lib.one_hot_labels(jnp.asarray(vectors), 2), np.float32(vectors)
    )
