"""A Model whose network is exact: for every preconditioning D is that of Gaussian images."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from edm_jax import schedules
from edm_jax.model import Model, describe
from edm_jax.precond import PRECONDITIONINGS

STD, SHAPE = 0.5, (2, 2, 1)


class ExactNet(nn.Module):
    """F such that D = m + STD^2 / (STD^2 + sigma^2) (x - m), m the mean of the image's class."""

    method: str

    @nn.compact
    def __call__(self, x, c_noise, class_labels=None, augment_labels=None):
        means = self.param("means", lambda key: jnp.array([0.25, -0.25]))
        sigma, c_in, c_skip, c_out = self._coefficients(c_noise)
        column = lambda v: jnp.broadcast_to(v, x.shape[:1]).reshape(-1, 1, 1, 1)  # noqa: E731
        mean = 0.0 if class_labels is None else class_labels @ means
        sigma, c_in, c_skip, c_out, mean = map(column, (sigma, c_in, c_skip, c_out, mean))
        x = x / c_in
        denoised = mean + STD**2 / (STD**2 + sigma**2) * (x - mean)
        f_x = (denoised - c_skip * x) / c_out
        return jnp.concatenate([f_x, f_x], -1) if self.method == "iddpm" else f_x

    def _coefficients(self, c_noise):
        one = jnp.ones_like(c_noise)
        if self.method == "edm":
            sigma = jnp.exp(4 * c_noise)
            total = jnp.hypot(sigma, STD)
            return sigma, 1 / total, (STD / total) ** 2, sigma * STD / total
        if self.method == "ve":
            sigma = 2 * jnp.exp(c_noise)
            return sigma, one, one, sigma
        if self.method == "vp":
            sigma = schedules.VPSchedule().sigma(c_noise / 999)
        else:
            table = jnp.asarray(schedules.iddpm_levels(), jnp.float32)
            sigma = table[(999 - c_noise).astype(int)]
        return sigma, 1 / jnp.hypot(sigma, one), one, -sigma


def exact_model(method="edm", num_classes=0, scale=1.0):
    """The model; ``scale`` multiplies the class means, so that weights differ."""
    description = describe(
        network={"name": "exact"}, precond={"name": method}, image_shape=SHAPE,
        num_classes=num_classes,
    )  # fmt: skip
    options = {"sigma_data": STD} if method == "edm" else {}
    variables = {"params": {"means": scale * jnp.array([0.25, -0.25])}}
    return Model(
        ExactNet(method), PRECONDITIONINGS[method](**options), variables, description, "ema_test"
    )


def images(count, seed=0):
    """uint8 images of the model's distribution, not 0 or 255, ``(count, *SHAPE)``."""
    x = np.random.default_rng(seed).normal(size=(count, *SHAPE)) * STD
    return np.clip(np.rint((x + 1) * 127.5), 1, 254).astype(np.uint8)
