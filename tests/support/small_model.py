"""A small U-Net with made weights, in memory and as a file: no training, little compilation."""

import jax

from edm_jax import models
from edm_jax.model import describe, from_description
from edm_jax.store.single_file import write_single_file

NETWORK = {
    "name": "SongUNet", "img_resolution": 8, "in_channels": 1, "out_channels": 1,
    "label_dim": 10, "model_channels": 8, "channel_mult": [1], "num_blocks": 1,
    "attn_resolutions": [], "dropout": 0.0, "label_dropout": 0.1,
}  # fmt: skip


def small_model(seed=0):
    """Images like the digits'; labels change what it makes."""
    description = describe(
        network=NETWORK, precond={"name": "edm", "sigma_data": 0.75}, image_shape=(8, 8, 1),
        num_classes=10, progress={"step": seed, "kimg": float(seed)},
    )  # fmt: skip
    network = {**NETWORK}
    net = models.build(network.pop("name"), **network)
    variables = models.init_variables(net, jax.random.key(seed))
    # Layers that begin at 0 would hide the others.
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(seed + 100), len(leaves))
    leaves = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return from_description(description, jax.tree.unflatten(structure, leaves))


def write_small_model(path, seed=0):
    """The model as a file that `edm_jax.load` reads; returns its path as text."""
    model = small_model(seed)
    write_single_file(path, model.description, {"ema": model.variables})
    return str(path)
