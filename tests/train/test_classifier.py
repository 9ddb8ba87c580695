"""The random numbers of the classifier's loss: which key draws what."""

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.noise import LogUniform
from edm_jax.precond import edm_preconditioning
from edm_jax.train.classifier import ClassifierObjective, is_among_top

IDS = jnp.array([0, 3, 70])


def test_noise_level_augmentation_and_noise_have_keys_of_their_own():
    seen, key = {}, jax.random.key(4)

    def apply(variables, x, c_noise):
        seen.update(x=x, c_noise=c_noise)
        return jnp.zeros((x.shape[0], 5))

    def augment(keys, images):
        seen.update(keys=keys)
        return images + 1

    objective = ClassifierObjective(apply, edm_preconditioning(), LogUniform(), 5, augment=augment)
    batch = {"image": np.full((3, 2, 2, 1), 51, np.uint8), "label": np.array([2, 0, 4])}
    loss, sigma = objective.per_image({}, {}, batch, key, IDS)
    keys = [jax.random.split(jax.random.fold_in(key, int(i)), 3) for i in IDS]
    uniform = np.array([jax.random.uniform(k[0], ()) for k in keys], np.float64)
    np.testing.assert_allclose(sigma, 0.02 * 5000**uniform, rtol=1e-5)
    np.testing.assert_allclose(seen["c_noise"], np.log(sigma) / 4, rtol=1e-5)
    expected = np.stack([jax.random.key_data(k[1]) for k in keys])
    np.testing.assert_array_equal(jax.random.key_data(seen["keys"]), expected)
    noise = np.stack([jax.random.normal(k[2], (2, 2, 1)) for k in keys])
    column = np.asarray(sigma).reshape(3, 1, 1, 1)
    # 51 is -0.6 in [-1, 1]; the augmentation added 1.
    x = (0.4 + column * noise) / np.hypot(column, 0.5)
    np.testing.assert_allclose(seen["x"], x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loss, np.log(5), rtol=1e-6)  # equal logits


def test_among_the_top():
    logits = jnp.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    labels = jnp.array([0, 1, 2])
    for k, expected in ((1, [True, False, False]), (2, [True, False, True]), (3, [True] * 3)):
        np.testing.assert_array_equal(is_among_top(logits, labels, k), expected)
