"""Everything that a page about a trained model shows, measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from edm_jax.data.sources.base import ImageSource, max_size_indices
from edm_jax.diagnostics import levels as levels_lib
from edm_jax.diagnostics import neighbours as near
from edm_jax.diagnostics.levels import Levels
from edm_jax.diagnostics.neighbours import Neighbours
from edm_jax.evaluation.labels import labels_of
from edm_jax.evaluation.planning import classes_of
from edm_jax.evaluation.protocol import FIRST_SEED
from edm_jax.generate import Sampling, sample
from edm_jax.model import Model
from edm_jax.noise import LogNormal, NoiseDistribution, WeightFn, edm_weight, sample_sigma
from edm_jax.pytree import short_repr

# Of the configured sigma_data; beyond it c_in no longer gives the network unit variance.
TOLERANCE = 0.1
# A sample nearer to a training image than this share of what unseen images are is remembered.
COPY = 0.5


@short_repr
@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was found.

    Attributes:
      told: about the model, for the head of the page.
      levels: errors, losses and gradients, of images of the training set.
      unseen: the same of test images; None without any.
      sigma_draws: levels drawn from the training distribution p(sigma).
      sigma_data: measured deviation of the training images, in data units.
      sigma_data_config: what the preconditioning was told; None if it has none.
      samples: ``(n, H, W, C)`` in [-1, 1].
      nearest_images: ``(n, k, H, W, C)`` training images.
      sample_neighbours: of samples in the training set.
      unseen_neighbours: of test images in the training set; None without.
      spread, training_spread: RMS difference between two samples, two training images.
      warnings: what a person should look at, a line each.
    """

    told: dict[str, Any]
    levels: Levels
    unseen: Levels | None
    sigma_draws: np.ndarray
    sigma_data: float
    sigma_data_config: float | None
    samples: np.ndarray
    nearest_images: np.ndarray
    sample_neighbours: Neighbours
    unseen_neighbours: Neighbours | None
    spread: float
    training_spread: float
    warnings: tuple[str, ...]


def _stack(source: ImageSource, indices: np.ndarray) -> np.ndarray:
    """Images of a source in [-1, 1]."""
    images = np.stack([source[int(i)]["image"] for i in indices])
    return images.astype(np.float32) / 127.5 - 1


def _check_fits(model: Model, source: ImageSource) -> None:
    if model.kind != "denoiser":
        raise ValueError(f"a diagnosis is of a denoiser, and this model is a {model.kind}")
    if tuple(source.image_shape) != model.image_shape:
        raise ValueError(
            f"the model makes images of shape {model.image_shape}, the data have "
            f"{tuple(source.image_shape)}; give the --config of its data"
        )


def _drawn(
    model: Model,
    source: ImageSource,
    seeds: np.ndarray,
    sampling: Sampling | None,
    batch_size: int,
) -> np.ndarray:
    """Samples of all classes of the data, clipped to [-1, 1]."""
    labels = labels_of(model, seeds, "balanced", source)
    samples = sample(model, seeds, labels, sampling=sampling, batch_size=batch_size)
    if not np.isfinite(samples).all():
        raise ValueError("the model gives images that are not finite: has its run diverged?")
    return np.clip(samples, -1, 1)


def diagnose(
    model: Model,
    source: ImageSource,
    test: ImageSource | None = None,
    *,
    distribution: NoiseDistribution | None = None,
    weight: WeightFn = edm_weight,
    sampling: Sampling | None = None,
    num_levels: int = 20,
    num_images: int = 64,
    num_samples: int = 64,
    max_training: int = 50_000,
    first_seed: int = FIRST_SEED,
    batch_size: int = 64,
    report: Callable[[str], None] = print,
) -> Diagnosis:
    """Measure a trained denoiser against its training set.

    Args:
      model: a denoiser.
      source: the images it was trained on.
      test: images it has not seen; without them overfitting cannot show.
      distribution: p(sigma) of its training; None for EDM's.
      weight: lambda(sigma) of its training.
      sampling: how samples are drawn.
      num_levels: from the network's lowest to 80, even in ln sigma.
      num_images: whose errors are measured.
      num_samples: drawn.
      max_training: images of the ideal denoiser and of the search for neighbours; a random
        subset of more.
      first_seed: of the samples.
      batch_size: samples at a time.
      report: told what goes on.

    Raises:
      ValueError: for a model that is no denoiser, or images of another shape.
    """
    _check_fits(model, source)
    if min(num_levels, num_images, num_samples, max_training) < 2:
        raise ValueError("num_levels, num_images, num_samples, max_training must be at least 2")
    kept = max_size_indices(len(source), min(max_training, len(source)))
    training = _stack(source, kept)
    classes = classes_of(source) if model.num_classes else None
    kept_classes = None if classes is None else classes[kept]
    preconditioning = model.preconditioning
    low, high = max(0.002, preconditioning.sigma_min), min(80.0, preconditioning.sigma_max)
    sigmas = np.geomspace(low, high, num_levels)
    report(f"errors at {num_levels} noise levels against {len(training)} training images")
    chosen = max_size_indices(len(training), min(num_images, len(training)), seed=1)
    own = levels_lib.measure(
        model, training[chosen], sigmas, training, weight,
        labels=None if kept_classes is None else kept_classes[chosen],
        training_labels=kept_classes,
    )  # fmt: skip
    unseen, unseen_near = _unseen(
        model, test, sigmas, training, kept_classes, weight, num_images
    )  # fmt: skip
    report(f"drawing {num_samples} samples")
    seeds = first_seed + np.arange(num_samples)
    clipped = _drawn(model, source, seeds, sampling, batch_size)
    sample_near = near.nearest(clipped, training)
    key = jax.random.key(0, impl="threefry2x32")
    draws = sample_sigma(distribution or LogNormal(), key, (20_000,))
    config = preconditioning.sigma_data
    found = Diagnosis(
        told={
            "model": repr(model),
            "weights": model.variant,
            "progress": model.description.get("progress"),
            "training_images": len(source),
            "sampling": (sampling or Sampling()).to_json(),
        },
        levels=own,
        unseen=unseen,
        sigma_draws=np.asarray(draws),
        sigma_data=float(np.std(training.astype(np.float64))),
        sigma_data_config=None if config is None else float(config),
        samples=clipped,
        nearest_images=training[sample_near.index],
        sample_neighbours=sample_near,
        unseen_neighbours=unseen_near,
        spread=near.spread(clipped),
        training_spread=near.spread(training),
        warnings=(),
    )
    return dataclasses.replace(found, warnings=tuple(remarks(found)))


def _unseen(
    model: Model,
    test: ImageSource | None,
    sigmas: np.ndarray,
    training: np.ndarray,
    training_labels: np.ndarray | None,
    weight: WeightFn,
    num_images: int,
) -> tuple[Levels | None, Neighbours | None]:
    """Levels and neighbours of images that were not trained on."""
    if test is None or len(test) < 2 or tuple(test.image_shape) != model.image_shape:
        return None, None
    chosen = max_size_indices(len(test), min(num_images, len(test)), seed=1)
    images = _stack(test, chosen)
    labels = None if training_labels is None else classes_of(test)
    if labels is not None:
        labels = labels[chosen]
        known = np.isin(labels, training_labels)
        images, labels = images[known], labels[known]
    found = levels_lib.measure(
        model, images, sigmas, training, weight,
        labels=labels, training_labels=training_labels,
    )  # fmt: skip
    return found, near.nearest(images, training)


def copies(found: Diagnosis) -> int:
    """Samples that are nearer to a training image than any honest image would be.

    The measure of honest is the median distance of unseen images to the training set; without
    any, that to the second nearest training image.
    """
    first = found.sample_neighbours.distance[:, 0]
    if found.unseen_neighbours is not None:
        return int(np.sum(first < COPY * np.median(found.unseen_neighbours.distance[:, 0])))
    if found.sample_neighbours.distance.shape[1] < 2:
        return 0
    return int(np.sum(first < COPY * found.sample_neighbours.distance[:, 1]))


def remarks(found: Diagnosis) -> list[str]:
    """What a person should look at."""
    lines = []
    measured, config = found.sigma_data, found.sigma_data_config
    if config is not None and abs(measured / config - 1) > TOLERANCE:
        lines.append(
            f"sigma_data is {measured:.3g} in the training images, and the configuration says "
            f"{config:.3g}: set config.precond.edm.sigma_data and config.weight.edm.sigma_data"
        )
    count, usual = copies(found), 0.0
    if found.unseen_neighbours is not None:
        honest = found.unseen_neighbours.distance[:, 0]
        usual = float(np.mean(honest < COPY * np.median(honest)))
    if count > (0.05 + 2 * usual) * len(found.samples):
        lines.append(
            f"{count} of {len(found.samples)} samples are nearly training images: the model has "
            "learnt them by heart; train for less time, or on more images"
        )
    if found.spread < 0.7 * found.training_spread:
        lines.append(
            f"samples differ by {found.spread:.3g}, training images by "
            f"{found.training_spread:.3g}: the samples lack variety"
        )
    if found.unseen is not None:
        mine, other = (
            float(np.exp(np.mean(np.log(np.maximum(one.error, 1e-12)))))
            for one in (found.levels, found.unseen)
        )
        if other > 1.3 * mine:
            lines.append(
                f"the error of unseen images is {other / mine:.2g} times that of training images: "
                "the model overfits"
            )
    high = np.quantile(found.sigma_draws, 0.999)
    if np.mean(found.levels.sigmas > high) > 0.5:
        lines.append(f"training draws next to no level above {high:.3g}, half of those sampled")
    return lines
