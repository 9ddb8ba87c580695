"""The options of a run that no object of the library has: data, schedule, evaluation."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from edm_jax.arguments import check_number
from edm_jax.data.sources import registry
from edm_jax.data.sources.base import (
    ImageSource,
    NoTestSplit,
    Subset,
    Unlabelled,
    max_size_indices,
)
from edm_jax.train.sharding import LAYOUTS
from experiments.config.groups import named

MAX_STEPS = 2**31 - 1
MAX_BATCH = 2**20


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images are trained on, and how they are read; nothing is opened before `open`.

    Attributes:
      source: a key of `registry.SOURCES`.
      path: where the images are.
      conditional: whether the labels, if there are any, are used.
      resolution: width and height that the images must have; 0: as stored.
      max_size: train on a random subset of this many; 0: all.
      mirror: random left-right flips.
      num_threads, num_workers: reading threads, and processes.
      options: of the source.
    """

    source: str
    path: str = ""
    conditional: bool = True
    resolution: int = 0
    max_size: int = 0
    mirror: bool = False
    num_threads: int = 8
    num_workers: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_number("num_threads", self.num_threads, least=1)
        for name in ("resolution", "max_size", "num_workers"):
            check_number(name, getattr(self, name), least=0)

    def open(self, split: str = "train") -> ImageSource:
        """The data set.

        Args:
          split: ``train``, or ``test`` where there is one.

        Raises:
          ConfigError: for an unknown source, a path that holds no data set, or images of
            another size than ``resolution``.
          NoTestSplit: where there is none.
        """
        with named("config.data", ("path", "source", "resolution")):
            source = registry.open_source(
                self.source,
                os.path.expanduser(self.path),
                split,
                use_labels=self.conditional,
                **self.options,
            )
            size = source.image_shape[:2]
            if self.resolution and size != (self.resolution, self.resolution):
                what = "images" if len(size) == 2 else "sequences"
                raise ValueError(
                    f"resolution is {self.resolution}, but the {what} of the data set are "
                    f"{'x'.join(map(str, size))}"
                )
        if self.max_size and split == "train":
            source = Subset(source, max_size_indices(len(source), self.max_size))
        return source if self.conditional or not source.num_classes else Unlabelled(source)

    def open_test(self) -> ImageSource | None:
        """The images that are not trained on, or None where there are none."""
        try:
            return self.open("test")
        except NoTestSplit:
            return None


@dataclasses.dataclass(frozen=True)
class Training:
    """How a run is carried out.

    Attributes:
      batch_size: global.
      micro_batch: global images per round of gradient accumulation; 0: all at once.
      sharding: layout of the state, of `sharding.LAYOUTS`.
      lr, lr_rampup_kimg, lr_end_kimg: of `optimizer.learning_rate`.
      loss_scaling: factor on the loss before it is differentiated.
      max_bad_steps: so many steps in a row that are not finite stop the run.
      keep_last: how many checkpoints are kept, besides those for good.
    """

    batch_size: int
    micro_batch: int
    sharding: str
    lr: float
    lr_rampup_kimg: float
    lr_end_kimg: float
    loss_scaling: float
    max_bad_steps: int
    keep_last: int

    def __post_init__(self) -> None:
        check_number("batch_size", self.batch_size, least=1, most=MAX_BATCH)
        check_number("micro_batch", self.micro_batch, least=0)
        check_number("lr", self.lr, above=0)
        check_number("lr_rampup_kimg", self.lr_rampup_kimg, least=0)
        check_number("loss_scaling", self.loss_scaling, above=0)
        check_number("max_bad_steps", self.max_bad_steps, least=1)
        check_number("keep_last", self.keep_last, least=2)
        if self.sharding not in LAYOUTS:
            raise ValueError(f"sharding must be {' or '.join(LAYOUTS)}, got {self.sharding!r}")

    @property
    def together(self) -> int:
        """Images of one round of gradient accumulation."""
        return self.micro_batch or self.batch_size


@dataclasses.dataclass(frozen=True)
class Intervals:
    """The schedule of a run in steps.

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

    @classmethod
    def from_kimg(
        cls,
        batch_size: int,
        *,
        total_kimg: float,
        log_kimg: float,
        checkpoint_kimg: float,
        sample_kimg: float = 0.0,
        keep_every_kimg: float = 0.0,
        every_kimg: float = 0.0,
    ) -> Intervals:
        """From thousands of images; each at least one step where it is not 0.

        Args:
          batch_size: global.
          total_kimg: length of the run.
          log_kimg, checkpoint_kimg, sample_kimg, keep_every_kimg: see the class.
          every_kimg: between evaluations.

        Raises:
          ValueError: for what is negative, infinite, or more steps than are counted.
        """
        given = dict(
            total_kimg=total_kimg, log_kimg=log_kimg, checkpoint_kimg=checkpoint_kimg,
            sample_kimg=sample_kimg, keep_every_kimg=keep_every_kimg, every_kimg=every_kimg,
        )  # fmt: skip
        most = MAX_STEPS * batch_size / 1000  # steps are counted in 32 bits
        for name, kimg in given.items():
            above = 0 if name in ("total_kimg", "log_kimg", "checkpoint_kimg") else None
            check_number(name, kimg, above=above, least=0 if above is None else -math.inf)
            if kimg > most:
                raise ValueError(
                    f"{name} must be at most {most:g}: {MAX_STEPS:,} steps, got {kimg}"
                )

        def steps(kimg: float) -> int:
            return max(round(kimg * 1000 / batch_size), 1) if kimg else 0

        checkpoint = steps(checkpoint_kimg)
        # Only multiples of the checkpoint interval exist, so only those can be kept.
        keep_every = steps(keep_every_kimg)
        if keep_every:
            keep_every = max(round(keep_every / checkpoint), 1) * checkpoint
        return cls(
            total=math.ceil(total_kimg * 1000 / batch_size),
            log=steps(log_kimg),
            sample=steps(sample_kimg),
            checkpoint=checkpoint,
            evaluation=steps(every_kimg),
            keep_every=keep_every,
        )

    def grid_due(self, step: int) -> bool:
        """Whether a grid of samples is made after a step: always at both ends."""
        return step in (0, self.total) or bool(self.sample and step % self.sample == 0)

    def evaluation_due(self, step: int) -> bool:
        """Whether an evaluation follows a step; the end of a run has its own."""
        return bool(self.evaluation and step % self.evaluation == 0) and 0 < step < self.total


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is measured when training ends, and by ``--mode=evaluate``.

    Attributes:
      num_images: how many are drawn; 0: no evaluation.
      first_seed: of them.
      metrics: names of what is measured.
      trajectory_seeds: how many images the figure of trajectories shows.
      every_num_images: so many are drawn during training; 0: as many as at the end.
      blocks: of ``num_images`` each.
      labels: ``balanced``, ``random``, or the number of one class.
      inception, dinov2: files of weights; "" for none.
      reference: file of statistics to compare with; "" for those of the data.
    """

    num_images: int
    first_seed: int
    metrics: tuple[str, ...]
    trajectory_seeds: int
    every_num_images: int = 0
    blocks: int = 1
    labels: str = "balanced"
    inception: str = ""
    dinov2: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        for name in ("num_images", "every_num_images"):
            value = getattr(self, name)
            if value < 0 or value == 1:
                raise ValueError(f"{name} must be 0, or at least 2, got {value}")
            check_number(name, value * self.blocks, most=1e8, cure="blocks count too")
        check_number("blocks", self.blocks, least=1)
        label_choice(self.labels)
        check_number("first_seed", self.first_seed, least=0)
        check_number("trajectory_seeds", self.trajectory_seeds, least=0)

    @property
    def weights(self) -> dict[str, str]:
        """Files of feature networks by the name of their extractor."""
        return {"inception": self.inception, "dinov2": self.dinov2}


def label_choice(text: str) -> str | int:
    """``balanced``, ``random`` or the number of a class; ValueError for anything else."""
    if text in ("balanced", "random"):
        return text
    if not str(text).isdigit():
        raise ValueError(f"labels must be balanced, random or a class index, got {text!r}")
    return int(text)
