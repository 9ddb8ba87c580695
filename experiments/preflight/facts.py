"""What a network and its training cost, told before the run starts."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from edm_jax.train.state import TrainState
from experiments.config.experiment import Experiment
from experiments.preflight import costs
from experiments.preflight.checks import Findings
from experiments.words import size


def network(
    findings: Findings,
    experiment: Experiment,
    net: nn.Module,
    shape: costs.DataShape,
    state: TrainState,
) -> None:
    """Parameters, in all and by part."""
    leaves = jax.tree.leaves(state.params)
    total = sum(leaf.size for leaf in leaves)
    pipe = experiment.augment
    findings.fact(
        "network",
        f"{type(net).__name__} in {getattr(net, 'dtype', 'its own types')}: "
        f"{total:,} parameters in {len(leaves)} arrays, {shape.num_classes or 'no'} classes"
        f"{f', augmentation of probability {pipe.p:g}' if pipe else ''}",
    )
    for name, count in parameters_by_part(state.params).items():
        findings.fact("", f"{name:<12}{count:>12,}  {100 * count / total:5.1f} %")


def parameters_by_part(params: Mapping[str, Any]) -> dict[str, int]:
    """Parameters of the embedding, of each level of encoder and decoder, and of the output.

    Of a network without such levels: of its topmost modules.

    Returns:
      Counts by name, such as "enc 32x32", in the order in which an image passes them.
    """
    sizes = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for name, tree in params.items()
    }
    if not any(name.startswith("enc_") for name in sizes):  # no U-Net: its own parts
        return sizes
    counts: dict[tuple, int] = collections.Counter()
    for name, number in sizes.items():
        if level := re.match(r"(enc|dec)_(\d+)x\d+_", name):
            side, r = level[1], int(level[2])
            part = (1, -r) if side == "enc" else (2, r)
            counts[*part, f"{side} {r}x{r}"] += number
        else:
            counts[(3, 0, "output") if name.startswith("out") else (0, 0, "embedding")] += number
    return {part[-1]: counts[part] for part in sorted(counts)}


def arithmetic(
    findings: Findings,
    experiment: Experiment,
    net: nn.Module,
    shape: costs.DataShape,
) -> costs.TrainingCosts:
    """FLOPs; the bytes kept for the backward pass, per image."""
    forward, training = (
        costs.forward_flops(net, shape),
        costs.training_costs(experiment, net, shape),
    )
    images = experiment.intervals.total * experiment.training.batch_size
    findings.fact(
        "arithmetic",
        f"{forward / 1e9:,.4g} GFLOP per image forward, {training.flops / 1e9:,.4g} in training, "
        f"{training.flops * images:.3g} FLOP in all",
    )
    return training


def memory_of_state(
    findings: Findings,
    experiment: Experiment,
    least: int,
    devices: int,
    kept: int,
    limit: float | None,
) -> None:
    """What is known of the memory per device without compiling."""
    findings.fact("memory", f"{size(least)} per device for weights, optimizer and averages")
    images = experiment.training.together // devices
    findings.fact(
        "",
        f"{size(kept * images)} to keep for the gradients of {images} images ({size(kept)} each) "
        "before the compiler fuses",
    )
    if limit and least > limit:
        findings.errors.append(
            f"weights, optimizer and averages need {size(least)} per device, which has "
            f"{size(limit)}; use config.train.sharding=fsdp on more devices"
        )


def compiled_memory(
    findings: Findings,
    experiment: Experiment,
    shape: costs.DataShape,
    devices: int,
    limit: float | None,
) -> None:
    """Memory per device of the compiled training step."""
    if devices > costs.MAX_DEVICES:
        findings.warnings.append(
            f"memory per device is found for at most {costs.MAX_DEVICES} devices, not for "
            f"{devices}; ask for fewer, with config.train.batch_size smaller in proportion"
        )
        return
    findings.fact("compiling", f"for {devices} device(s): minutes for a large network ...")
    memory = costs.compiled_memory(experiment, shape, devices)
    findings.fact(
        "",
        f"{size(memory.total)} per device when compiled for {memory.platform}: "
        f"{size(memory.state)} state and batch, {size(memory.temporary)} temporary",
    )
    if limit and memory.total > limit:
        line = (
            f"the training step needs {size(memory.total)} per device as compiled for "
            f"{memory.platform}, which has {size(limit)}; lower config.train.micro_batch, set "
            "config.model.remat=blocks, or use more devices"
        )
        # The CPU's compiler fuses and pads in its own way: no proof for an accelerator.
        (findings.warnings if memory.platform == "cpu" else findings.errors).append(line)
