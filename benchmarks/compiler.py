r"""Where the compiler for TPUs expects the time of a network to go, without a TPU.

    python -m pip install -e '.[tpu]'
    python benchmarks/compiler.py --nets=level [--topology=v5e:1x1] [--parts=forward,gradient]

Prints the cycles that XLA expects, by kind of operation, the share of the peak that they amount
to, and the temporary memory: of ``level``, one 32x32 level of CIFAR-10 DDPM++ with two blocks,
which compiles in a minute or two, or of a published network, which takes ten.  bfloat16.
"""

from __future__ import annotations

import argparse
import os
import time
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
    "cifar10": ("ddpmpp", dict(img_resolution=32, label_dim=10, augment_dim=9, dropout=0.13)),
    "imagenet64": ("adm", dict(img_resolution=64, label_dim=1000, dropout=0.1)),
}  # fmt: skip


def measure(name: str, part: str, topology: Any, batch: int) -> list:
    """One row of the table."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies

    from edm_jax import models
    from edm_jax.models.ops import target
    from edm_jax.models.variables import abstract_variables
    from experiments.preflight import costs, program

    described = topologies.get_topology_desc(
        platform="tpu", topology_name=topology.name, **topology.options()
    )
    mesh = jax.sharding.Mesh(np.asarray(described.devices[:1]), ("data",))
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
    with target.assumed("tpu"):
        flops = costs.flops(jax.make_jaxpr(function)(*given))
        lowered = jax.jit(function).lower(*given)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    found = program.read(compiled.as_text(), type(net).__name__)
    chip = topology.chip
    share = flops / (found.total / chip.hertz) / (chip.tflops / chip.devices * 1e12)
    temporary = costs.memory_of(compiled, "tpu").temporary / 2**20
    kinds = [f"{found.cycles.get(kind, 0) / 1e6:.2f}" for kind in program.KINDS]
    return [f"{name} {part}", f"{found.total / 1e6:.2f}", *kinds, f"{100 * share:.0f} %",
            f"{temporary:.0f}", f"{seconds:.0f}"]  # fmt: skip


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", default="level", help=f"of {', '.join(NETS)}")
    parser.add_argument("--parts", default="forward,gradient", help="of forward, gradient")
    parser.add_argument("--topology", default="v5e:1x1", help="one of its devices is compiled for")
    parser.add_argument("--batch", type=int, default=32, help="images")
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT)  # before JAX is imported
    import common

    from experiments.preflight import program, topologies

    try:
        topology = topologies.parse(args.topology)
        topologies.require_compiler()
    except ValueError as error:
        parser.error(f"--topology={args.topology}: {error}")
    for name in args.nets.split(","):
        if name not in NETS:
            parser.error(f"--nets: {name!r} is not one of {', '.join(NETS)}")
    rows = [
        measure(name, part, topology, args.batch)
        for name in args.nets.split(",")
        for part in args.parts.split(",")
    ]
    header = ["10^6 cycles", "all", *program.KINDS, "of the peak", "MiB", "compile s"]
    common.print_table(header, rows)


if __name__ == "__main__":
    main()
