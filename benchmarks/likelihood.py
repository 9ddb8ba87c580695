r"""Speed of the likelihood, and what the divergence costs over a denoiser call.

    python benchmarks/likelihood.py [--nets=digits,cifar10] [--num_steps=32] [--cpu_time]

For each network: the time of one evaluation of denoiser and divergence with one random probe over
that of one denoiser call, measured in turns in the same run (bound: 2.2 on a CPU); and the images
per second of the flow with N steps (of the likelihood with its N/2 check a third less) and of the
variational bound with 4 N levels, estimated from those times and measured if --whole is given.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import common
import jax
import jax.numpy as jnp
import numpy as np
from networks_under_test import CASES, random_batch

from edm_jax import image_keys, log_likelihood
from edm_jax.likelihood import hutchinson_trace, probe_vectors


def measure(
    name: str, num_steps: int, repeats: int, whole: bool, clock: Callable[[], float]
) -> list:
    """One row of the table."""
    case = CASES[name]()
    model, batch = case.model(), case.batch()
    data = random_batch(model, batch)
    rows = model.label_rows(data.get("label"), batch)
    x = jnp.asarray(data["image"] / 127.5 - 1, jnp.float32)
    probes = probe_vectors(image_keys(range(batch)), 1, x.shape)
    sigma = jnp.float32(0.5)

    @jax.jit
    def call(model, x, sigma):
        return model.denoiser(model.variables)(x, sigma, rows)

    @jax.jit
    def divergence(model, x, sigma):
        denoise = model.denoiser(model.variables)
        return hutchinson_trace(probes)(lambda x: denoise(x, sigma, rows), x)

    bare, both = common.interleaved(
        [lambda: call(model, x, sigma), lambda: divergence(model, x, sigma)],
        repeats=repeats,
        clock=clock,
    )
    measured = "-"
    if whole:
        options = {"num_steps": num_steps, "num_probes": 1, "batch_size": batch}
        labels = data.get("label")
        log_likelihood(model, data["image"], labels, **options)
        start = time.perf_counter()
        np.asarray(log_likelihood(model, data["image"], labels, **options))
        measured = f"{batch / (time.perf_counter() - start):.3f}"
    return [
        name, batch, f"{1e3 * bare:.1f}", f"{1e3 * both:.1f}", f"{both / bare:.2f}",
        f"{batch / (4 * num_steps * both):.3f}", measured, f"{batch / (4 * num_steps * bare):.3f}",
    ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", default="digits,cifar10", help=f"of {', '.join(CASES)}")
    parser.add_argument("--num_steps", type=int, default=32, help="N of the flow")
    parser.add_argument("--repeats", type=int, default=5, help="timings taken, median shown")
    parser.add_argument("--whole", action="store_true", help="also time log_likelihood itself")
    parser.add_argument(
        "--cpu_time", action="store_true", help="time of the cores, for a machine that is shared"
    )
    args = parser.parse_args()
    names = args.nets.split(",")
    for name in names:
        if name not in CASES:
            parser.error(f"--nets: {name!r} is not one of {', '.join(CASES)}")
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind}, jax {jax.__version__}, float32")
    header = ["network", "batch", "call ms", "+ divergence", "ratio", "flow img/s", "with check",
              "bound img/s"]  # fmt: skip
    clock = time.process_time if args.cpu_time else time.perf_counter
    rows = []
    for name in names:
        print(f"measuring {name} ...", flush=True)
        rows.append(measure(name, args.num_steps, args.repeats, args.whole, clock))
    common.print_table(header, rows)


if __name__ == "__main__":
    main()
