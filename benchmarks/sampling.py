r"""Speed of sampling, and what the sampling loop costs over bare network calls.

    python benchmarks/sampling.py [--nets=digits,cifar10] [--num_steps=18]

For each network: images per second, compile time, number of further traces over several calls with
different settings (0 + 0: of Heun and of churn, none), and two ratios: the time of jitted N-step
sampling over 2N - 1 single denoiser calls measured in turns in the same run (1.0 means the loop
is free), and the compile time of Heun and of Algorithm 2 over that of one denoiser call (near 1:
the program holds the network once).

    python benchmarks/sampling.py --guided [--nets=digits,cifar10]

measures guided sampling instead: its time over that of its network rows alone (the same calls,
each jitted on its own, in turns in the same run), and over unguided sampling; at all noise levels
and in the interval (0.19, 1.61], outside of which the second network must not run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import common
import jax
import jax.numpy as jnp
import numpy as np
from networks_under_test import CASES

from edm_jax import Churn, image_keys, karras_sigmas, latents, sample_heun, sample_stochastic
from edm_jax.guidance import autoguidance, classifier_free
from edm_jax.typing import Array

INTERVAL = (0.19, 1.61)
# Label -> guidance of a model, whether one call serves both halves.
GUIDED = {
    "classifier-free, two calls": (lambda model, i: classifier_free(2.0, i), False),
    "classifier-free, one call": (lambda model, i: classifier_free(2.0, i, together=True), True),
    "autoguidance": (lambda model, i: autoguidance(model, 2.0, i), False),
}


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


def measure_guided(
    name: str, num_steps: int, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[list]:
    """Rows of the table of guided sampling: each guidance at all levels and in the interval."""
    case = CASES[name]()
    model, batch = case.model(), case.batch()
    rows = model.label_rows(jnp.arange(batch) % model.num_classes, batch)
    null = jnp.zeros_like(rows)
    sigmas = karras_sigmas(num_steps).astype(np.float32)
    x = latents(image_keys(range(batch)), (batch, *model.image_shape)) * sigmas[0]
    levels = [*sigmas[:-1], *sigmas[1:-1]]

    @jax.jit
    def guided(model, guidance, x, sigmas):
        denoise = model.denoiser(model.variables)
        denoise = denoise if guidance is None else guidance.guide(denoise)
        return sample_heun(lambda x, sigma: denoise(x, sigma, rows), x, sigmas)

    @jax.jit
    def single(variables, x, sigma, rows):
        return model.denoiser(variables)(x, sigma, rows)

    pair = jnp.repeat(x, 2, axis=0), jnp.stack([rows, null], axis=1).reshape(2 * batch, -1)

    def alone(together: bool, acts: Callable[[float], bool]) -> Array:
        y, both = x, pair[0]
        for sigma in levels:  # each waits for the one before, as in a sampler
            if acts(sigma) and together:
                both = single(model.variables, both, sigma, pair[1])
                continue
            y = single(model.variables, y, sigma, rows)
            if acts(sigma):
                y = single(model.variables, y, sigma, null)
        return y, both

    def inside(sigma: float) -> bool:
        return INTERVAL[0] < sigma <= INTERVAL[1]

    table = []
    for label, (make, together) in GUIDED.items():
        for interval, acts in ((None, lambda sigma: True), (INTERVAL, inside)):
            guidance = make(model, interval)
            times = common.interleaved(
                [
                    lambda g=guidance: guided(model, g, x, sigmas),
                    lambda t=together, a=acts: alone(t, a),
                    lambda: guided(model, None, x, sigmas),
                ],
                repeats=repeats,
                clock=clock,
            )
            calls = len(levels) + sum(map(acts, levels))
            table.append(
                [name, batch, label, "all" if interval is None else f"{interval}", calls]
                + [f"{times[0]:.2f}", f"{times[0] / times[1]:.3f}", f"{times[0] / times[2]:.2f}"]
            )
            table[-1].append(f"{calls / len(levels):.2f}")
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", default="digits,cifar10", help=f"of {', '.join(CASES)}")
    parser.add_argument("--num_steps", type=int, default=18, help="N of the sampler")
    parser.add_argument("--repeats", type=int, default=5, help="timings taken, median shown")
    parser.add_argument("--guided", action="store_true", help="guided sampling")
    parser.add_argument(
        "--cpu_time", action="store_true", help="of it the work of the cores, on a busy machine"
    )
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind}, jax {jax.__version__}, float32")
    header = ["network", "batch", "N", "NFE", "img/s", "compile s", "traces", "loop / calls"]
    header.append("compile / call's (heun, edm)")
    names = args.nets.split(",")
    for name in names:
        if name not in CASES:
            parser.error(f"--nets: {name!r} is not one of {', '.join(CASES)}")
    if args.guided:
        header = ["network", "batch", "guidance", "levels", "rows / img", "s", "/ rows alone"]
        clock = time.process_time if args.cpu_time else time.perf_counter
        rows = []
        for name in names:
            rows += measure_guided(name, args.num_steps, args.repeats, clock)
        common.print_table([*header, "/ unguided", "of it rows"], rows)
        return
    rows = []
    for name in names:
        print(f"measuring {name} ...", flush=True)
        rows.append(measure(name, args.num_steps, args.repeats))
    common.print_table(header, rows)


if __name__ == "__main__":
    main()
