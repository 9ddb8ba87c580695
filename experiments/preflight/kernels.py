"""How long kernels take, which the compiler for TPUs counts only when it is asked to.

A kernel (Pallas) is a program of its own within another.  Beside it the optimised text has no
cycles, unless the library is told to keep a profile of what it compiles; of a single block that
takes it minutes.  So each kernel is compiled by itself, in a few seconds.  As a program (``-m``)
this reads a JSON object from its input and prints one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterable

import jax

from edm_jax.models.ops import attention_kernel
from experiments.preflight import children, program
from experiments.preflight.program import Kernel
from experiments.preflight.topologies import Topology

# By the names that the optimised text has for them.
KERNELS = {
    "attention_forward": attention_kernel.forward_kernel,
    "attention_backward": attention_kernel.backward_kernel,
}
FEW = 8  # images
DTYPES = {"bf16": "bfloat16", "f32": "float32"}


def count(kernels: Iterable[Kernel], topology: Topology) -> dict[Kernel, int]:
    """Cycles of one execution of each on a device.

    One that the library cannot count, as on v4 and tpu7x, or not compile, is missing.
    """
    kernels = sorted(kernels, key=repr)
    if not kernels:
        return {}
    request = {
        "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
        "topology": dataclasses.asdict(topology),
    }
    with tempfile.TemporaryDirectory() as folder:
        given = os.environ.get("LIBTPU_INIT_ARGS", "")
        flags = f"{given} --xla_jf_dump_static_llo_profile_to={folder}".strip()
        environment = os.environ | topology.environment() | {"LIBTPU_INIT_ARGS": flags}
        answers, _ = children.ask(__spec__.name, request, environment)
    return {kernels[index]: cycles for index, cycles in answers if cycles}


def cycles_of(kernel: Kernel, device: jax.Device) -> int:
    """Its cycles on a described device; 0 if the library did not count them.

    All operands are arrays of images, which the kernel takes one after the other, and the
    library takes longer the more there are.  So of many images a few are counted, and half as
    many: the difference is what more of them take.
    """
    images = kernel.operands[0][1][0]
    if images <= FEW:
        return compile_alone(kernel, device, images)
    half, few = (compile_alone(kernel, device, count) for count in (FEW // 2, FEW))
    return few + (images - FEW) * (few - half) // (FEW // 2) if half and few else 0


def compile_alone(kernel: Kernel, device: jax.Device, images: int) -> int:
    """The cycles that the library counts for so many images."""
    here = jax.sharding.SingleDeviceSharding(device)
    operands = [
        jax.ShapeDtypeStruct((images, *shape[1:]), DTYPES[dtype], sharding=here)
        for dtype, shape in kernel.operands
    ]
    text = jax.jit(KERNELS[kernel.name]).lower(*operands).compile().as_text()
    return program.read(text).total


def _main() -> None:
    from jax.experimental import topologies

    request = json.load(sys.stdin)
    topology = Topology.of(request["topology"])
    device = topologies.get_topology_desc(
        platform="tpu", topology_name=topology.name, **topology.options()
    ).devices[0]
    for index, one in enumerate(request["kernels"]):
        kernel = Kernel(one["name"], tuple((d, tuple(s)) for d, s in one["operands"]))
        known = kernel.operands and {d for d, _ in kernel.operands} <= DTYPES.keys()
        if kernel.name not in KERNELS or not known:
            continue
        try:
            children.answer([index, cycles_of(kernel, device)])
        except Exception as error:  # the others may be counted
            print(f"{kernel.name}: {error}", file=sys.stderr)


if __name__ == "__main__":
    _main()
