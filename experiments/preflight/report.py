r"""Whether a run would work and what it will cost, without starting it.

    python experiments/main.py --mode=preflight --config=configs/imagenet64.py \
        --workdir=runs/imagenet64 --devices=32

Needs no accelerator.  The quick part, `before_training`, runs ahead of every training.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from edm_jax.arguments import user_path
from edm_jax.data.sources.base import ImageSource
from edm_jax.evaluation import planning
from edm_jax.metrics import extractors
from edm_jax.store import checkpoints
from edm_jax.train.state import TrainState
from experiments.config.experiment import Experiment
from experiments.config.groups import ConfigError, flatten, named
from experiments.config.options import label_choice
from experiments.preflight import checks, costs, facts, pods
from experiments.preflight.checks import Findings
from experiments.preflight.data_checks import check_data
from experiments.preflight.topologies import Topology
from experiments.words import format_duration
from experiments.workdir import CONFIG, check_same_data

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a run without compiling it.

    Attributes:
      shape: of its data.
      state_bytes: of weights, optimizer and averages on each device.
      flops_per_image: in training.
    """

    shape: costs.DataShape
    state_bytes: int
    flops_per_image: int


def preflight(
    experiment: Experiment,
    workdir: pathlib.Path | None,
    *,
    mesh_devices: int | None,
    quick: bool,
    report: Report = print,
    source: ImageSource | None = None,
    preset: Mapping[str, Any] | None = None,
    images_per_second: float | None = None,
    device_gib: float | None = None,
    topology: Topology | None = None,
) -> int:
    """Check a run before it starts, and say what it will cost.

    Args:
      experiment: the run.
      workdir: the run directory, if it is known; nothing is written there.
      mesh_devices: devices of the run.  If given, the training step is compiled for them to
        learn its memory; None: the devices of this machine, and nothing is compiled.
      quick: check without tracing the network or compiling anything, and report problems
        only.
      report: called with each line.
      source: the data set, if it is open already.
      preset: the configuration before options were set on the command line; differences
        from it are reported.
      images_per_second: rate of training, for an estimate of its time.
      device_gib: memory of one device; None asks the devices of this machine.
      topology: TPUs to compile training step and sampler for, in place of ``mesh_devices``.

    Returns:
      Exit code: 0, or 1 if the run would not work.

    Raises:
      ValueError: for arguments that make no sense; whatever is wrong with the run itself is
        reported instead.
    """
    if mesh_devices is not None and mesh_devices < 1:
        raise ValueError(f"mesh_devices must be at least 1, got {mesh_devices}")
    findings = Findings(None if quick else report)
    if topology is not None:
        mesh_devices = topology.devices
        findings.fact("topology", pods.describe(topology))
    devices = jax.device_count() if mesh_devices is None else mesh_devices
    experiment, note = experiment.on("tpu" if topology else jax.default_backend())
    if note:
        findings.fact("", note)
    if preset is not None:
        _differences(findings, experiment, preset)
    net, source = _check(findings, experiment, workdir, source, devices, quick=quick)
    if not quick and (net is not None or source is None):
        limit = _device_bytes() if device_gib is None else device_gib * 2**30
        if topology is not None:
            limit = pods.device_bytes(topology)
        with findings.part():
            _schedule(findings, experiment, source, devices, images_per_second)
            compiles = mesh_devices is not None
            known = _costs(findings, experiment, workdir, net, source, devices, limit)
            if compiles and known and (source is None or not findings.errors):
                _compiles(findings, experiment, known, devices, limit, topology)
    for line in findings.warnings:
        report(f"warning: {line}")
    for line in findings.errors:
        report(f"error: {line}")
    if not quick:
        count = len(findings.errors)
        report(f"this run would not work: {count} error(s)" if count else "this run would work")
    return 1 if findings.errors else 0


def before_training(experiment: Experiment, source: ImageSource, *, report: Report = print) -> None:
    """The quick part, for a training that is about to start on the devices there are.

    Args:
      experiment: the run.
      source: its data set.
      report: called with each warning.

    Raises:
      ConfigError: with every reason why the run cannot work, a line each.
    """
    findings = Findings()
    _check(findings, experiment, None, source, jax.device_count(), quick=True)
    for line in findings.warnings:
        report(f"warning: {line}")
    _refuse(findings)


def require_disk(experiment: Experiment, workdir: pathlib.Path, state: TrainState) -> None:
    """Refuse a run whose checkpoints will not fit on the disk.

    Args:
      experiment: the run.
      workdir: the run directory.
      state: the training state, as arrays or ShapeDtypeStructs.

    Raises:
      ConfigError: naming what is needed and what is free.
    """
    findings = Findings()
    checks.check_disk(findings, experiment, workdir, costs.tree_bytes(state))
    _refuse(findings)


def _refuse(findings: Findings) -> None:
    if findings.errors:
        raise ConfigError("\n".join(findings.errors))


# ------------------------------------------------------------------------------- checks


def _check(
    findings: Findings,
    experiment: Experiment,
    workdir: pathlib.Path | None,
    source: ImageSource | None,
    devices: int,
    *,
    quick: bool,
) -> tuple[nn.Module | None, ImageSource | None]:
    """All checks that trace nothing; the network and the data set where they can be had."""
    checks.check_settings(findings, experiment, devices)
    if workdir is not None:
        checks.check_workdir(findings, experiment, workdir)
        if (workdir / CONFIG).exists():
            steps = checkpoints.checkpoint_steps(workdir / "checkpoints")
            at = f"goes on from step {int(steps[-1].name):,}" if steps else "starts anew"
            findings.fact("directory", f"{workdir} holds this run, which {at}")
    net = None
    with findings.part():
        source = experiment.data.open() if source is None else source
        if workdir is not None:
            with findings.part():
                check_same_data(workdir, source)
        with findings.part():
            net = experiment.build_network(source)
        if experiment.evaluation.num_images:
            _check_evaluation(findings, experiment, source)
        check_data(findings, experiment, source, quick=quick)
    if net is not None:
        findings.warnings += checks.doubtful_network(net)
    return net, source


def _check_evaluation(findings: Findings, experiment: Experiment, source: ImageSource) -> None:
    """The evaluation that training ends with can be made of this data set."""
    with findings.part():
        test = experiment.data.open_test()
        problem = planning.no_floor(test, source.image_shape)
        if test is None and not experiment.draws_images:
            problem = "the data set has no test images: the evaluation is of training images"
        findings.warnings += [problem] if problem else []
    if not experiment.draws_images:
        return
    group = experiment.evaluation
    label = label_choice(group.labels)
    if isinstance(label, int) and label >= source.num_classes:
        findings.errors.append(
            f"config.evaluation.labels={label} is out of range: the data have "
            f"{source.num_classes or 'no'} classes"
        )
    with findings.part(), named("config.evaluation.metrics"):
        kept, left_out = planning.possible(
            group.metrics,
            num_images=group.num_images,
            image_shape=source.image_shape,
            real=source,
            classes=source.num_classes,
        )
        reasons = [f"{text!r} {reason}" for text, reason in left_out.items()]
        findings.warnings += [
            f"config.evaluation.metrics: {reason}; it will be left out" for reason in reasons
        ]
        for name in dict.fromkeys(one.extractor for one in kept):
            if name in group.weights:
                extractors.build(
                    name, weights=group.weights[name], option=f"config.evaluation.{name}"
                )
        name = "config.evaluation.reference"
        if group.reference and not user_path(name, group.reference).exists():
            raise ConfigError(f"config.evaluation.reference: there is no file {group.reference}")


def _differences(findings: Findings, experiment: Experiment, preset: Mapping[str, Any]) -> None:
    """What was changed of the configuration file."""
    mine, theirs = (flatten(values) for values in (experiment.config, preset))
    changed = [key for key in mine if key not in theirs or mine[key] != theirs[key]]
    findings.fact("preset", f"{len(changed) or 'no'} option(s) differ from the configuration file")
    for key in changed:
        before = json.dumps(theirs[key]) if key in theirs else "(not there)"
        findings.fact("", f"{key}: {before} -> {json.dumps(mine[key])}")


# -------------------------------------------------------------------------------- facts


def _costs(
    findings: Findings,
    experiment: Experiment,
    workdir: pathlib.Path | None,
    net: nn.Module | None,
    source: ImageSource | None,
    devices: int,
    limit: float | None,
) -> Known | None:
    """Parameters, arithmetic, memory, disk; without a data set, for what it should be."""
    if source is None:
        pixels = experiment.data.resolution
        if not pixels:
            return None
        findings.fact("", f"what follows is for {pixels}x{pixels}x3 images without labels")
        shape = costs.DataShape((pixels, pixels, 3))
        net = experiment.build_network(shape)
    else:
        shape = costs.DataShape.of(source)
    state = costs.abstract_state(experiment, net, shape)
    facts.network(findings, experiment, net, shape, state)
    training = facts.arithmetic(findings, experiment, net, shape)
    least = costs.state_bytes(experiment, net, state, devices)
    facts.memory_of_state(findings, experiment, least, devices, training.kept_bytes, limit)
    checks.check_disk(findings, experiment, workdir, costs.tree_bytes(state))
    return Known(shape, least, training.flops)


def _compiles(
    findings: Findings,
    experiment: Experiment,
    known: Known,
    devices: int,
    limit: float | None,
    topology: Topology | None,
) -> None:
    """What only a compiler knows, for a batch that divides."""
    together = experiment.training.together
    if experiment.training.batch_size % together or together % devices:
        return
    if topology is None:
        facts.compiled_memory(findings, experiment, known.shape, devices, limit)
    else:
        pods.report(
            findings, experiment, known.shape, topology, known.state_bytes, known.flops_per_image
        )


def _schedule(
    findings: Findings,
    experiment: Experiment,
    source: ImageSource | None,
    devices: int,
    images_per_second: float | None,
) -> None:
    train, intervals = experiment.training, experiment.intervals
    images = intervals.total * train.batch_size
    known = source is not None and len(source)
    epochs = f", {images / len(source):,.1f} times the data set" if known else ""
    findings.fact(
        "training",
        f"{intervals.total:,} steps of {train.batch_size:,} images: {images / 1000:,.6g} kimg"
        f"{epochs}",
    )
    part, rounds = train.together // devices, train.batch_size // train.together
    findings.fact(
        "", f"{devices} device(s), {train.sharding} layout: {part} images each, {rounds} round(s)"
    )
    grids = ""
    if intervals.sample and experiment.draws_images:
        grids = f"a grid every {intervals.sample:,}, "
    findings.fact(
        "",
        f"a line every {intervals.log:,} steps, {grids}a checkpoint every {intervals.checkpoint:,}",
    )
    if images_per_second:
        duration = format_duration(images / images_per_second)
        findings.fact("time", f"{duration} at {images_per_second:,.5g} images per second")


def _device_bytes() -> float | None:
    """Memory of one device of this machine, where the backend tells."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("bytes_limit") if stats else None
