"""A run on a TPU topology: whether it fits, how fast the compiler thinks it is, what to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from experiments.config import build
from experiments.config.experiment import Experiment
from experiments.preflight import costs, program, tpu
from experiments.preflight.checks import Findings
from experiments.preflight.topologies import Topology
from experiments.words import format_duration, size

# The compiler gives a program all but a little of the memory of a chip.
USABLE = 0.98


def describe(topology: Topology) -> str:
    """Chips, memory and peak in one line."""
    chip = topology.chip
    slices = f"{topology.slices} slices of " if topology.slices > 1 else ""
    parts = f" ({chip.devices} devices each)" if chip.devices > 1 else ""
    return (
        f"{slices}{topology.name}: {topology.chips} chip(s){parts}, {topology.hosts} host(s); "
        f"a chip has {chip.memory_gib:g} GiB, {chip.memory_gbps:g} GB/s, "
        f"{chip.tflops:g} TFLOP/s in bfloat16"
    )


def report(
    findings: Findings,
    experiment: Experiment,
    shape: costs.DataShape,
    topology: Topology,
    state_bytes: int,
    flops_per_image: int,
) -> None:
    """Compile the training step and the sampler, and say what that shows.

    Args:
      findings: gets facts, and errors where a program does not fit.
      experiment: the run.
      shape: of its data.
      topology: what it is to run on.
      state_bytes: of weights, optimizer and averages on each device.
      flops_per_image: operations of one image in training.
    """
    findings.fact("compiling", f"for {topology.name}: minutes for a large network ...")
    step = tpu.compiled(experiment, shape, topology)
    _memory(findings, "step", step, topology)
    if step.fits:
        _speed_of_training(findings, experiment, step, topology, flops_per_image)
    else:
        _remedies(findings, experiment, shape, topology, step, state_bytes, flops_per_image)
    if experiment.draws_images:
        sampler = tpu.compiled(experiment, shape, topology, tpu.SAMPLER)
        _memory(findings, "sampler", sampler, topology)
        if sampler.fits:
            _speed_of_sampling(findings, experiment, sampler, topology)
        else:
            _fewer_images(findings, experiment, shape, topology, sampler)


def device_bytes(topology: Topology) -> float:
    """Memory of a device that a program may have."""
    return topology.chip.memory_gib / topology.chip.devices * 2**30 * USABLE


def _memory(findings: Findings, which: str, made: tpu.Program, topology: Topology) -> None:
    took = f"compiled in {format_duration(made.seconds)}"
    if not made.fits:
        findings.fact(
            which, f"does not fit: {size(made.temporary)} of {size(made.available)} per device; "
            f"{took}"
        )  # fmt: skip
        return
    findings.fact(
        which,
        f"{size(made.total_bytes)} of {size(device_bytes(topology))} per device: "
        f"{size(made.arguments)} arguments, {size(made.temporary)} temporary; {took}",
    )


def seconds(made: tpu.Program, topology: Topology) -> float:
    """Of one execution: the compiler's estimate, and the collectives as if nothing hid them."""
    return made.compute_seconds(topology) + made.link_seconds(topology)


def _time(findings: Findings, made: tpu.Program, topology: Topology) -> None:
    """The estimate, and what it is made of."""
    total = sum(made.cycles.values())
    parts = sorted(made.cycles.items(), key=lambda item: -item[1])
    findings.fact(
        "",
        f"estimate, not a measurement: {total:,} cycles by the compiler's count at "
        f"{topology.chip.hertz / 1e9:.2f} GHz",
    )
    findings.fact("", ", ".join(f"{kind} {100 * count / total:.0f} %" for kind, count in parts))
    links = [
        f"{count} {kind} of {size(nbytes)}" for kind, (count, nbytes) in made.collectives.items()
    ]
    text = f"collectives: {', '.join(links) or 'none'}"
    if links:
        text += f"; {1e3 * made.link_seconds(topology):.3g} ms of links if nothing hides them"
    if program.BETWEEN_SLICES in made.collectives:
        text += ", those between slices left out"
    findings.fact("", text)
    if made.open_loops:
        findings.fact("", f"{made.open_loops} loop(s) of unknown length are counted once")
    if made.uncounted:
        findings.fact("", f"{made.uncounted} kernel(s) could not be counted and are missing")


def _speed_of_training(
    findings: Findings,
    experiment: Experiment,
    step: tpu.Program,
    topology: Topology,
    flops_per_image: int,
) -> None:
    once = seconds(step, topology)
    rate = experiment.training.batch_size / once
    per_chip = rate / topology.chips
    share = per_chip * flops_per_image / (topology.chip.tflops * 1e12)
    _time(findings, step, topology)
    findings.fact(
        "",
        f"{1e3 * once:.3g} ms a step: {rate:,.4g} images per second, {per_chip:,.4g} per chip, "
        f"MFU {100 * share:.2g} %",
    )
    images = experiment.intervals.total * experiment.training.batch_size
    findings.fact(
        "",
        f"{images / 1000:,.6g} kimg take {format_duration(images / rate)} at that rate "
        f"({images / rate / 86400:.3g} days)",
    )


def _speed_of_sampling(
    findings: Findings, experiment: Experiment, sampler: tpu.Program, topology: Topology
) -> None:
    images = tpu.sample_batch(experiment, topology.devices // topology.hosts)
    once = seconds(sampler, topology)
    rate = images * topology.hosts / once
    _time(findings, sampler, topology)
    each = " of each host" if topology.hosts > 1 else ""
    findings.fact(
        "",
        f"{images} images at a time{each} in {once:.3g} s: {rate:,.4g} images per second, "
        f"{rate / topology.chips:,.4g} per chip",
    )


# ------------------------------------------------------------------------------ remedies


def remedies(
    experiment: Experiment, topology: Topology, needed: int, available: float, state_bytes: int
) -> Iterator[dict[str, Any]]:
    """Options that may make a step fit, the cheapest first; none of them changes an update.

    Activations are taken to grow with the images of a round, and to be a third when blocks are
    recomputed.

    Args:
      experiment: the run.
      topology: what it is to run on.
      needed: bytes that its step needs on each device.
      available: bytes that there are.
      state_bytes: of weights, optimizer and averages on each device, which no other number
        of images changes.

    Yields:
      ``{"config.train.micro_batch": 256, ...}``.
    """
    training = experiment.training
    devices = topology.devices
    activations = max(needed - state_bytes, 1)
    layouts: list[dict[str, Any]] = [{}]
    if training.sharding == "data" and devices > 1:
        layouts.append({"config.train.sharding": "fsdp"})
    for layout in layouts:
        # Gradients are as large as one of the copies of the weights that the state is made of.
        fixed = state_bytes / devices if layout else state_bytes
        for remat in _remats(experiment):
            left = available - fixed
            per_image = activations * (1 / 3 if remat else 1) * devices / training.together
            images = _largest_part(training.together // devices, left / per_image)
            if images:
                whole = images * devices == training.together
                smaller = {} if whole else {"config.train.micro_batch": images * devices}
                if smaller or layout or remat:
                    yield {**layout, **remat, **smaller}


def all_remedies(experiment: Experiment, topology: Topology, images: int) -> dict[str, Any]:
    """All of them at once, with so many images per device and round."""
    training, devices = experiment.training, topology.devices
    options: dict[str, Any] = {}
    if training.sharding == "data" and devices > 1:
        options["config.train.sharding"] = "fsdp"
    options.update(_remats(experiment)[-1])
    if training.together > images * devices:
        options["config.train.micro_batch"] = images * devices
    return options


def _remats(experiment: Experiment) -> list[dict[str, Any]]:
    off = experiment.network.shared.get("remat") == "none"
    return [{}, {"config.model.remat": "blocks"}] if off else [{}]


def _largest_part(images: int, most: float) -> int:
    """The largest divisor of a number of images that is at most ``most``; 0 if there is none."""
    return max((n for n in range(1, images + 1) if images % n == 0 and n <= most), default=0)


def changed(experiment: Experiment, options: Mapping[str, Any]) -> Experiment:
    """The experiment with some options of its configuration set otherwise."""
    config = {**experiment.config}
    for key, value in options.items():
        _, group, name = key.split(".")
        config[group] = {**config[group], name: value}
    return build.experiment(config).on("tpu")[0]


def _remedies(
    findings: Findings,
    experiment: Experiment,
    shape: costs.DataShape,
    topology: Topology,
    step: tpu.Program,
    state_bytes: int,
    flops_per_image: int,
) -> None:
    """Compile what may help, and say what does, and at what rate."""
    tried: list[str] = []
    # What the compiler asks for is what it would need besides the arguments.
    needed = step.temporary + state_bytes
    likely = list(remedies(experiment, topology, needed, step.available, state_bytes))
    for options in (*likely, *_last_resorts(experiment, topology, likely)):
        words = " ".join(f"--{key}={value}" for key, value in options.items())
        if not options or words in tried:
            continue
        findings.fact("", f"compiling with {words} ...")
        other = changed(experiment, options)
        made = tpu.compiled(other, shape, topology)
        _memory(findings, "", made, topology)
        if made.fits:
            _speed_of_training(findings, other, made, topology, flops_per_image)
            findings.errors.append(
                f"the training step does not fit on {topology.name}; with {words} it does"
            )
            return
        tried.append(words)
    said = f"; nor with {', nor with '.join(tried)}" if tried else ""
    # Each device has an image of the batch at least.
    more = "more or " if experiment.training.batch_size > topology.devices else ""
    findings.errors.append(
        f"the training step does not fit on {topology.name}{said}; take {more}larger chips"
    )


def _last_resorts(
    experiment: Experiment, topology: Topology, likely: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """All remedies with fewer images than estimated, and with one: estimates may be too high."""
    devices, together = topology.devices, experiment.training.together
    if likely:
        estimate = likely[-1].get("config.train.micro_batch", together) // devices
        images = max(1, _largest_part(together // devices, estimate / 2))
        yield all_remedies(experiment, topology, images)
    yield all_remedies(experiment, topology, 1)


def _fewer_images(
    findings: Findings,
    experiment: Experiment,
    shape: costs.DataShape,
    topology: Topology,
    sampler: tpu.Program,
) -> None:
    """Compile the sampler for fewer images at a time, and say how many fit."""
    devices = topology.devices // topology.hosts
    images = tpu.sample_batch(experiment, devices) // devices
    # Activations grow with the images; what else there is makes the estimate too high.
    estimate = int(images * sampler.available / sampler.temporary)
    error = f"the sampler does not fit on {topology.name}"
    for fewer in dict.fromkeys((estimate, estimate // 2, 1)):
        if not 0 < fewer < images:
            continue
        change = {"config.sampler.batch_size": fewer * devices}
        words = f"--config.sampler.batch_size={fewer * devices}"
        findings.fact("", f"compiling with {words} ...")
        made = tpu.compiled(changed(experiment, change), shape, topology, tpu.SAMPLER)
        _memory(findings, "", made, topology)
        if made.fits:
            findings.errors.append(f"{error}; with {words} it does")
            return
    findings.errors.append(f"{error}, not with an image per device; take larger chips")
