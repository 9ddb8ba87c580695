r"""What checkpoints cost a run: how long saving keeps the training loop, of its interval.

    python benchmarks/checkpoint.py [--configs=digits,cifar10] [--images_per_second=1160]

For each configuration: bytes of the state, seconds that `CheckpointStore.save` and the check
before it (that every number is finite) keep the loop, seconds until the checkpoint is on disk,
and the share of the interval of the configuration at a rate of training (by default that of the
published CIFAR-10 runs, 200 million images in two days on eight V100).
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import statistics
import tempfile
import time

import common
import jax

from edm_jax import models
from edm_jax.train.checkpoint import CheckpointStore
from edm_jax.train.step import all_finite, init_state
from experiments.config import build
from experiments.preflight.costs import DataShape, tree_bytes
from experiments.words import size

SIZES = {"digits": DataShape((8, 8, 1), 10), "cifar10": DataShape((32, 32, 3), 10),
         "imagenet64": DataShape((64, 64, 3), 1000)}  # fmt: skip


def measure(name: str, images_per_second: float, repeats: int) -> list:
    """One row of the table."""
    config = importlib.import_module(f"configs.{name}").get_config()
    experiment, shape = build.experiment(config), SIZES[name]
    net = experiment.build_network(shape)

    @jax.jit
    def make():
        variables = models.init_variables(net, jax.random.key(0))
        return init_state(variables, experiment.optimizer, experiment.averaging)

    state, finite = make(), jax.jit(all_finite)
    bool(finite(state))
    stalls, writes = [], []
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(pathlib.Path(folder) / "checkpoints", keep_last=2)
        for step in range(1, repeats + 2):
            start = time.perf_counter()
            bool(finite(state))
            store.save(state, step, {})
            stalls.append(time.perf_counter() - start)
            store.wait()
            writes.append(time.perf_counter() - start)
        store.close()
    stall, written = statistics.median(stalls[1:]), statistics.median(writes[1:])
    interval = experiment.intervals.checkpoint * experiment.training.batch_size / images_per_second
    # A save waits for the one before it, should that not be written yet.
    lost = stall + max(0.0, written - interval)
    return [
        name,
        size(tree_bytes(state)),
        f"{stall:.3f}",
        f"{written:.2f}",
        f"{interval:.0f}",
        f"{100 * lost / interval:.3f} %",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", default="digits,cifar10", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--images_per_second", type=float, default=1160.0, help="of training")
    parser.add_argument("--repeats", type=int, default=3, help="saves timed, median shown")
    args = parser.parse_args()
    names = args.configs.split(",")
    for name in names:
        if name not in SIZES:
            parser.error(f"--configs: {name!r} is not one of {', '.join(SIZES)}")
    rows = [measure(name, args.images_per_second, args.repeats) for name in names]
    header = ["configuration", "state", "loop waits s", "on disk s", "interval s", "share"]
    common.print_table(header, rows)


if __name__ == "__main__":
    main()
