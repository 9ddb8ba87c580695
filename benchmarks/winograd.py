r"""What Winograd's convolutions are worth on a CPU: a network with and without them, in turns.

    python benchmarks/winograd.py [--net=cifar10-ddpmpp] [--batch=8]

Forward pass and training step: images per second of both, the ratio, compile time and memory;
then by how much the output differs.
"""

from __future__ import annotations

import argparse
from typing import Any

import common
import jax
import jax.numpy as jnp
import networks
import optax

from edm_jax.models import winograd


def compiled(name: str, batch: int, training: bool) -> tuple[Any, list[str]]:
    """A call of the program that keeps its own state; seconds of compilation and MB."""
    net = networks.build(name)  # new, so that nothing traced before is used again
    variables = networks.random_variables(net, jax.random.key(0))
    data = networks.inputs(net, batch)
    if not training:
        program = networks.make_forward(net)
        forward, seconds = common.compile_timed(program, variables, data)
        return lambda: forward(variables, data), _figures(forward, seconds)
    optimizer = optax.adam(1e-4)
    key = jax.random.key(2)
    state = [variables, jax.jit(optimizer.init)(variables["params"])]
    step, seconds = common.compile_timed(networks.make_step(net, optimizer), *state, data, key)

    def call() -> Any:
        *state[:], loss = step(*state, data, key)
        return loss

    return call, _figures(step, seconds)


def _figures(program: Any, seconds: float) -> list[str]:
    return [f"{seconds:.1f}", f"{networks.memory_mb(program):.0f}"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", default="cifar10-ddpmpp", choices=list(networks.NETS))
    parser.add_argument("--batch", type=int, default=8, help="images per call")
    parser.add_argument("--repeats", type=int, default=5, help="timings taken, median shown")
    args = parser.parse_args()
    if args.batch < 1 or args.repeats < 1:
        parser.error("--batch and --repeats must be at least 1")
    print(f"{jax.devices()[0].platform}, jax {jax.__version__}, float32, {args.net}")
    rows, outputs = [], []
    for training in (False, True):
        fast, figures = compiled(args.net, args.batch, training)
        with winograd.avoided():
            plain, plain_figures = compiled(args.net, args.batch, training)
        if not training:
            outputs = [fast(), plain()]
        seconds = common.interleaved([fast, plain], repeats=args.repeats)
        rows.append([
            "training step" if training else "forward",
            *(f"{args.batch / s:.2f}" for s in seconds), f"{seconds[1] / seconds[0]:.2f}",
            *figures, *plain_figures,
        ])  # fmt: skip
    header = ["", "img/s", "plain", "ratio", "compile s", "MB", "plain s", "plain MB"]
    common.print_table(header, rows)
    error = jnp.sqrt(jnp.mean(jnp.square(outputs[0] - outputs[1])))
    size = jnp.sqrt(jnp.mean(jnp.square(outputs[1])))
    print(f"\nthe outputs differ by {error / size:.1e} of their size, root mean square")


if __name__ == "__main__":
    main()
