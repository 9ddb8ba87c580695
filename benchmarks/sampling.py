r"""Speed of sampling, and what the sampling loop costs over bare network calls.

    python benchmarks/sampling.py [--nets=digits,cifar10] [--num_steps=18]

For each network: images per second, compile time, number of traces over several calls with
different settings (1 + 1: Heun and churn once each), and two ratios: the time of jitted N-step
sampling over 2N - 1 single denoiser calls measured in turns in the same run (1.0 means the loop
is free), and the compile time of Heun and of Algorithm 2 over that of one denoiser call (near 1:
the program holds the network once).
"""

from __future__ import annotations

import argparse

import common
import jax
import jax.numpy as jnp
import numpy as np
from networks_under_test import CASES

from edm_jax import Churn, image_keys, karras_sigmas, latents, sample_heun, sample_stochastic


def measure(name: str, num_steps: int, repeats: int) -> list:
    """One row of the table."""
    case = CASES[name]()
    model, batch = case.model(), case.batch()
    labels = jnp.arange(batch) % model.num_classes if model.num_classes else None
    rows = model.label_rows(labels, batch)
    traces = {"heun": 0, "churn": 0}

    @jax.jit
    def heun(variables, x, sigmas):
        traces["heun"] += 1
        return sample_heun(lambda x, s: model.denoiser(variables)(x, s, rows), x, sigmas)

    @jax.jit
    def single(variables, x, sigma):
        return model.denoiser(variables)(x, sigma, rows)

    @jax.jit
    def churned(variables, x, sigmas, keys, churn):
        traces["churn"] += 1
        return sample_stochastic(
            lambda x, s: model.denoiser(variables)(x, s, rows), x, sigmas, keys, churn
        )

    keys = image_keys(range(batch))
    sigmas = jnp.asarray(karras_sigmas(num_steps), jnp.float32)
    x = latents(keys, (batch, *model.image_shape)) * sigmas[0]
    _, compile_seconds = common.compile_timed(heun, model.variables, x, sigmas)
    _, churn_seconds = common.compile_timed(churned, model.variables, x, sigmas, keys, Churn(40.0))
    _, call_seconds = common.compile_timed(single, model.variables, x, sigmas[0])
    traces |= {"heun": 0, "churn": 0}
    levels = [jnp.float32(s) for s in [*np.asarray(sigmas[:-1])] + [*np.asarray(sigmas[1:-1])]]

    def calls():
        y = x
        for sigma in levels:  # each waits for the one before, as in a sampler
            y = single(model.variables, y, sigma)
        return y

    loop, bare = common.interleaved(
        [lambda: heun(model.variables, x, sigmas), calls], repeats=repeats
    )
    for rho, churn in ((7.0, Churn(0.0)), (5.0, Churn(40.0, 0.05, 50.0, 1.003))):
        grid = jnp.asarray(karras_sigmas(num_steps, rho=rho), jnp.float32)
        heun(model.variables, x, grid)
        churned(model.variables, x, grid, keys, churn)
    return [
        name,
        batch,
        num_steps,
        2 * num_steps - 1,
        f"{batch / loop:.2f}",
        f"{compile_seconds:.1f}",
        f"{traces['heun']} + {traces['churn']}",
        f"{loop / bare:.3f}",
        f"{compile_seconds / call_seconds:.2f}, {churn_seconds / call_seconds:.2f}",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", default="digits,cifar10", help=f"of {', '.join(CASES)}")
    parser.add_argument("--num_steps", type=int, default=18, help="N of the sampler")
    parser.add_argument("--repeats", type=int, default=5, help="timings taken, median shown")
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind}, jax {jax.__version__}, float32")
    header = ["network", "batch", "N", "NFE", "img/s", "compile s", "traces", "loop / calls"]
    header.append("compile / call's (heun, edm)")
    names = args.nets.split(",")
    for name in names:
        if name not in CASES:
            parser.error(f"--nets: {name!r} is not one of {', '.join(CASES)}")
    rows = []
    for name in names:
        print(f"measuring {name} ...", flush=True)
        rows.append(measure(name, args.num_steps, args.repeats))
    common.print_table(header, rows)


if __name__ == "__main__":
    main()
