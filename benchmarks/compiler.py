r"""Where the compiler for TPUs expects the time of a network to go, without a TPU.

    python -m pip install -e '.[tpu]'
    python benchmarks/compiler.py --nets=level [--topology=v5e:1x1] [--parts=forward,gradient]
    python benchmarks/compiler.py --nets=cifar10 --parts=forward --batch=64
    python benchmarks/compiler.py --nets=cifar10 --parts=training --batch=32

Prints the cycles that XLA expects, by kind of operation, the share of the peak that they amount
to, and the temporary memory: of ``level``, one 32x32 level of CIFAR-10 DDPM++ with two blocks,
and ``level_adm``, one of ADM with its attention, which compile in a minute, or of a published
network, which takes up to ten.  bfloat16.  ``gradient`` is that of the network alone, ``training``
the whole step of the published configuration, with augmentation, Adam, averages and metrics.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

# Without these the library looks for chips of this machine; any type of accelerator will do.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
NETS = {
    "level": ("ddpmpp", dict(img_resolution=32, channel_mult=(2,), num_blocks=2,
                             attn_resolutions=(), dropout=0.13)),
    "level_adm": ("adm", dict(img_resolution=32, channel_mult=(2,), num_blocks=1,
                              attn_resolutions=(32,), label_dim=1000, dropout=0.1)),
    "cifar10": ("ddpmpp", dict(img_resolution=32, label_dim=10, augment_dim=9, dropout=0.13)),
    "imagenet64": ("adm", dict(img_resolution=64, label_dim=1000, dropout=0.1)),
}  # fmt: skip
PARTS = ("forward", "gradient", "training")
CLASSES = {"cifar10": 10, "imagenet64": 1000}  # those that have a configuration


def network_program(name: str, part: str, devices: Sequence, batch: int) -> tuple[Any, int, str]:
    """The network alone: ``(lowered, operations, class of the network)``."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from edm_jax import models
    from edm_jax.models.ops import target
    from edm_jax.models.variables import abstract_variables
    from experiments.preflight import costs

    mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    preset, arguments = NETS[name]
    net = models.build(preset, in_channels=3, out_channels=3, dtype="bfloat16", **arguments)
    shape = (batch, net.img_resolution, net.img_resolution, 3)
    given = [
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), tree)
        for tree in (
            abstract_variables(net),
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct(shape[:1], jnp.float32),
        )
    ]

    def forward(variables: Any, x: Any, c_noise: Any) -> Any:
        return net.apply(variables, x, c_noise)

    def loss(variables: Any, x: Any, c_noise: Any) -> Any:
        rngs = {"dropout": jax.random.key(0)}
        return jnp.sum(net.apply(variables, x, c_noise, train=True, rngs=rngs) ** 2)

    function = forward if part == "forward" else jax.grad(loss)
    with target.plain_forms():  # operations of the definition, not of its form for TPUs
        flops = costs.flops(jax.make_jaxpr(function)(*given))
    jax.clear_caches()  # what was traced for this machine
    with target.assumed("tpu", mesh):
        return jax.jit(function).lower(*given), flops, type(net).__name__


def training_program(name: str, devices: Sequence, batch: int) -> tuple[Any, int, str]:
    """The training step of the published configuration, in bfloat16; as `network_program`."""
    import importlib

    import jax

    from edm_jax.models.ops import target
    from experiments.config import build
    from experiments.preflight import costs

    config = importlib.import_module(f"configs.{name}").get_config()
    config.model.dtype = "bfloat16"
    config.train.update(batch_size=batch, loss_scaling=1.0)
    experiment = build.experiment(config)
    size = NETS[name][1]["img_resolution"]
    shape = costs.DataShape((size, size, 3), CLASSES[name])
    net = experiment.build_network(shape)
    flops = costs.training_costs(experiment, net, shape).flops * batch
    jax.clear_caches()
    with target.assumed("tpu"):
        return costs.lower_step(experiment, shape, list(devices)), flops, type(net).__name__


def measure(name: str, part: str, topology: Any, batch: int, text: str = "") -> list:
    """One row of the table."""
    from jax.experimental import topologies

    from experiments.preflight import costs, kernels, program

    described = topologies.get_topology_desc(
        platform="tpu", topology_name=topology.name, **topology.options()
    )
    devices = described.devices[:1]
    if part == "training":
        lowered, flops, network = training_program(name, devices, batch)
    else:
        lowered, flops, network = network_program(name, part, devices, batch)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    if text:
        pathlib.Path(text, f"{name}_{part}.txt").write_text(compiled.as_text())
    counted = kernels.count(program.kernels(compiled.as_text()), topology)
    found = program.read(compiled.as_text(), network, counted)
    chip = topology.chip
    estimate = found.total / chip.hertz
    share = flops / estimate / (chip.tflops / chip.devices * 1e12)
    temporary = costs.memory_of(compiled, "tpu").temporary / 2**20
    kinds = [f"{found.cycles.get(kind, 0) / 1e6:.2f}" for kind in program.KINDS]
    return [f"{name} {part} {batch}", f"{found.total / 1e6:.2f}", *kinds, f"{1e3 * estimate:.1f}",
            f"{100 * share:.0f} %", f"{temporary:.0f}", f"{seconds:.0f}"]  # fmt: skip


def choices(text: str, known: Sequence[str], flag: str) -> list[str]:
    """The names of a comma-separated list; ValueError for one that is not known."""
    names = text.split(",")
    for name in names:
        if name not in known:
            raise ValueError(f"--{flag}: {name!r} is not one of {', '.join(known)}")
    return names


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", default="level", help=f"of {', '.join(NETS)}")
    parser.add_argument("--parts", default="forward,gradient", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--topology", default="v5e:1x1", help="one of its devices is compiled for")
    parser.add_argument("--batch", type=int, default=32, help="images")
    parser.add_argument("--text", default="", help="folder that gets the optimised programs")
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT)  # before JAX is imported
    import common

    from experiments.preflight import program, topologies

    try:
        topology = topologies.parse(args.topology)
        topologies.require_compiler()
    except ValueError as error:
        parser.error(f"--topology={args.topology}: {error}")
    try:
        nets, parts = choices(args.nets, NETS, "nets"), choices(args.parts, PARTS, "parts")
        for name in nets if "training" in parts else ():
            choices(name, tuple(CLASSES), "nets with --parts=training")
    except ValueError as error:
        parser.error(str(error))
    if args.text:
        pathlib.Path(args.text).mkdir(parents=True, exist_ok=True)
    rows = [measure(name, part, topology, args.batch, args.text) for name in nets for part in parts]
    header = ["10^6 cycles", "all", *program.KINDS, "ms", "of the peak", "MiB", "compile s"]
    common.print_table(header, rows)


if __name__ == "__main__":
    main()
