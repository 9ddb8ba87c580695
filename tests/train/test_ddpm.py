"""The random numbers of the DDPM losses: which key draws what."""

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import ddpm
from edm_jax.train.ddpm import DDPMObjective

PROCESS = ddpm.ddpm_process("cosine", 50)
IDS = jnp.array([0, 3, 70])
IMAGES = np.full((3, 2, 2, 1), 51, np.uint8)  # -0.6 in [-1, 1]


def test_time_step_augmentation_and_noise_have_keys_of_their_own():
    seen, key = {}, jax.random.key(4)

    def apply(variables, z, label, labels, augment_labels, **options):
        seen.update(z=z, label=label, augment_labels=augment_labels, **options)
        return jnp.zeros_like(z)

    def augment(keys, images):
        seen.update(keys=keys)
        return images + 1, jnp.full((images.shape[0], 1), 5.0)

    objective = DDPMObjective(apply, PROCESS, ddpm.LossKind("simple", "small"), augment=augment)
    loss, sigma = objective.per_image({}, {}, {"image": IMAGES}, key, IDS)
    keys = [jax.random.split(jax.random.fold_in(key, int(i)), 3) for i in IDS]
    t = np.array([jax.random.randint(k[0], (), 0, 50) for k in keys])
    levels = PROCESS.levels[49 - t]
    np.testing.assert_allclose(sigma, levels, rtol=1e-6)
    np.testing.assert_array_equal(seen["label"], t)
    expected = np.stack([jax.random.key_data(k[1]) for k in keys])
    np.testing.assert_array_equal(jax.random.key_data(seen["keys"]), expected)
    noise = np.stack([jax.random.normal(k[2], (2, 2, 1)) for k in keys])
    column = levels.reshape(3, 1, 1, 1)
    # The augmentation added 1 to -0.6.
    z = (0.4 + column * noise) / np.hypot(1, column)
    np.testing.assert_allclose(seen["z"], z, rtol=1e-5, atol=1e-6)
    # A network that says 0 misses the noise itself; means over elements.
    np.testing.assert_allclose(loss, np.square(noise).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(seen["image_ids"], IDS)
    assert seen["train"] is True
    assert seen["rngs"] == {"dropout": jax.random.fold_in(key, 2**31)}
