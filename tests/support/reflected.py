"""A small reflected model of random weights."""

import dataclasses

import jax
import numpy as np

from edm_jax.model import from_description
from edm_jax.models import init_variables
from experiments.config.build import experiment
from tests.configs.test_configs import load as load_config

SMALL = (
    "--config.model.SongUNet.model_channels=8",
    "--config.train.batch_size=8",
    "--config.model.SongUNet.channel_mult=(1,)",
    "--config.model.SongUNet.attn_resolutions=()",
)


@dataclasses.dataclass
class DigitsShape:
    """What a network needs to know of the digits."""

    image_shape = (8, 8, 1)
    num_classes = 10
    label_names = None

    def __len__(self):
        return 16


def random_model(*overrides):
    """A model of configs/digits_reflected.py, the last layer random too: D is far from x."""
    read = experiment(load_config("digits_reflected.py", *SMALL, *overrides))
    net = read.build_network(DigitsShape())
    variables = init_variables(net, jax.random.key(0), DigitsShape.image_shape)
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(0)
    leaves = [leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return from_description(read.description(DigitsShape()), tree.unflatten(leaves))
