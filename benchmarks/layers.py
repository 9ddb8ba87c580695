r"""What the layers written here are worth: a network with them and without, in turns.

    python benchmarks/layers.py [--net=cifar10-ddpmpp] [--batch=8]

The network as it is; in the forms that all platforms share (`edm_jax.models.ops.target`), of
which Winograd's convolutions are the most; and with the layers one would write first: Flax's
GroupNorm, every convolution a convolution, dropout drawn by `jax.random`.  Forward pass and
training step: images per second, ratio, compile time and memory; then by how much the forms for
CPUs change the output.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import optax
from jax import lax

from edm_jax.models import blocks, unet
from edm_jax.models.ops import layers, target


def _convolve(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=numbers
    )


class PlainGroupNorm(nn.Module):
    """Flax's, with the arguments of `layers.GroupNorm`."""

    eps: float = 1e-5
    silu: bool = False

    @nn.compact
    def __call__(self, x: Any, shift: Any = None, modulation: Any = None) -> jax.Array:
        """``(B, H, W, C)`` normalised."""
        if shift is not None:
            x = x + shift[:, None, None]
        y = nn.GroupNorm(num_groups=layers.num_groups(x.shape[-1]), epsilon=self.eps)(x)
        if modulation is not None:
            y = y * (1 + modulation[0][:, None, None]) + modulation[1][:, None, None]
        return nn.silu(y) if self.silu else y


class PlainQKV(nn.Module):
    """A 1x1 convolution whose outputs are picked apart."""

    heads: int
    initial: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """``(B, T, C)`` -> q, k, v, each ``(B, T, heads, C / heads)``."""
        channels, axes = x.shape[-1], ("channels_in", "qkv")
        kernel, bias = layers.conv_parameters(self, 1, channels, 3 * channels, self.initial, axes)
        y = _convolve(x[:, None], kernel, 0)[:, 0] + bias
        y = y.reshape(*x.shape[:2], self.heads, channels // self.heads, 3)
        return y[..., 0], y[..., 1], y[..., 2]


def _dropout(x: jax.Array, rate: float, seeds: jax.Array) -> jax.Array:
    keep = jax.random.bernoulli(jax.random.wrap_key_data(seeds[0]), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


@contextlib.contextmanager
def plain_layers() -> Iterator[None]:
    """Layers as one would write them first, in every program traced within."""
    with contextlib.ExitStack() as stack:
        for module, name, plain in (
            (layers, "conv2d", _convolve),
            (blocks, "GroupNorm", PlainGroupNorm),
            (unet, "GroupNorm", PlainGroupNorm),
            (blocks, "QKV", PlainQKV),
            (blocks, "dropout", _dropout),
        ):
            stack.enter_context(mock.patch.object(module, name, plain))
        yield


LAYERS = {
    "these": contextlib.nullcontext,
    "forms of all platforms": target.plain_forms,
    "plain": plain_layers,
}


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
        calls, figures = [], []
        for context in LAYERS.values():
            with context():
                call, numbers = compiled(args.net, args.batch, training)
            calls.append(call)
            figures.append(numbers)
        if not training:
            outputs = [calls[0](), calls[1]()]
        seconds = common.interleaved(calls, repeats=args.repeats)
        what = "training step" if training else "forward"
        for name, s, numbers in zip(LAYERS, seconds, figures, strict=True):
            rows.append([what, name, f"{args.batch / s:.2f}", f"{s / seconds[0]:.2f}", *numbers])
    common.print_table(["", "layers", "img/s", "times as long", "compile s", "MB"], rows)
    error = jnp.sqrt(jnp.mean(jnp.square(outputs[0] - outputs[1])))
    size = jnp.sqrt(jnp.mean(jnp.square(outputs[1])))
    print(f"\nWinograd's convolutions change the output by {error / size:.1e} of its size (rms)")


if __name__ == "__main__":
    main()
