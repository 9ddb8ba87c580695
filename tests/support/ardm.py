"""Models for the tests of `edm_jax.ardm` whose every probability is known."""

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import models
from edm_jax.ardm import registry
from edm_jax.ardm.outputs import Softmax
from edm_jax.ardm.process import Absorbing
from edm_jax.model import describe, from_description

VARIABLES, VALUES = 4, 3  # of the golden table


def table_process():
    """Four variables of three values; unknown ones show a class of their own."""
    return Absorbing(Softmax(VALUES), absorbing=VALUES)


def table_predict(logits):
    """The golden table as a network: logits[mask, code of the known values, variable, value]."""
    table = jnp.asarray(logits, jnp.float32)
    bits = 2 ** np.arange(VARIABLES)
    digits = VALUES ** np.arange(VARIABLES)[::-1]

    def predict(x_in, known, t, stage):
        return table[known @ bits, jnp.where(known, x_in, 0) @ digits]

    return predict


def linear_predict(archive):
    """The golden network of the sampling cases: linear in the one-hot known values."""
    bias, weight = (jnp.asarray(archive[f"sampling/{name}"]) for name in ("bias", "weight"))
    variables, values = bias.shape

    def predict(x_in, known, t, stage):
        shown = jnp.where(known[..., None], jnp.eye(values)[x_in], 0)
        return bias[None] + jnp.einsum("dkej,bej->bdk", weight, shown) / np.sqrt(variables)

    return predict


def two_stage_predict(archive):
    """The golden table of upscaling: logits[stage, mask, mixed x_0, mixed x_1, variable, K]."""
    table = jnp.asarray(archive["upscale/tabular/logits"])

    def predict(x_in, known, t, stage):
        return table[stage, known @ np.array([1, 2]), x_in[:, 0], x_in[:, 1]]

    return predict


def padded(policy, num_calls):
    """The policy with calls that draw nothing at its end: one program for several policies."""
    return np.pad(np.asarray(policy, np.int32), (0, num_calls + 1 - len(policy)), mode="edge")


def tiny_model(process, shape, num_classes=0, noise=0.3, **more):
    """A loaded model with random weights: the least network of its kind."""
    kind = registry.build(**process)
    network = {"name": "ArdmUNet", "model_channels": 8, "num_blocks": 1}
    if len(shape) == 1:
        network = {"name": "ArdmTransformer", "model_channels": 8, "num_blocks": 1, "num_heads": 2}
        network["mlp_channels"] = 8
    network |= {"label_dim": num_classes, **registry.network_sizes(kind, shape)}
    description = describe(
        kind="ardm",
        network=network,
        process=process,
        image_shape=shape,
        num_classes=num_classes,
        **more,
    )
    net = models.build(**network)
    variables = models.init_variables(net, jax.random.key(0))
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + noise * jax.random.normal(k, leaf.shape)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return from_description(description, jax.tree.unflatten(tree, noisy), "raw")
