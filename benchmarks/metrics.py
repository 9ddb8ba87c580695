r"""Speed of Inception-v3 beside PyTorch's, and time and error of the statistics.

    python -m pip install torch && python benchmarks/metrics.py [--only=inception,distance,moments]

* ``inception``: images per second of the feature network, in turns with the same graph in
  PyTorch (where that is installed) in its two layouts, all with the same random weights; the
  outputs are compared.  Median of the wall time, and the least processor time of a call.
* ``distance``: seconds of a Frechet distance of two sets of 2048 numbers.
* ``moments``: seconds and error of the running moments of 50,000 x 2048 features, against two
  passes over all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import common
import jax
import numpy as np

from edm_jax.metrics import frechet, inception, inception_weights
from edm_jax.metrics.moments import Moments

WIDTH = inception.NUM_FEATURES


def random_weights() -> dict[str, np.ndarray]:
    """Of the published names, such that activations keep their size."""
    rng = np.random.default_rng(0)

    def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
        z = rng.standard_normal(shape, np.float32)
        if name.endswith("conv.weight"):
            return z * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        if name.endswith(("bn.weight", "running_var")):
            return 1 + 0.1 * np.tanh(z)
        return z * np.float32(0.02)

    shapes = inception_weights.published_shapes()
    return {name: weight(name, shape) for name, shape in shapes.items()}


def pytorch_inception(weights: dict[str, np.ndarray], channels_last: bool) -> Callable[..., Any]:
    """The graph in plain PyTorch: convolution, normalisation, ReLU, layer by layer."""
    import torch
    from torch.nn import functional

    layout = torch.channels_last if channels_last else torch.contiguous_format
    tensors = {
        name: t.contiguous(memory_format=layout) if (t := torch.from_numpy(a)).ndim == 4 else t
        for name, a in weights.items()
    }

    def conv(x: Any, name: str, stride: int = 1, same: bool = True) -> Any:
        kernel = tensors[f"{name}.conv.weight"]
        padding = [n // 2 for n in kernel.shape[2:]] if same and stride == 1 else 0
        norm = (
            tensors[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
        )
        x = functional.conv2d(x, kernel, None, stride, padding)
        return functional.relu_(functional.batch_norm(x, *norm, training=False, eps=1e-3))

    def chain(x: Any, stage: str, *names: str, last_stride: int = 1) -> Any:
        for name in names:
            x = conv(x, f"{stage}.{name}", last_stride if name == names[-1] else 1)
        return x

    def pool(x: Any) -> Any:
        return functional.max_pool2d(x, 3, 2)

    def mean(x: Any) -> Any:
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def numbered(name: str, *numbers: int) -> list[str]:
        return [f"{name}_{i}" for i in numbers]

    def forward(images: np.ndarray) -> Any:
        with torch.inference_mode():
            x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=layout)
            x = conv(x, "Conv2d_1a_3x3", 2)
            x = conv(x, "Conv2d_2a_3x3", same=False)
            x = pool(conv(x, "Conv2d_2b_3x3"))
            x = pool(conv(conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3", same=False))
            for s in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
                five, double = numbered("branch5x5", 1, 2), numbered("branch3x3dbl", 1, 2, 3)
                parts = [chain(x, s, "branch1x1"), chain(x, s, *five), chain(x, s, *double)]
                x = torch.cat([*parts, chain(mean(x), s, "branch_pool")], 1)
            s, double = "Mixed_6a", numbered("branch3x3dbl", 1, 2, 3)
            single = chain(x, s, "branch3x3", last_stride=2)
            x = torch.cat([single, chain(x, s, *double, last_stride=2), pool(x)], 1)
            for s in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
                seven = numbered("branch7x7", 1, 2, 3)
                double = numbered("branch7x7dbl", 1, 2, 3, 4, 5)
                parts = [chain(x, s, "branch1x1"), chain(x, s, *seven), chain(x, s, *double)]
                x = torch.cat([*parts, chain(mean(x), s, "branch_pool")], 1)
            s, seven = "Mixed_7a", numbered("branch7x7x3", 1, 2, 3, 4)
            three = chain(x, s, *numbered("branch3x3", 1, 2), last_stride=2)
            x = torch.cat([three, chain(x, s, *seven, last_stride=2), pool(x)], 1)
            for s in ("Mixed_7b", "Mixed_7c"):
                three = chain(x, s, "branch3x3_1")
                double = chain(x, s, *numbered("branch3x3dbl", 1, 2))
                parts = [chain(x, s, "branch1x1")]
                parts += [chain(three, s, f"branch3x3_2{k}") for k in "ab"]
                parts += [chain(double, s, f"branch3x3dbl_3{k}") for k in "ab"]
                pooled = mean(x) if s == "Mixed_7b" else functional.max_pool2d(x, 3, 1, 1)
                x = torch.cat([*parts, chain(pooled, s, "branch_pool")], 1)
            return x.mean((2, 3)).numpy()

    return forward


def measure_inception(batch: int, repeats: int) -> None:
    """Images per second, in turns."""
    weights = random_weights()
    params = jax.device_put(inception_weights.params_from(weights))
    rng = np.random.default_rng(1)
    images = np.array(
        inception.preprocess(rng.integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8))
    )
    network = inception.InceptionV3()

    @jax.jit
    def forward(params: Any, x: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return network.apply({"params": params}, x)[0]

    programs = {"this project": lambda: np.asarray(forward(params, images))}
    try:
        for name, last in (("PyTorch, channels first", False), ("PyTorch, channels last", True)):
            programs[name] = lambda f=pytorch_inception(weights, last): f(images)
    except ImportError:
        print("PyTorch is not installed; the comparison is left out")
    outputs = {name: program() for name, program in programs.items()}
    mine = outputs["this project"]
    walls: dict[str, list[float]] = {name: [] for name in programs}
    processor = dict.fromkeys(programs, float("inf"))
    for _ in range(repeats):
        for name, program in programs.items():
            wall, used = time.perf_counter(), time.process_time()
            program()
            walls[name].append(time.perf_counter() - wall)
            processor[name] = min(processor[name], time.process_time() - used)
    rows = [
        [
            name,
            f"{batch / statistics.median(walls[name]):.2f}",
            f"{batch / min(walls[name]):.2f}",
            f"{processor[name] / batch:.3f}",
            f"{np.abs(outputs[name] - mine).max() / np.abs(mine).max():.1e}",
        ]
        for name in programs
    ]
    print(f"\nInception-v3, batch {batch}, {os.cpu_count()} processors, {jax.default_backend()}")
    common.print_table(["", "images/s", "at best", "processor s/image", "difference"], rows)


def measure_distance(repeats: int) -> None:
    """Seconds of a distance of 2048 dimensions, of regular and of singular covariances."""
    rng = np.random.default_rng(2)
    spread = np.geomspace(3, 1e-3, WIDTH)
    for rows in (4096, 1000):
        sets = [np.maximum(rng.standard_normal((rows, WIDTH)) * spread, 0) for _ in range(2)]
        moments = [frechet.gaussian_statistics(features) for features in sets]
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            found = frechet.distance(*moments[0], *moments[1])
            times.append(time.perf_counter() - start)
        itself = frechet.frechet_distance(*moments[0], *moments[0])
        print(
            f"Frechet distance of two sets of {rows} x {WIDTH}: {min(times):.2f} s at best, "
            f"{statistics.median(times):.2f} s median; value {found.value:.6g}, ranks "
            f"{found.ranks}, of a set to itself {itself:.1e}"
        )


def measure_moments(count: int) -> None:
    """Seconds and error of running moments."""
    rng = np.random.default_rng(3)
    features = np.empty((count, WIDTH), np.float32)
    for start in range(0, count, 1000):  # of one sign, as the real ones
        part = rng.standard_normal((len(features[start : start + 1000]), WIDTH), np.float32)
        features[start : start + 1000] = np.abs(part) * np.geomspace(2, 0.01, WIDTH)
    moments, begun = Moments(), time.perf_counter()
    for start in range(0, count, 64):
        moments.update(features[start : start + 64], start)
    mean, cov = moments.result()
    seconds = time.perf_counter() - begun
    exact = features.mean(axis=0, dtype=np.longdouble).astype(np.float64)
    centred = features - exact
    two_pass = centred.T @ centred / (count - 1)
    deviations = np.sqrt(np.diag(two_pass))
    print(
        f"moments of {count} x {WIDTH} in batches of 64: {seconds:.1f} s; against two passes, the "
        f"mean is off by {np.max(np.abs(mean - exact) / np.abs(exact)):.1e} of itself, the "
        f"covariance by {np.max(np.abs(cov - two_pass) / np.outer(deviations, deviations)):.1e} "
        "of the product of the deviations"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="inception,distance,moments")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--count", type=int, default=50_000)
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if "inception" in wanted:
        measure_inception(arguments.batch, arguments.repeats)
    if "distance" in wanted:
        measure_distance(max(arguments.repeats // 2, 1))
    if "moments" in wanted:
        measure_moments(arguments.count)


if __name__ == "__main__":
    main()
