"""The programs of a run compiled for TPUs that are not there.

As a program (``-m``), which `compiled` starts in the environment that the library wants, it
reads a JSON object from its input, compiles one program, and prints a `Program` as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from typing import Any

import jax

from edm_jax import generate
from edm_jax.model import Model, build, describe
from edm_jax.models.ops import target
from edm_jax.models.variables import abstract_variables
from edm_jax.train import sharding
from experiments.config import build as configurations
from experiments.config.experiment import Experiment
from experiments.preflight import children, costs, kernels, program
from experiments.preflight.topologies import Topology

STEP, SAMPLER = "training step", "sampler"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# "Ran out of memory on HBM, the total memory required for HLO temporaries (44.75G) exceeds
# available HBM (15.75G)", and "Used 20.1G of 15.75G hbm."
_TOO_MUCH = (
    re.compile(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program as the compiler for TPUs made it, or why it did not.

    Attributes:
      seconds: that the compiler took.
      arguments, temporary: bytes on each device; of one that does not fit the temporaries are
        those that it would need.
      available: bytes that the compiler had, where the program does not fit in them; else 0.
      cycles: expected, by kind of operation (`program.KINDS`), on one device.
      collectives: ``{kind: [count, bytes]}`` of one execution.
      open_loops: loops that were counted once as their length is not known.
      uncounted: kernels whose cycles are not known, and missing.
    """

    seconds: float
    arguments: int = 0
    temporary: int = 0
    available: int = 0
    cycles: dict[str, int] = dataclasses.field(default_factory=dict)
    collectives: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    open_loops: int = 0
    uncounted: int = 0

    @property
    def fits(self) -> bool:
        """Whether the compiler found room for it."""
        return not self.available

    @property
    def total_bytes(self) -> int:
        """On each device."""
        return self.arguments + self.temporary

    def compute_seconds(self, topology: Topology) -> float:
        """The compiler's estimate of one execution without its collectives."""
        return sum(self.cycles.values()) / topology.chip.hertz

    def link_seconds(self, topology: Topology) -> float:
        """Of its collectives within a slice, if nothing else happens meanwhile.

        Each of n devices takes in 2 (n - 1) / n of the bytes of a sum, and (n - 1) / n of those
        of a gathering, over all its links at once.
        """
        n = topology.devices // topology.slices
        received = sum(
            nbytes * (2 if kind == "all-reduce" else 1) * (n - 1) / n
            for kind, (_, nbytes) in self.collectives.items()
            if kind != program.BETWEEN_SLICES
        )
        return received / (topology.links_gbps * 1e9 / topology.chip.devices)


def too_much(message: str) -> tuple[int, int] | None:
    """``(needed, available)`` bytes of an error for want of memory; None of another one."""
    for pattern in _TOO_MUCH:
        if found := pattern.search(message):
            needed, unit, there, other = found.groups()
            return round(float(needed) * _UNITS[unit]), round(float(there) * _UNITS[other])
    return None


def compiled(
    experiment: Experiment, shape: costs.DataShape, topology: Topology, which: str = STEP
) -> Program:
    """Compile one program of a run in a process of its own; minutes for a large network.

    Args:
      experiment: the run.
      shape: of its data.
      topology: what to compile for.
      which: STEP or SAMPLER.

    Raises:
      ValueError: if it cannot be compiled, but for want of memory.
    """
    request = {
        "config": experiment.config,
        "shape": dataclasses.asdict(shape),
        "topology": dataclasses.asdict(topology),
        "which": which,
    }
    environment = os.environ | topology.environment()
    answers, done = children.ask(__spec__.name, request, environment)
    if done.returncode or not answers:
        why = children.last_words(done)
        raise ValueError(f"the {which} does not compile for {topology.name} ({why})")
    return Program(**answers[-1])


def lowered(
    experiment: Experiment, shape: costs.DataShape, devices: list[jax.Device], which: str
) -> jax.stages.Lowered:
    """One program of a run, traced for these TPU devices."""
    with target.assumed("tpu", sharding.make_mesh(devices)):
        if which == STEP:
            return costs.lower_step(experiment, shape, devices)
        mesh = sharding.make_mesh(of_first_host(devices))
        size = sample_batch(experiment, mesh.size)
        batch = sharding.batch_sharding(mesh)
        return generate.lower_batch(abstract_model(experiment, shape), experiment.sampling, size,
                                    batch)  # fmt: skip


def of_first_host(devices: list[jax.Device]) -> list[jax.Device]:
    """Those of one process: each draws images of its own, by a program of its own."""
    hosts = [(getattr(d, "slice_index", 0), d.process_index) for d in devices]
    return [device for device, host in zip(devices, hosts, strict=True) if host == hosts[0]]


def sample_batch(experiment: Experiment, devices: int) -> int:
    """Images that a process draws at a time on its devices: those asked for, padded."""
    return -(-experiment.sample_batch // devices) * devices


def abstract_model(experiment: Experiment, shape: costs.DataShape) -> Model:
    """The model that a run trains, its variables as ShapeDtypeStructs."""
    description = describe(
        network=experiment.network_arguments(shape),
        precond=experiment.precond,
        kind=experiment.kind,
        image_shape=shape.image_shape,
        num_classes=shape.num_classes,
    )
    net, preconditioning = build(description)
    return Model(net, preconditioning, abstract_variables(net), description)


def compile_here(
    experiment: Experiment, shape: costs.DataShape, topology: Topology, which: str
) -> tuple[Program, str]:
    """The program, and its optimised text; in a process with the library's environment."""
    from jax.experimental import topologies

    described = topologies.get_topology_desc(
        platform="tpu", topology_name=topology.name, **topology.options()
    )
    network = type(experiment.build_network(shape)).__name__
    traced = lowered(experiment, shape, list(described.devices), which)
    start = time.perf_counter()
    try:
        done = traced.compile()
    except jax.errors.JaxRuntimeError as error:
        amounts = too_much(str(error))
        if amounts is None:
            raise
        needed, available = amounts
        return Program(time.perf_counter() - start, 0, needed, available), ""
    seconds = time.perf_counter() - start
    memory = costs.memory_of(done, "tpu")
    text = done.as_text()
    counted = kernels.count(program.kernels(text), topology)
    found = program.read(text, network, counted)
    collectives = {kind: [c.count, c.nbytes] for kind, c in found.collectives.items()}
    made = Program(
        seconds=seconds,
        arguments=memory.state,
        temporary=memory.temporary,
        cycles=found.cycles,
        collectives=collectives,
        open_loops=found.open_loops,
        uncounted=found.uncounted,
    )
    return made, text


def _from_request(request: dict[str, Any]) -> tuple[Any, ...]:
    experiment, _ = configurations.experiment(request["config"]).on("tpu")
    return (
        experiment,
        costs.DataShape(**request["shape"]),
        Topology.of(request["topology"]),
        request["which"],
    )


def _main() -> None:
    done, _ = compile_here(*_from_request(json.load(sys.stdin)))
    children.answer(dataclasses.asdict(done))


if __name__ == "__main__":
    _main()
