"""One block of seeds under cells that share a program: images to numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from edm_jax import generate
from edm_jax.evaluation.labels import labels_of
from edm_jax.evaluation.planning import Plan
from edm_jax.guidance.compose import label_dim
from edm_jax.model import Model
from edm_jax.pytree import short_repr
from edm_jax.studies import lanes, quality, steps
from edm_jax.studies.declaration import DISTANCE, TRUNCATION, Study
from edm_jax.studies.planning import Planned

# Blocks of accurate solutions in memory.
KEPT = 32


@short_repr
class Block(NamedTuple):
    """What a cell gave on one block of seeds.

    Attributes:
      values: measures by their keys.
      steps: ``(N-1,)`` errors of the steps, where they were asked for.
    """

    values: dict[str, float]
    steps: np.ndarray | None


def seeds_of(study: Study, block: int) -> np.ndarray:
    """The seeds of a block, ``(num_images,)``; blocks beyond those of the study are fresh."""
    return study.first_seed + block * study.num_images + np.arange(study.num_images)


def images_at_once(study: Study) -> int:
    """Images of a cell at a time."""
    return min(study.batch_size, study.num_images)


class Accurate:
    """Accurate solutions of the latents of a model's seeds, made once for each guidance."""

    def __init__(self, model: Model, study: Study, poll: Callable[[], None] | None = None) -> None:
        self.model, self.study, self.poll = model, study, poll
        self.kept: dict[tuple[str, int], np.ndarray] = {}

    def __call__(self, one: Planned, block: int, labels: np.ndarray | None) -> np.ndarray:
        """``(n, H, W, C)`` of a block."""
        key = (json.dumps(one.cell.guidance, sort_keys=True), block)
        if key not in self.kept:
            parts = []
            for _, images in generate.batches(
                self.model, seeds_of(self.study, block), labels, self.study.accurate, one.lane[2],
                batch_size=images_at_once(self.study),
            ):  # fmt: skip
                parts.append(images)
                if self.poll is not None:
                    self.poll()
            if len(self.kept) >= KEPT:
                del self.kept[next(iter(self.kept))]
            self.kept[key] = np.concatenate(parts)
        return self.kept[key]


def measure(
    study: Study,
    plan: Plan | None,
    model: Model,
    group: Sequence[Planned],
    block: int,
    accurate: Accurate,
    *,
    width: int = 1,
    sharding: jax.sharding.NamedSharding | None = None,
    poll: Callable[[], None] | None = None,
) -> list[Block | Exception]:
    """A block of images of every cell of a group, measured.

    Args:
      study: measures and seeds.
      plan: of its metrics, or None.
      model: of the cells.
      group: cells of one signature.
      block: which seeds, see `seeds_of`.
      accurate: solutions to compare with.
      width: lanes of the program; fewer cells are padded, so that they share it.
      sharding: of images over devices of this process.
      poll: called for each batch; may raise.

    Returns:
      For each cell a Block, or the error that is its own.
    """
    # Padded with the last, so that any number of cells is the same program.
    side_by_side = [one.lane for one in [*group, *[group[-1]] * (width - len(group))]]
    seeds = seeds_of(study, block)
    labels = labels_of(model, seeds, study.labels, None if plan is None else plan.real)
    rows_of = generate.row_source(model, seeds, labels, label_dim(model, group[0].lane[2]))
    failed: dict[int, Exception] = {}
    values: list[dict[str, float]] = [{} for _ in group]
    if set(study.quality) != {TRUNCATION}:
        meters = [_meters(study, plan, one, block, labels, accurate) for one in group]
        for first, images in lanes.batches(
            model, seeds, rows_of, side_by_side,
            batch_size=images_at_once(study), sharding=sharding,
        ):  # fmt: skip
            for i, own in enumerate(meters):
                if i not in failed:
                    _feed(i, own, images[i], seeds, first, failed)
            if poll is not None:
                poll()
        for i, own in enumerate(meters):
            for meter in own if i not in failed else ():
                values[i] |= meter.values()
    errors = None
    if TRUNCATION in study.quality:
        errors = steps.step_errors(
            model, seeds, rows_of, side_by_side,
            batch_size=images_at_once(study), substeps=study.substeps,
        )  # fmt: skip
        for i in range(len(group)):
            values[i][TRUNCATION] = float(errors[i].sum())
            if not np.isfinite(errors[i]).all():
                failed[i] = ValueError("the errors of its steps are not finite")
    return [
        failed.get(i) or Block(values[i], None if errors is None else errors[i])
        for i in range(len(group))
    ]


def _meters(
    study: Study,
    plan: Plan | None,
    one: Planned,
    block: int,
    labels: np.ndarray | None,
    accurate: Accurate,
) -> list[quality.Meter]:
    meters: list[quality.Meter] = []
    if DISTANCE in study.quality:
        meters.append(quality.Distance(accurate(one, block, labels)))
    if plan is not None:
        meters.append(quality.OfPlan(plan, labels))
    return meters


def _feed(
    lane: int,
    meters: Sequence[quality.Meter],
    images: np.ndarray,
    seeds: np.ndarray,
    first: int,
    failed: dict[int, Exception],
) -> None:
    """Images of a lane to its meters; those that are not finite end that lane alone."""
    good = np.isfinite(images).reshape(len(images), -1).all(axis=1)
    if not good.all():
        seed = seeds[first + int(np.argmin(good))]
        failed[lane] = ValueError(f"its images are not finite, the first of seed {seed}")
        return
    for meter in meters:
        meter.update(images, first)
