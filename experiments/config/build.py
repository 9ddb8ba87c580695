"""From configuration groups to objects; the only place that reads a ConfigDict's meaning."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import ml_collections
import numpy as np

from edm_jax import models
from edm_jax.augment.pipe import AugmentPipe, augment
from edm_jax.data.sources.base import ImageSource, Subset, max_size_indices
from edm_jax.grids import make_sigmas
from edm_jax.model import describe
from edm_jax.noise import DISTRIBUTIONS, WEIGHTS, NoiseDistribution, WeightFn
from edm_jax.precond import PRECONDITIONINGS, Preconditioning
from edm_jax.samplers import Churn
from edm_jax.train.averaging import Averaging
from edm_jax.train.objective import DenoisingObjective
from edm_jax.train.optimizer import make_optimizer
from edm_jax.train.step import make_train_step

SONG_UNET_ONLY = (
    "embedding_type",
    "channel_mult_noise",
    "encoder_type",
    "decoder_type",
    "resample_filter",
)


class ConfigError(ValueError):
    """A configuration that cannot work, said in one line."""


class NoTestSplit(ConfigError):
    """A data set that has no images apart from those trained on."""


def pick(table: Mapping[str, Any], name: str, where: str) -> Any:
    """``table[name]``, or a ConfigError that names the nearest known name."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{where}={name!r} is not known ({', '.join(sorted(table))}){hint}")


def _choice(group: ml_collections.ConfigDict, table: Mapping[str, Callable], where: str):
    """Constructor and constants of a group that has a name and constants per name."""
    constructor = pick(table, group.name, f"{where}.name")
    return constructor, group.get(group.name, ml_collections.ConfigDict()).to_dict()


# ------------------------------------------------------------------------------- data


def build_source(config: ml_collections.ConfigDict, *, split: str = "train") -> ImageSource:
    """The data set that a configuration names.

    Args:
      config: its ``data`` group is read.
      split: ``train``, or ``test`` where the data set has one.

    Raises:
      ConfigError, ValueError: for an unknown kind, a path that holds no data set, or images
        of another size than ``data.resolution``.
    """
    source = pick(SOURCES, config.data.source, "config.data.source")(config.data, split)
    resolution = config.data.resolution
    if resolution and tuple(source.image_shape[:2]) != (resolution, resolution):
        raise ConfigError(
            f"config.data.resolution={resolution}, but the images of the data set are "
            f"{source.image_shape[0]}x{source.image_shape[1]}"
        )
    if config.data.max_size and split == "train":
        source = Subset(source, max_size_indices(len(source), config.data.max_size))
    if not config.data.conditional and source.num_classes:
        source = Unlabelled(source)
    return source


def build_test_source(config: ml_collections.ConfigDict) -> ImageSource | None:
    """The images of a configuration's data set that were not trained on, or None.

    Raises:
      ConfigError, ValueError: as `build_source`.
    """
    try:
        return build_source(config, split="test")
    except NoTestSplit:
        return None


def _digits(data: ml_collections.ConfigDict, split: str) -> ImageSource:
    from edm_jax.data.sources.digits import digits

    return digits(split)


def _images(data: ml_collections.ConfigDict, split: str) -> ImageSource:
    from edm_jax.data.sources.image_files import open_images

    if not data.path:
        raise ConfigError("config.data.path is missing: the folder or .zip file of images")
    if split != "train":
        raise NoTestSplit("a folder of images has no test split")
    return open_images(data.path, use_labels=data.conditional)


def _tfds(data: ml_collections.ConfigDict, split: str) -> ImageSource:
    from edm_jax.data.sources.tfds import TfdsSource

    if not data.path:
        raise ConfigError("config.data.path is missing: the name of the TFDS data set")
    name, _, own_split = data.path.partition(":")
    return TfdsSource(
        name, own_split if own_split and split == "train" else split, use_labels=data.conditional
    )


SOURCES = {"digits": _digits, "images": _images, "tfds": _tfds}


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """A source with its labels left out."""

    source: ImageSource
    num_classes: int = 0
    label_names: None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        return self.source.image_shape

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.source[index]["image"]}


# ---------------------------------------------------------------- network, denoiser, loss


def network_arguments(config: ml_collections.ConfigDict, source: ImageSource) -> dict[str, Any]:
    """``{"name": ..., **arguments}`` of the network, sizes taken from the data."""
    height, width, channels = source.image_shape
    if height != width:
        raise ConfigError(f"images must be square, got {height}x{width}")
    arguments = config.model.to_dict()
    if arguments["name"] != "SongUNet":
        for key in SONG_UNET_ONLY:
            arguments.pop(key, None)
    preconditioning = build_preconditioning(config)
    return arguments | {
        "img_resolution": height,
        "in_channels": channels,
        "out_channels": channels * preconditioning.channel_multiplier,
        "label_dim": source.num_classes,
        "augment_dim": pipe.label_dim if (pipe := build_augment(config)) else 0,
    }


def build_network(arguments: Mapping[str, Any]) -> nn.Module:
    """The network of `network_arguments`."""
    arguments = dict(arguments)
    return models.build(arguments.pop("name"), **arguments)


def build_preconditioning(config: ml_collections.ConfigDict) -> Preconditioning:
    """The preconditioning of a configuration."""
    constructor, constants = _choice(config.precond, PRECONDITIONINGS, "precond")
    return constructor(**constants)


def build_distribution(config: ml_collections.ConfigDict) -> NoiseDistribution:
    """p(sigma) of a configuration."""
    constructor, constants = _choice(config.noise, DISTRIBUTIONS, "noise")
    return constructor(**constants)


def build_weight(config: ml_collections.ConfigDict) -> WeightFn:
    """lambda(sigma) of a configuration."""
    function, constants = _choice(config.weight, WEIGHTS, "weight")
    return lambda sigma: function(sigma, **constants)


def build_augment(config: ml_collections.ConfigDict) -> AugmentPipe | None:
    """The augmentation of a configuration, or None."""
    group = config.augment.to_dict()
    probability = group.pop("probability")
    return AugmentPipe(p=probability, **group) if probability else None


def build_objective(
    config: ml_collections.ConfigDict, net: nn.Module, source: ImageSource
) -> DenoisingObjective:
    """The training loss of a configuration."""
    pipe = build_augment(config)
    return DenoisingObjective(
        apply=net.apply,
        preconditioning=build_preconditioning(config),
        distribution=build_distribution(config),
        weight=build_weight(config),
        num_classes=source.num_classes,
        augment=pipe and (lambda keys, images: augment(keys, images, pipe)),
    )


def build_description(
    config: ml_collections.ConfigDict,
    source: ImageSource,
    progress: Mapping[str, Any] | None = None,
) -> dict:
    """What makes a checkpoint of this run self-describing."""
    name = config.precond.name
    return describe(
        network=network_arguments(config, source),
        precond={"name": name, **config.precond[name].to_dict()},
        image_shape=source.image_shape,
        num_classes=source.num_classes,
        label_names=source.label_names,
        progress=progress,
        variants=[*build_averaging(config).names(), "raw"],
        data={"num_images": len(source)},
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


# ------------------------------------------------------------------ training and sampling


@dataclasses.dataclass(frozen=True)
class Intervals:
    """The training schedule in steps, from its configuration in thousands of images.

    Attributes:
      total: steps of the run.
      log, sample, checkpoint, evaluation: steps between lines, grids, checkpoints and
        evaluations; 0 for never.
      keep_every: checkpoints at multiples of this are kept for good; 0 for none.
    """

    total: int
    log: int
    sample: int
    checkpoint: int
    evaluation: int
    keep_every: int

    def grid_due(self, step: int) -> bool:
        """Whether a grid of samples is made after a step: always at both ends."""
        return step in (0, self.total) or bool(self.sample and step % self.sample == 0)

    def evaluation_due(self, step: int) -> bool:
        """Whether an evaluation follows a step; the end of a run has its own."""
        return bool(self.evaluation and step % self.evaluation == 0) and 0 < step < self.total


def build_intervals(config: ml_collections.ConfigDict) -> Intervals:
    """Intervals in steps; each at least one step where it is not 0."""
    train = config.train

    def steps(kimg: float) -> int:
        return max(round(kimg * 1000 / train.batch_size), 1) if kimg else 0

    checkpoint = steps(train.checkpoint_kimg)
    # Only multiples of the checkpoint interval exist, so only those can be kept.
    keep_every = steps(train.keep_every_kimg)
    if keep_every:
        keep_every = max(round(keep_every / checkpoint), 1) * checkpoint
    return Intervals(
        total=math.ceil(train.total_kimg * 1000 / train.batch_size),
        log=steps(train.log_kimg),
        sample=steps(train.sample_kimg),
        checkpoint=checkpoint,
        evaluation=steps(config.evaluation.every_kimg) if config.evaluation.num_images else 0,
        keep_every=keep_every,
    )


def build_averaging(config: ml_collections.ConfigDict) -> Averaging:
    """The EMAs of a configuration."""
    ratio = config.train.ema_rampup_ratio
    return Averaging(tuple(config.train.ema_halflife_kimg), ratio if ratio else None)


def build_optimizer(config: ml_collections.ConfigDict):
    """The optimizer of a configuration."""
    train = config.train
    return make_optimizer(
        batch_size=train.batch_size,
        lr=train.lr,
        lr_rampup_kimg=train.lr_rampup_kimg,
        b1=train.adam_b1,
        b2=train.adam_b2,
        eps=train.adam_eps,
        grad_clip_norm=train.grad_clip_norm,
    )


def build_train_step(config: ml_collections.ConfigDict, net: nn.Module, source: ImageSource):
    """The training step of a configuration, to be jitted with the state donated."""
    return make_train_step(
        build_objective(config, net, source),
        build_optimizer(config),
        build_averaging(config),
        batch_size=config.train.batch_size,
        log_every=build_intervals(config).log,
        loss_scaling=config.train.loss_scaling,
        micro_batch=config.train.micro_batch,
        max_bad_steps=config.train.max_bad_steps,
    )


def sampler_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Keyword arguments for `edm_jax.sample`."""
    group = config.sampler
    churn = None
    if group.s_churn:
        churn = Churn(group.s_churn, group.s_tmin, group.s_tmax, group.s_noise)
    return dict(
        num_steps=group.num_steps,
        sigma_min=group.sigma_min,
        sigma_max=group.sigma_max,
        rho=group.rho,
        churn=churn,
        batch_size=group.batch_size,
    )


def sampler_sigmas(preconditioning: Preconditioning, arguments: Mapping[str, Any]) -> np.ndarray:
    """The noise levels that `edm_jax.sample` visits with `sampler_arguments`; ``(N+1,)``.

    Raises:
      ValueError: for a grid that the network cannot be sampled on.
    """
    options = {key: arguments[key] for key in ("num_steps", "sigma_min", "sigma_max", "rho")}
    return make_sigmas("edm", **options, preconditioning=preconditioning)
