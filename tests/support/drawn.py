"""Parameters of a network by NumPy: no program is compiled for them, and none is zero."""

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import models


def drawn_variables(net, seed=0):
    """Variables of ``net`` of usual sizes: no parameter at its, often zero, initial value.

    Kernels are N(0, 1 / fan in); vectors N(1, 1/25), as if all were scales of norms.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf):
        std = 0.2 if leaf.ndim < 2 else np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(std * rng.standard_normal(leaf.shape) + (leaf.ndim < 2), leaf.dtype)

    return jax.tree.map(draw, models.abstract_variables(net))
