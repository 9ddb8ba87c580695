"""What augmentation costs, alone and as a share of a training step.

    python benchmarks/augment.py --resolution=32 --batch=64 --step_ms=95

Times the published setting (flips and geometry, the labels of dimension 9) compiled as a
program of its own, which is an upper bound for its part of a fused step.  The share is
taken of --step_ms, the measured time of a training step of that batch on the same
device, and, independent of any device, of the arithmetic of a step
(--forward_gflop: a forward pass of the network per image; a step counts three).
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import common  # noqa: F401  (finds the repository)
import jax

from edm_jax.augment import drawing, pipe

# Of DDPM++ as published for CIFAR-10 and for 64x64; a multiply-add counts two.
FORWARD_GFLOP = {32: 40.3, 64: 81.0}


def augment_flops(size: int, method: str) -> float:
    """Arithmetic of the matrix products of one image, three channels."""
    up, grid = 2 * (3 * size - 2), 2 * size + 10
    filters = 2 * 3 * grid * size * (grid + size)  # downsampling
    if method == "gather":
        return filters + 2 * 3 * up * size * (size + up)
    weights = 2 * 2 * grid**2 * up * size
    return filters + weights + 2 * 3 * grid**2 * size * (size + 1)


def seconds(function: Callable[..., object], *arguments: object, repeats: int = 10) -> float:
    """Median time of a call, compilation left out."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64, help="images on this device")
    parser.add_argument("--methods", default="gather,matmul", help="ways of sampling to time")
    parser.add_argument("--step_ms", type=float, help="measured training step of that batch")
    parser.add_argument("--forward_gflop", type=float, help="of the network, per image")
    options = parser.parse_args()
    batch, size = options.batch, options.resolution
    forward = options.forward_gflop or FORWARD_GFLOP.get(size)

    key = jax.random.key(0)
    images = jax.random.uniform(key, (batch, size, size, 3), minval=-1)
    augmentation = drawing.EDM_AUGMENT
    draw = jax.jit(lambda key: drawing.sample_params(key, images.shape, augmentation))
    params = draw(key)

    print(f"{jax.devices()[0].device_kind}, {batch} images of {size}x{size}")
    drawn = seconds(draw, key)
    print(f"draw the parameters      {1e6 * drawn / batch:9.1f} us per image")
    for method in options.methods.split(","):
        apply = functools.partial(pipe.apply_augment, pipe=augmentation, method=method)
        total = drawn + seconds(jax.jit(apply), images, params)
        line = f"augment ({method:6s})         {1e6 * total / batch:9.1f} us per image"
        if options.step_ms:
            line += f", {100e3 * total / options.step_ms:.2f} % of the step"
        if forward:
            flops = augment_flops(size, method)
            share = 100 * flops / (3e9 * forward)
            line += f"; {flops / 1e6:.0f} MFLOP per image, {share:.3f} % of a step's"
        print(line)


if __name__ == "__main__":
    main()
