"""Every training objective by name; a new one is its own file and a line here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from edm_jax.noise import NoiseDistribution, WeightFn
from edm_jax.precond import Preconditioning
from edm_jax.train.objective import DenoisingObjective, Objective
from edm_jax.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Parts:
    """What an experiment has to make an objective of; each takes what it needs.

    Attributes:
      apply: of the network.
      image_shape: ``(H, W, C)`` of the data.
      num_classes: dimension of the labels, 0 for none.
      preconditioning, distribution, weight: see `objective.DenoisingObjective`.
      augment: None, or ``(keys, images) -> (images, augment_labels)``.
    """

    apply: Callable[..., Array]
    image_shape: tuple[int, int, int]
    num_classes: int
    preconditioning: Preconditioning
    distribution: NoiseDistribution
    weight: WeightFn
    augment: Callable[[Key, Array], tuple[Array, Array]] | None = None


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


# ``(parts, **options) -> objective``, which has ``per_image(params, buffers, batch, key,
# image_ids) -> (loss, level)``; the training step knows no more.
OBJECTIVES: Mapping[str, Callable[..., Any]] = {"denoising": denoising}
