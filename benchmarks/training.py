r"""Speed of training: the step alone, and the step fed by the input pipeline.

    python benchmarks/training.py [--nets=digits,cifar10] [--fuse] [--startup=digits]

For each network: images per second of the jitted step on resident data, the same when fed by
the pipeline (their ratio tells whether the device ever waits for the host), the step over one
denoiser call on the same batch, compile time and number of traces.  With --fuse also the
time of the steps dispatched one by one over that of one program that scans over them.

Then, of the configurations of --startup, the seconds from the command to its first step:
cold, with nothing compiled before, and warm, when the same command has run once
(experiments/compilation_cache.py).
"""

from __future__ import annotations

import argparse
import functools
import shlex
import subprocess
import sys
import tempfile
import time

import common
import jax
import numpy as np
from networks_under_test import CASES, random_batch

from edm_jax.data import pipeline
from edm_jax.data.sources.base import ArraySource
from edm_jax.noise import LogNormal, edm_weight
from edm_jax.train import sharding
from edm_jax.train.averaging import Averaging
from edm_jax.train.objective import DenoisingObjective
from edm_jax.train.optimizer import make_optimizer
from edm_jax.train.step import init_state, make_train_step


def measure(name: str, repeats: int, steps: int, fuse: bool) -> list:
    """One row of the table."""
    case = CASES[name]()
    model, batch_size = case.model(), case.batch()
    mesh = sharding.make_mesh()
    optimizer = make_optimizer(batch_size=batch_size, lr=1e-4, lr_rampup_kimg=10)
    averaging = Averaging((500.0,))
    objective = DenoisingObjective(
        model.net.apply, model.preconditioning, LogNormal(), edm_weight, model.num_classes
    )
    train_step = make_train_step(
        objective, optimizer, averaging, batch_size=batch_size, log_every=10
    )
    traces = 0

    def counted(*args):
        nonlocal traces
        traces += 1
        return train_step(*args)

    jitted = jax.jit(counted, donate_argnums=0, out_shardings=sharding.replicated(mesh))
    state = sharding.replicate(init_state(model.variables, optimizer, averaging), mesh)
    spec = sharding.batch_sharding(mesh)
    resident = jax.device_put(random_batch(model, batch_size), spec)
    key = jax.random.key(0)
    _, compile_seconds = common.compile_timed(jitted, state, resident, key)
    images = random_batch(model, 8 * batch_size)
    source = ArraySource(images["image"], images["label"] if model.num_classes else None)
    stream = pipeline.device_batches(
        pipeline.host_batches(source, batch_size, seed=0, num_threads=1), spec
    )

    def run(batches):
        nonlocal state
        for _ in range(steps):
            state = jitted(state, next(batches), key)
        return state

    def forever():
        while True:
            yield resident

    denoise = jax.jit(lambda variables, x: model.denoiser(variables)(x, 1.0))
    x = np.zeros((batch_size, *model.image_shape), np.float32)
    endless = forever()

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=sharding.replicated(mesh))
    def fused(state, batch):
        body = lambda state, _: (train_step(state, batch, key), None)  # noqa: E731
        return jax.lax.scan(body, state, None, length=steps)[0]

    def run_fused():
        nonlocal state
        state = fused(state, resident)
        return state

    programs = [lambda: run(endless), lambda: run(stream), lambda: denoise(model.variables, x)]
    alone, fed, single, *rest = common.interleaved(
        [*programs, run_fused] if fuse else programs, repeats=repeats
    )
    return [
        name,
        batch_size,
        f"{steps * batch_size / alone:.2f}",
        f"{alone / fed:.3f}",
        f"{alone / steps / single:.2f}",
        f"{compile_seconds:.1f}",
        traces,
        *(f"{alone / seconds:.3f}" for seconds in rest),
    ]


def startup_seconds(config: str) -> tuple[float, float]:
    """From the command to its first step, cold and warm."""
    with tempfile.TemporaryDirectory() as folder:
        return (
            _seconds_to_first_step(config, folder, "cold"),
            _seconds_to_first_step(config, folder, "warm"),
        )


def _seconds_to_first_step(config: str, folder: str, name: str) -> float:
    """One training run, stopped when it has told of its first step."""
    command = [
        sys.executable,
        str(common.ROOT / "experiments" / "main.py"),
        f"--config=configs/{config}.py",
        f"--workdir={folder}/{name}",
        f"--compilation_cache={folder}/compiled",
        "--config.train.log_kimg=1e-6",  # each step
    ]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("kimg"):
                process.kill()
                return time.perf_counter() - start
    raise RuntimeError(f"{shlex.join(command)} ended before its first step")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", default="digits,cifar10", help=f"of {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=3, help="timings taken, median shown")
    parser.add_argument("--steps", type=int, default=3, help="steps per timing")
    parser.add_argument("--fuse", action="store_true", help="compare with a scan over the steps")
    parser.add_argument("--startup", default="digits", help="configurations to start, or none")
    args = parser.parse_args()
    names = args.nets.split(",")
    for name in names:
        if name not in CASES:
            parser.error(f"--nets: {name!r} is not one of {', '.join(CASES)}")
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind}, jax {jax.__version__}, float32")
    header = [
        "network",
        "batch",
        "img/s",
        "fed / resident",
        "step / denoise",
        "compile s",
        "traces",
    ] + ["separate / fused"] * args.fuse
    rows = []
    for name in names:
        print(f"measuring {name} ...", flush=True)
        rows.append(measure(name, args.repeats, args.steps, args.fuse))
    common.print_table(header, rows)
    configs = [] if args.startup == "none" else args.startup.split(",")
    starts = [[name, *(f"{s:.1f}" for s in startup_seconds(name))] for name in configs]
    if starts:
        print()
        common.print_table(["configuration", "start-up s, cold", "warm"], starts)


if __name__ == "__main__":
    main()
