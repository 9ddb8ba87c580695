"""Every training objective by name; a new one is its own file and a line here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edm_jax.ardm.objective import OrderAgnostic
from edm_jax.ardm.registry import build as build_process
from edm_jax.ddpm.losses import LossKind
from edm_jax.ddpm.process import ddpm_process
from edm_jax.noise import NoiseDistribution, WeightFn
from edm_jax.precond import Preconditioning
from edm_jax.pytree import short_repr
from edm_jax.train.classifier import ClassifierObjective
from edm_jax.train.ddpm import DDPMObjective, ResampledDDPMObjective
from edm_jax.train.objective import DenoisingObjective, Objective
from edm_jax.train.reflected import ReflectedObjective, reflected_weight
from edm_jax.typing import Array, Key


@short_repr
@dataclasses.dataclass(frozen=True)
class Parts:
    """What an experiment has to make an objective of; each takes what it needs.

    Attributes:
      apply: of the network.
      image_shape: ``(H, W, C)`` of the data, or ``(L,)``.
      num_classes: dimension of the labels, 0 for none.
      preconditioning, distribution, weight: see `objective.DenoisingObjective`.
      augment: None, or ``(keys, images) -> (images, augment_labels)``.
      batch_size: global.
    """

    apply: Callable[..., Array]
    image_shape: tuple[int, ...]
    num_classes: int
    preconditioning: Preconditioning
    distribution: NoiseDistribution
    weight: WeightFn
    augment: Callable[[Key, Array], tuple[Array, Array]] | None = None
    batch_size: int = 1


def denoising(parts: Parts) -> Objective:
    """Denoising score matching (EDM Eq. 8)."""
    return DenoisingObjective(
        apply=parts.apply,
        preconditioning=parts.preconditioning,
        distribution=parts.distribution,
        weight=parts.weight,
        num_classes=parts.num_classes,
        augment=parts.augment,
    )


def ddpm(
    parts: Parts,
    *,
    loss: str = "hybrid",
    variance: str = "learned",
    prediction: str = "eps",
    bound_factor: float | None = None,
    schedule: str = "cosine",
    num_levels: int = 1000,
    resample: bool = False,
) -> Objective:
    """DDPM, iDDPM and ADM as published: `ddpm.LossKind`, `ddpm.ddpm_process`.

    Raises:
      ValueError: the preconditioning tells the network other time labels than the process.
    """
    process = ddpm_process(schedule, num_levels)
    levels = process.tables["sigma"].astype(np.float32)
    told = np.asarray(parts.preconditioning(levels).c_noise)
    if not np.allclose(told, process.labels, atol=0.5):
        raise ValueError(
            f"the ddpm objective trains on {num_levels} {schedule} levels, which are not those of "
            f"the {parts.preconditioning.name} preconditioning; use 'iddpm' with the same table"
        )
    kind = LossKind(loss, variance, prediction, bound_factor)
    made = ResampledDDPMObjective if resample else DDPMObjective
    return made(parts.apply, process, kind, parts.num_classes, parts.augment)


def classifier(parts: Parts) -> Objective:
    """Cross entropy of a noisy classifier, at levels from p(sigma)."""
    if parts.augment is not None:
        raise ValueError("a classifier is not told how images are augmented; leave augment out")
    return ClassifierObjective(
        parts.apply, parts.preconditioning, parts.distribution, parts.num_classes
    )


def order_agnostic(
    parts: Parts,
    process: Mapping[str, Any],
    ce_weight: float = 0.001,
    steps: str = "uniform",
    levels: bool = True,
) -> Objective:
    """Autoregressive diffusion (Hoogeboom et al. 2022).

    Args:
      parts: of which the network, the shape, the labels and the batch are used.
      process: ``{"name": ..., **arguments}`` of `ardm.registry.build`.
      ce_weight, steps, levels: see `OrderAgnostic`.
    """
    if parts.augment is not None:
        raise ValueError(
            "augmentation makes values between the grey levels; leave augment out (mirror is fine)"
        )
    return OrderAgnostic(
        apply=parts.apply,
        process=build_process(**process),
        shape=tuple(parts.image_shape),
        batch_size=parts.batch_size,
        ce_weight=ce_weight,
        steps=steps,
        levels=levels,
        num_classes=parts.num_classes,
    )


def reflected(parts: Parts, weighting: str = "image") -> Objective:
    """Score matching of reflected diffusion (Lou and Ermon 2023).

    Args:
      parts: of the experiment; its weight is not asked.
      weighting: "image", or "likelihood" for the bound in nats.
    """
    return ReflectedObjective(
        apply=parts.apply,
        preconditioning=parts.preconditioning,
        distribution=parts.distribution,
        weight=reflected_weight(weighting, parts.distribution),
        num_classes=parts.num_classes,
        augment=parts.augment,
    )


# ``(parts, **options) -> objective``, which has ``per_image(params, buffers, batch, key,
# image_ids) -> (loss, level)``; the training step knows no more.
OBJECTIVES: Mapping[str, Callable[..., Any]] = {
    "denoising": denoising,
    "ddpm": ddpm,
    "classifier": classifier,
    "order_agnostic": order_agnostic,
    "reflected": reflected,
}

# What kind of model (`store.description.KINDS`) an objective trains, if not a denoiser.
KINDS: Mapping[str, str] = {
    "reflected": "reflected",
    "classifier": "classifier",
    "order_agnostic": "ardm",
}
