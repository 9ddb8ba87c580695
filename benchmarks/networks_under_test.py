"""The networks that sampling and training are measured on, with random weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from edm_jax import models
from edm_jax.model import Model, describe, from_description


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with the batch it is measured at.

    Attributes:
      network: ``{"name": ..., **arguments}``.
      batch_size: images per call on a CPU and on an accelerator.
      sigma_data: of the preconditioning.
    """

    network: dict[str, Any]
    batch_size: tuple[int, int]
    sigma_data: float = 0.5

    def batch(self) -> int:
        """Batch size on this machine."""
        return self.batch_size[jax.default_backend() != "cpu"]

    def model(self) -> Model:
        """The network with random weights as a Model."""
        net = self.network
        size, channels = net["img_resolution"], net["in_channels"]
        description = describe(
            network=net,
            precond={"name": "edm", "sigma_data": self.sigma_data},
            image_shape=(size, size, channels),
            num_classes=net["label_dim"],
        )
        arguments = dict(net)
        module = models.build(arguments.pop("name"), **arguments)
        variables = jax.jit(lambda key: models.init_variables(module, key))(jax.random.key(0))
        return from_description(description, variables)


def _digits() -> Case:
    from configs import digits
    from experiments.config import build

    experiment = build.experiment(digits.get_config())
    network = experiment.network_arguments(experiment.data.open())
    return Case(network, (128, 1024), experiment.precond["sigma_data"])


def _cifar10() -> Case:
    network = dict(
        name="ddpmpp", img_resolution=32, in_channels=3, out_channels=3, label_dim=10,
        augment_dim=9, dropout=0.13,
    )  # fmt: skip
    return Case(network, (8, 128))


def _imagenet64() -> Case:
    network = dict(
        name="adm", img_resolution=64, in_channels=3, out_channels=3, label_dim=1000,
        dropout=0.1,
    )  # fmt: skip
    return Case(network, (2, 64))


def _small() -> Case:
    network = dict(
        name="SongUNet", img_resolution=32, in_channels=1, out_channels=1, label_dim=0,
        model_channels=32, channel_mult=(1, 2, 2), num_blocks=1, attn_resolutions=(16,),
        dropout=0.13,
    )  # fmt: skip
    return Case(network, (64, 256))


CASES = {"digits": _digits, "cifar10": _cifar10, "imagenet64": _imagenet64, "small": _small}


def random_batch(model: Model, batch_size: int) -> dict[str, np.ndarray]:
    """uint8 images and labels of a model's shape."""
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (batch_size, *model.image_shape), np.uint8)}
    if model.num_classes:
        batch["label"] = rng.integers(0, model.num_classes, batch_size).astype(np.int32)
    return batch
