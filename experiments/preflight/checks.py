"""What can be known to be wrong, or to look wrong, with a run before it starts."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax

from edm_jax.metrics.registry import parse
from edm_jax.models.unet import UNet
from edm_jax.noise import EdmWeight
from edm_jax.train import sharding
from experiments import workdir
from experiments.config.experiment import Experiment
from experiments.config.groups import named
from experiments.config.options import Intervals
from experiments.words import size

# The largest rate per image of a batch in the published runs is that of CIFAR-10.
LR_PER_IMAGE = 1e-3 / 512


class Findings:
    """What the checks found.

    Attributes:
      errors: reasons why the run cannot work, a line each.
      warnings: what is probably not meant, a line each.
    """

    def __init__(self, say: Callable[[str], None] | None = None):
        """``say`` gets the facts, as they become known; None drops them."""
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self._say = say

    def fact(self, name: str, text: str) -> None:
        """Something about the run that is neither wrong nor doubtful."""
        if self._say is not None:
            self._say(f"{name:<12}{text}")

    @contextlib.contextmanager
    def part(self) -> Iterator[None]:
        """Make an error out of what a check raises, and go on after the block."""
        try:
            yield
        except (ValueError, OSError, workdir.WorkdirError) as error:
            self.errors.append(one_line(error))


def one_line(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


# ------------------------------------------------------------------------------ settings


def check_settings(findings: Findings, experiment: Experiment, devices: int) -> None:
    """Values that contradict each other or the number of devices."""
    mesh = jax.sharding.AbstractMesh((devices,), (sharding.DATA_AXIS,))
    with findings.part():
        training = experiment.training
        sharding.check_batch_size(training.batch_size, mesh, training.micro_batch)
    with findings.part():
        for name in experiment.evaluation.metrics:
            with named("config.evaluation.metrics"):
                parse(name)
    if experiment.kind != "ardm":  # its request is judged with the data, see data_checks
        with findings.part(), named("config.sampler"):
            experiment.sampling.check(experiment.preconditioning)
    findings.warnings += _doubtful_settings(experiment)


def _doubtful_settings(experiment: Experiment) -> Iterator[str]:
    training = experiment.training
    if experiment.augment and experiment.data.mirror:
        yield (
            "config.augment.probability and config.data.mirror are both on: samples of the model "
            "will be mirrored too, which augmentation alone avoids; set config.data.mirror=False"
        )
    sigma_data = dict(stated_sigma_data(experiment))
    if len(sigma_data) == 2:
        ours, theirs = sigma_data.values()
        if ours != theirs:
            yield (
                f"config.precond.edm.sigma_data={ours:g} but config.weight.edm.sigma_data="
                f"{theirs:g}: the weight is 1 / c_out^2 only if they agree"
            )
    if experiment.network.shared["dtype"] == "float16" and training.loss_scaling == 1:
        yield (
            "config.model.dtype=float16 with config.train.loss_scaling=1: small gradients vanish; "
            "the published ImageNet run has 100 (bfloat16 needs none)"
        )
    # Small networks bear larger rates.
    large = experiment.network.options.get("model_channels", 0) >= 96
    if large and training.lr > 2 * LR_PER_IMAGE * training.batch_size:
        yield (
            f"config.train.lr={training.lr:g} is high for a batch of {training.batch_size}: the "
            "published runs have 1e-3 for 512 images and 2e-4 for 256, and the loss may jump and "
            "not come back; lower it"
        )
    total = experiment.intervals.total * training.batch_size / 1000
    if training.lr_rampup_kimg >= total:
        yield (
            f"config.train.lr_rampup_kimg={training.lr_rampup_kimg:g} is longer than the whole run "
            f"({total:g}): the learning rate never gets to config.train.lr"
        )
    if 0 < training.lr_end_kimg < total:
        yield (
            f"config.train.lr_end_kimg={training.lr_end_kimg:g} is before the end of the run "
            f"({total:g}): the learning rate is 0 from there on, and nothing more is learnt"
        )


def stated_sigma_data(experiment: Experiment) -> Iterator[tuple[str, float]]:
    """The standard deviation of the data as preconditioning and weight have it, by key."""
    if experiment.kind == "ardm":
        return
    if experiment.precond["name"] == "edm":
        yield "config.precond.edm.sigma_data", experiment.precond.get("sigma_data", 0.5)
    if isinstance(experiment.weight, EdmWeight):
        yield "config.weight.edm.sigma_data", experiment.weight.sigma_data


def doubtful_network(net: nn.Module) -> Iterator[str]:
    """Levels and attention of a U-Net that are probably not meant."""
    if not isinstance(net, UNet):
        return
    key = f"config.model.{type(net).__name__}"
    levels = [net.img_resolution >> i for i in range(len(net.channel_mult))]
    if levels[-1] > 8:
        yield (
            f"the lowest level of the network is {levels[-1]}x{levels[-1]}, that of the published "
            f"ones 8x8: {key}.channel_mult={tuple(net.channel_mult)} is made for smaller images "
            f"than {levels[0]}x{levels[0]} (64x64 have (1, 2, 2, 2)); add a level"
        )
    absent = [r for r in net.attn_resolutions if r not in levels]
    if absent and len(absent) == len(net.attn_resolutions):
        yield (
            f"{key}.attn_resolutions={tuple(net.attn_resolutions)}: no level of the network has "
            f"such a resolution, only {', '.join(map(str, levels))}"
        )
    per_head = net.settings.get("channels_per_head")
    if per_head:
        narrow = [e for e in net.plan if e.attention and e.out_channels < per_head]
        if narrow:
            yield (
                f"{len(narrow)} blocks, such as {narrow[0].name}, were to have attention but have "
                f"{narrow[0].out_channels} channels, less than the {per_head} of one head, and "
                f"get none; raise {key}.model_channels"
            )


# ------------------------------------------------------------------------- run directory


def check_workdir(findings: Findings, experiment: Experiment, path: pathlib.Path) -> None:
    """Whether the run directory can be written and belongs to this configuration."""
    parent = existing_parent(path)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        findings.errors.append(f"--workdir={path} cannot be written below {parent}")
    with findings.part():
        findings.warnings += workdir.check_same_config(path, experiment.config)


def existing_parent(path: pathlib.Path) -> pathlib.Path:
    """The path, or the nearest of its parents that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def checkpoints_at_once(intervals: Intervals, keep_last: int) -> int:
    """The most checkpoints that lie on the disk at one time, one being written included."""
    interval, keep_every = intervals.checkpoint, intervals.keep_every
    # Those at multiples of the interval, newest first, before the last of all.
    before = range((intervals.total - 1) // interval * interval, 0, -interval)
    newest = [intervals.total, *before[: keep_last - 1]]
    kept = 0
    if keep_every:
        kept = intervals.total // keep_every
        newest = [step for step in newest if step % keep_every]
    return kept + len(newest) + 1


def check_disk(
    findings: Findings,
    experiment: Experiment,
    path: pathlib.Path | None,
    checkpoint_bytes: int,
) -> None:
    """Whether the checkpoints of the whole run fit where they go.

    Args:
      path: the run directory; None if it is not known yet.
      checkpoint_bytes: of one, before compression.
    """
    intervals = experiment.intervals
    count = checkpoints_at_once(intervals, experiment.training.keep_last)
    needed = count * checkpoint_bytes
    text = f"checkpoints of {size(checkpoint_bytes)}, {count} at most: {size(needed)}"
    if path is not None:
        there = sum(
            file.stat().st_size for file in (path / "checkpoints").rglob("*") if file.is_file()
        )
        free = shutil.disk_usage(existing_parent(path)).free
        text += f"; {size(free)} free"
        if needed - there > free:
            findings.errors.append(
                f"--workdir={path} has {size(free)} free, but {count} checkpoints need "
                f"{size(needed)}; raise config.train.keep_every_kimg, lower keep_last, or use "
                "another disk"
            )
    findings.fact("disk", text)
