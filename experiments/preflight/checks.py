"""What can be known to be wrong, or to look wrong, with a run before it starts."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from edm_jax.ardm.process import num_steps
from edm_jax.data.sources.base import ImageSource
from edm_jax.evaluation.drawing import progress_bar
from edm_jax.metrics.registry import parse
from edm_jax.models.unet import UNet
from edm_jax.noise import EdmWeight
from edm_jax.train import sharding
from experiments import workdir
from experiments.config.experiment import Experiment
from experiments.config.groups import named
from experiments.config.options import Intervals
from experiments.words import size

# Images that are decoded; enough that the standard deviation is known to a few per cent.
SAMPLE, QUICK_SAMPLE = 1024, 64
# Images whose headers are looked at where not all are: about a second.
QUICK_HEADERS = 10_000
# Sigma_data may be off by this factor from the data before it is remarked on: the paper has
# 0.5 for all of its data sets.
SIGMA_DATA_FACTOR = 1.25
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
    if experiment.kind != "ardm":  # its request is judged with the data, see check_data
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
    sigma_data = dict(_sigma_data(experiment))
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


def _sigma_data(experiment: Experiment) -> Iterator[tuple[str, float]]:
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


# ---------------------------------------------------------------------------------- data


def check_data(
    findings: Findings, experiment: Experiment, source: ImageSource, *, quick: bool
) -> None:
    """A sample of the images, and all labels.

    Quick is a smaller sample, and all labels only where they are at hand.
    """
    data = experiment.data
    name = f"{data.source} {data.path}".strip()
    size = "x".join(map(str, source.image_shape))
    findings.fact("data", f"{name}: {len(source):,} images of {size}")
    if not len(source):
        findings.errors.append(f"the data set {name} is empty")
        return
    findings.warnings += getattr(source, "notes", ())
    batch_size = experiment.training.batch_size
    if batch_size > len(source):
        findings.warnings.append(
            f"config.train.batch_size={batch_size} is more than the {len(source):,} images: every "
            f"step sees each {batch_size / len(source):.3g} times, and a request to stop waits for "
            "the whole step; lower it"
        )
    sequences = len(source.image_shape) == 1
    if experiment.kind == "ardm":
        profile = np.zeros(num_steps(experiment.process, source.image_shape))
        with findings.part(), named("config.sampler", ("num_steps", "policy")):
            experiment.sampling.policies(experiment.process, source.image_shape, profile)
    if data.conditional and not source.num_classes and not sequences:
        findings.warnings.append(
            "config.data.conditional is on but the data have no labels: the network is "
            "unconditional; set config.data.conditional=False"
        )
    look = getattr(source, "first_odd", None)
    odd = look(QUICK_HEADERS if quick else None) if look else None
    if odd is not None:
        findings.errors.append(odd)
        return
    count = min(QUICK_SAMPLE if quick else SAMPLE, len(source))
    indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    threads = max(data.num_threads, 1)
    read = _moments_of(source, _num_values(experiment))
    moments = _read_all(findings, read, indices, threads, "images looked at")
    if moments and not sequences:
        mean, square = np.mean(moments, axis=0)
        std = max(square - mean**2, 0) ** 0.5
        findings.fact("", f"{len(moments):,} looked at: mean {mean:.3f}, std {std:.3f} in [-1, 1]")
        findings.warnings += _doubtful_sigma_data(experiment, std)
    if source.num_classes:
        labels = getattr(source, "labels", None)
        if labels is None and not quick:
            labels = _read_labels(findings, source, threads)
        if labels is not None:
            check_labels(findings, np.asarray(labels), source)


def _num_values(experiment: Experiment) -> int:
    """How many values the data may have."""
    if experiment.kind == "ardm" and not experiment.objective["order_agnostic"]["levels"]:
        return experiment.process.num_values
    return 256


def _moments_of(source: ImageSource, num_values: int) -> Callable[[int], tuple[float, float]]:
    shape = tuple(source.image_shape)

    def moments(index: int) -> tuple[float, float]:
        item = source[index]
        image = np.asarray(item["image"])
        if image.shape != shape or image.dtype != np.uint8:
            raise ValueError(
                f"image {index} is {image.dtype} of shape {image.shape}, expected uint8 of {shape}"
            )
        if int(image.max()) >= num_values:
            raise ValueError(
                f"image {index} has the value {image.max()}, and "
                f"config.objective.order_agnostic has values 0..{num_values - 1}; "
                "raise num_values, or set levels=True to take the nearest of so many grey levels"
            )
        if source.num_classes:
            _check_label(index, item, source.num_classes)
        pixels = image / 127.5 - 1
        return float(pixels.mean()), float(np.square(pixels).mean())

    return moments


def _check_label(index: int, item: dict[str, Any], num_classes: int) -> None:
    if "label" not in item:
        raise ValueError(f"image {index} has no label")
    label = item["label"]
    if np.ndim(label) == 0 and not 0 <= label < num_classes:
        raise ValueError(f"image {index} has label {label}, not in [0, {num_classes})")


def _read_all(
    findings: Findings,
    read: Callable[[int], Any],
    indices: Iterable[int],
    threads: int,
    what: str,
) -> list[Any]:
    """``read`` of every index; what it raises becomes one error with the first message."""

    def attempt(index: int) -> tuple[Any, str | None]:
        try:
            return read(index), None
        except (ValueError, KeyError, OSError) as error:
            return None, one_line(error)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(attempt, indices))
    problems = [problem for _, problem in results if problem is not None]
    if problems:
        findings.errors.append(
            f"{len(problems)} of {len(results)} {what} cannot be used; the first: {problems[0]}"
        )
    return [value for value, problem in results if problem is None]


def _read_labels(findings: Findings, source: ImageSource, threads: int) -> np.ndarray | None:
    """All labels, one by one; None if some cannot be read."""
    read = getattr(source, "read_label", None) or (lambda index: source[index]["label"])
    with progress_bar(len(source), "labels") as bar:

        def label(index: int) -> Any:
            bar.update()
            return read(index)

        labels = _read_all(findings, label, range(len(source)), threads, "labels")
    return np.asarray(labels) if len(labels) == len(source) else None


def check_labels(findings: Findings, labels: np.ndarray, source: ImageSource) -> None:
    """Range of all labels, and classes without images.

    Args:
      labels: ``(N,)`` classes or ``(N, K)`` vectors.
    """
    classes = source.num_classes
    if labels.ndim == 2:
        bad = ~np.isfinite(labels).all(1) if labels.shape[1] == classes else np.full(1, True)
        rule = f"vectors of {classes} finite numbers"
        findings.fact("", f"labels are {rule}")
    else:
        bad, rule = (labels < 0) | (labels >= classes), f"in [0, {classes})"
    if bad.any():
        first = int(np.argmax(bad))
        findings.errors.append(
            f"{int(bad.sum())} of {len(labels)} labels are not {rule}, the first that of image "
            f"{first}: {labels[first]}"
        )
    elif labels.ndim == 1:
        counts = np.bincount(labels, minlength=classes)
        findings.fact("", f"{classes} classes of {counts.min():,} to {counts.max():,} images")
        missing = np.flatnonzero(counts == 0)
        if missing.size:
            findings.warnings.append(
                f"{missing.size} of {classes} classes have no image, such as class {missing[0]}; "
                "the network will have inputs that are never trained"
            )


def _doubtful_sigma_data(experiment: Experiment, std: float) -> Iterator[str]:
    stated = list(_sigma_data(experiment))
    for key, value in stated[:1]:
        if not value / SIGMA_DATA_FACTOR <= std <= value * SIGMA_DATA_FACTOR:
            yield (
                f"the standard deviation of the images is {std:.3f} but {key} is {value:g}; set "
                f"{' and '.join(key for key, _ in stated)} to {std:.2f}"
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
