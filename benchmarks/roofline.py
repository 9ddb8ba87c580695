r"""What the published networks could reach at best: rooflines by network and device.

    python benchmarks/roofline.py [--batch=32]

Every convolution and matrix product of the forward pass and of the training step (gradient) takes
the longer of its operations at the peak and of its operands and result through the memory, one
after the other; everything else is taken to be fused into them, at no cost.  Traced, not run.
Printed: milliseconds per image, and the share of the peak that this leaves.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any

import common
import jax
import jax.numpy as jnp

from edm_jax import models
from edm_jax.models.ops import target
from edm_jax.models.variables import abstract_variables
from experiments.preflight import costs
from experiments.preflight.topologies import CHIPS

# Peak in bfloat16 (1e12 operations per second), bandwidth of the memory (1e9 bytes per second).
DEVICES = {name: (CHIPS[name].tflops, CHIPS[name].memory_gbps) for name in ("v5e", "v5p", "v6e")}
DEVICES |= {"A100 80 GB": (312.0, 2039.0), "H200": (989.0, 4800.0)}
RGB = {"in_channels": 3, "out_channels": 3, "dtype": "bfloat16"}
AT_32, AT_64 = {"img_resolution": 32, **RGB}, {"img_resolution": 64, **RGB}
NETWORKS = {
    "CIFAR-10 DDPM++": ("ddpmpp", {**AT_32, "label_dim": 10, "augment_dim": 9}),
    "CIFAR-10 NCSN++": ("ncsnpp", {**AT_32, "label_dim": 10, "augment_dim": 9}),
    "FFHQ DDPM++": ("ddpmpp", {**AT_64, "channel_mult": (1, 2, 2, 2), "augment_dim": 9}),
    "ImageNet ADM": ("adm", {**AT_64, "label_dim": 1000}),
}


def products(jaxpr: Any) -> Iterator[tuple[int, int]]:
    """Operations and bytes of operands and result of every product of a traced program."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            arrays = [var.aval for var in (*eqn.invars, *eqn.outvars)]
            nbytes = sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)
            yield costs.flops(_Alone(eqn)), nbytes
        else:
            for value in eqn.params.values():
                for part in value if isinstance(value, tuple | list) else (value,):
                    if hasattr(getattr(part, "jaxpr", part), "eqns"):
                        yield from products(part)


class _Alone:
    """One operation as a program, for `costs.flops`."""

    def __init__(self, eqn: Any):
        self.eqns = [eqn]


def traced(name: str, batch: int) -> dict[str, list[tuple[int, int]]]:
    """Products of the forward pass and of the gradient."""
    preset, arguments = NETWORKS[name]
    net = models.build(preset, **arguments)
    variables = abstract_variables(net)
    x = jax.ShapeDtypeStruct((batch, *(net.img_resolution,) * 2, 3), jnp.float32)
    c_noise = jax.ShapeDtypeStruct((batch,), jnp.float32)

    others = {key: value for key, value in variables.items() if key != "params"}

    def forward(params: Any, others: Any, x: Any, c_noise: Any) -> Any:
        return net.apply({"params": params, **others}, x, c_noise)

    def loss(*args: Any) -> Any:
        return jnp.sum(forward(*args) ** 2)

    given = (variables["params"], others, x, c_noise)
    with target.plain_forms():  # the operations as they are defined
        return {
            "forward": list(products(jax.make_jaxpr(forward)(*given))),
            "training": list(products(jax.make_jaxpr(jax.grad(loss))(*given))),
        }


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32, help="images per device")
    args = parser.parse_args()
    rows = []
    for name in NETWORKS:
        for what, parts in traced(name, args.batch).items():
            total = sum(flops for flops, _ in parts)
            row = [f"{name}, {what}", f"{total / args.batch / 1e9:.1f}"]
            for tflops, gbps in DEVICES.values():
                peak, memory = tflops * 1e12, gbps * 1e9
                seconds = sum(max(flops / peak, nbytes / memory) for flops, nbytes in parts)
                share = 100 * total / peak / seconds
                row.append(f"{1e3 * seconds / args.batch:.3f} ({share:.0f} %)")
            rows.append(row)
    common.print_table(["ms per image (share of peak)", "GFLOP", *DEVICES], rows)


if __name__ == "__main__":
    main()
