"""An experiment: everything that a configuration says, as objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from edm_jax import models
from edm_jax.ardm.process import Process
from edm_jax.ardm.registry import build as build_process
from edm_jax.ardm.registry import network_sizes
from edm_jax.ardm.request import Decoding
from edm_jax.augment.drawing import AugmentPipe
from edm_jax.augment.pipe import augment
from edm_jax.data.sources.base import ImageSource, example_vectors, present_classes
from edm_jax.generate import Sampling
from edm_jax.model import describe
from edm_jax.noise import NoiseDistribution, WeightFn
from edm_jax.precond import Preconditioning
from edm_jax.train.averaging import Averaging
from edm_jax.train.objectives import KINDS, OBJECTIVES, Parts
from edm_jax.train.step import make_train_step
from experiments.config.groups import ConfigError, construct, named
from experiments.config.options import Data, Evaluation, Intervals, Training

# How a network is computed, and what that is of one that leaves no choice.
SHARED = {"dtype": "float32", "remat": "none"}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network whose sizes are those of the data.

    Attributes:
      name: a key of `models.NETWORKS`.
      options: its arguments, but for the sizes.
      shared: of SHARED, given to those that have them.
    """

    name: str
    options: Mapping[str, Any]
    shared: Mapping[str, Any]

    def arguments(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """``{"name": ..., **arguments}`` with those of the sizes that it has as fields.

        Args:
          sizes: ``image_shape`` ``(H, W, C)`` or ``(L,)``, ``in_channels`` and so on.

        Raises:
          ConfigError: as `check_shape`.
        """
        fields = {field.name for field in dataclasses.fields(models.NETWORKS[self.name])}
        for key, value in self.shared.items():
            if key not in fields and value != SHARED[key]:
                raise ConfigError(f"config.model.{key}={value}: {self.name} has no {key}")
        shape = tuple(sizes["image_shape"])
        self.check_shape(shape)
        given = self.shared | sizes | ({"img_resolution": shape[0]} if len(shape) == 3 else {})
        return {"name": self.name, **self.options} | {
            key: value for key, value in given.items() if key in fields
        }

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ConfigError for data of another form than the network takes.

        Args:
          shape: of one example, ``(H, W, C)`` or ``(L,)``.
        """
        fields = {field.name for field in dataclasses.fields(models.NETWORKS[self.name])}
        told = "x".join(map(str, shape))
        if len(shape) == 1 and "length" not in fields:
            raise ConfigError(
                f"config.model.name: {self.name} takes images, and the data are sequences of "
                f"{told}; choose ArdmTransformer"
            )
        if len(shape) == 3 and "length" in fields:
            raise ConfigError(
                f"config.model.name: {self.name} takes sequences, and the data are images of "
                f"{told}; choose ArdmUNet"
            )
        if len(shape) == 3 and "img_resolution" in fields and shape[0] != shape[1]:
            raise ConfigError(f"{self.name} takes square images, got {shape[0]}x{shape[1]}")

    def build(self, arguments: Mapping[str, Any]) -> nn.Module:
        """The network of `arguments`.

        Raises:
          ConfigError: for a value it does not take.
        """
        arguments = dict(arguments)
        keys = {key: f"config.model.{key}" for key in self.shared}
        with named(f"config.model.{self.name}", self.options, keys):
            return models.build(arguments.pop("name"), **arguments)


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A configuration, read.

    What depends on the data (network, objective, description) is made for a data set, or for
    anything else that has its ``image_shape``, ``num_classes`` and ``label_names``.

    Attributes:
      config: what it was read from, as plain values; for the record alone.
      seed: everything random follows from it.
      data: the images; `Data.open` opens them.
      network: before it has its sizes.
      preconditioning: of the network.
      precond: ``{"name": ..., **constants}`` that say the same in a description.
      objective: its name and options, as a group.
      distribution, weight: p(sigma) and lambda(sigma), for the objectives that have them.
      augment: the augmentation, or None.
      optimizer: of the weights.
      averaging: the averages of the weights.
      training: how it is carried out.
      intervals: its schedule.
      sampling: how images are drawn from the model.
      sample_batch: how many at a time.
      evaluation: what is measured.
    """

    config: Mapping[str, Any]
    seed: int
    data: Data
    network: Network
    preconditioning: Preconditioning
    precond: Mapping[str, Any]
    objective: Mapping[str, Any]
    distribution: NoiseDistribution
    weight: WeightFn
    augment: AugmentPipe | None
    optimizer: optax.GradientTransformation
    averaging: Averaging
    training: Training
    intervals: Intervals
    sampling: Sampling | Decoding
    sample_batch: int
    evaluation: Evaluation

    @property
    def kind(self) -> str:
        """What kind of model is trained."""
        return KINDS.get(self.objective["name"], "denoiser")

    @property
    def draws_images(self) -> bool:
        """Whether the model that is trained is one of images, which are drawn from it."""
        return self.kind != "classifier" and not self.sequences

    @property
    def sequences(self) -> bool:
        """Whether the model that is trained is one of sequences."""
        network = models.NETWORKS.get(self.network.name)
        return network is not None and any(f.name == "length" for f in dataclasses.fields(network))

    def key(self) -> jax.Array:
        """The key that everything random in a run follows from."""
        return jax.random.key(self.seed, impl="threefry2x32")

    def shown_levels(self, count: int, preconditioning: Preconditioning | None) -> np.ndarray:
        """``(count,)`` rising noise levels at which losses are shown.

        They span those of the sampling request, or of the default one where that has a single
        level, which spans nothing.
        """
        levels = self.sampling.grid(preconditioning)
        if len(levels) < 3:
            levels = Sampling().grid(preconditioning)
        return np.geomspace(levels[-2], levels[0], count)

    def on(self, platform: str) -> tuple[Experiment, str]:
        """This run as a platform computes it, and what is to be said of the difference.

        TPUs compute in bfloat16, and in float16 only by way of float32: feature maps asked for in
        float16 are bfloat16 there.  A scaled loss stays, as Adam does not see it.

        Args:
          platform: ``cpu``, ``gpu`` or ``tpu``.

        Returns:
          The experiment, whose ``config`` still says what was asked for, and a line; "" if
          nothing differs.
        """
        if platform != "tpu" or self.network.shared.get("dtype") != "float16":
            return self, ""
        shared = {**self.network.shared, "dtype": "bfloat16"}
        network = dataclasses.replace(self.network, shared=shared)
        note = "config.model.dtype=float16: bfloat16 on TPUs, which have no float16 units"
        return dataclasses.replace(self, network=network), note

    def network_arguments(self, source: ImageSource) -> dict[str, Any]:
        """``{"name": ..., **arguments}`` of the network, sizes taken from the data."""
        channels = source.image_shape[-1]
        sizes = {"image_shape": tuple(source.image_shape), "label_dim": source.num_classes}
        if self.kind == "ardm":
            self.network.check_shape(tuple(source.image_shape))
            self._check_values(source)
            sizes |= network_sizes(self.process, tuple(source.image_shape))
        else:
            sizes |= {
                "in_channels": channels,
                "out_channels": channels * self.preconditioning.channel_multiplier,
                "augment_dim": self.augment.label_dim if self.augment else 0,
            }
        if self.kind == "classifier":  # what it tells apart; a classifier is told no labels
            if source.num_classes < 2:
                raise ConfigError(
                    "config.objective: a classifier needs labelled data of at least 2 classes, got "
                    f"{source.num_classes}"
                )
            sizes["num_classes"] = source.num_classes
        return self.network.arguments(sizes)

    @property
    def process(self) -> Process:
        """What an autoregressive model draws; of kind "ardm" alone."""
        return build_process(**self.objective["order_agnostic"]["process"])

    def _check_values(self, source: ImageSource) -> None:
        """Raise ConfigError for data that have other values than the model."""
        chosen = self.objective["order_agnostic"]
        known, has = getattr(source, "num_values", None), self.process.num_values
        if known is not None and known != has:
            raise ConfigError(
                f"config.objective.order_agnostic.process: num_values is {has}, and the tokens of "
                f"the data have {known} values; make them equal"
            )
        sequences = len(source.image_shape) == 1
        if sequences and self.data.mirror:
            raise ConfigError("config.data.mirror: sequences are not mirrored; set it to False")
        if sequences and chosen.get("levels", True):
            raise ConfigError(
                "config.objective.order_agnostic.levels: grey levels are made of pixels, and the "
                "data are sequences; set it to False"
            )

    def build_network(self, source: ImageSource, **changes: Any) -> nn.Module:
        """The network for a data set, with some arguments changed."""
        return self.network.build(self.network_arguments(source) | changes)

    def build_objective(self, net: nn.Module, source: ImageSource) -> Any:
        """The training loss."""
        pipe = self.augment
        parts = Parts(
            apply=net.apply,
            image_shape=tuple(source.image_shape),
            num_classes=source.num_classes,
            preconditioning=self.preconditioning,
            distribution=self.distribution,
            weight=self.weight,
            augment=pipe and (lambda keys, images: augment(keys, images, pipe)),
            batch_size=self.training.batch_size,
        )
        return construct(OBJECTIVES, self.objective, "config.objective", parts)

    def build_train_step(self, net: nn.Module, source: ImageSource) -> Any:
        """The training step, to be jitted with the state donated."""
        return make_train_step(
            self.build_objective(net, source),
            self.optimizer,
            self.averaging,
            batch_size=self.training.batch_size,
            log_every=self.intervals.log,
            loss_scaling=self.training.loss_scaling,
            micro_batch=self.training.micro_batch,
            max_bad_steps=self.training.max_bad_steps,
        )

    def description(
        self,
        source: ImageSource,
        progress: Mapping[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What makes a checkpoint of this run self-describing, and what its objective tells."""
        present = present_classes(source)
        data: dict[str, Any] = {"num_images": len(source)}
        if present is not None and len(present) < source.num_classes:
            data["classes"] = list(present)
        if source.num_classes and (vectors := example_vectors(source)) is not None:
            data["label_vectors"] = vectors
        if getattr(source, "alphabet", None):
            data["alphabet"] = source.alphabet
        parts: dict[str, Any] = {"precond": self.precond}
        if self.kind == "ardm":
            parts = {"process": self.objective["order_agnostic"]["process"]}
        return describe(
            network=self.network_arguments(source),
            kind=self.kind,
            image_shape=source.image_shape,
            num_classes=source.num_classes,
            label_names=source.label_names,
            progress=progress,
            variants=[*self.averaging.names(), "raw"],
            data=data,
            **parts,
            **(more or {}),
        )


def data_difference(description: Mapping[str, Any], source: ImageSource) -> str:
    """How the images that a model is described for differ from those of a data set; or "".

    Args:
      description: with ``image_shape`` ``[H, W, C]`` and ``num_classes``, see
        `edm_jax.store.description`.
      source: the data set.
    """
    for what, of_model, of_data in (
        ("images of shape", description.get("image_shape"), list(source.image_shape)),
        ("classes:", description.get("num_classes"), source.num_classes),
    ):
        if of_model != of_data:
            return f"{what} {of_model}, the data set of this configuration has {of_data}"
    return ""
