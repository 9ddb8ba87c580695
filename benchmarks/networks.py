r"""Speed and memory of the published networks: forward pass and training step.

    python benchmarks/networks.py [--nets=cifar10-ddpmpp,...] [--batch=8] [--quick] [--profile]
    python benchmarks/networks.py --nets=small --batch=64 --devices=2

For each network: images per second, GFLOP/s (operations of the convolutions and matrix
products as they are defined, however they are computed), their
share of the speed of a large matrix product measured in turns with it, compile time and
memory.  A training step is the EDM loss, its gradient and Adam.  Then: by how much half
precision changes the output, and what recomputing the blocks saves.  With --profile, where
the time of a step goes.  With --devices=N the batch is shared by so many devices; cores of a
CPU are made that many and memory is kept, as experiments/cores.py does.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from typing import Any

import common
import jax
import jax.numpy as jnp
import op_times
import optax

from edm_jax import losses, models, noise, precond
from edm_jax.train.sharding import batch_sharding, make_mesh
from experiments import cores
from experiments.preflight import costs

RGB = {"in_channels": 3, "out_channels": 3}
CIFAR10 = {"img_resolution": 32, "label_dim": 10, "augment_dim": 9, "dropout": 0.13, **RGB}
FFHQ = {
    "img_resolution": 64, "channel_mult": (1, 2, 2, 2), "augment_dim": 9, "dropout": 0.05, **RGB,
}  # fmt: skip
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "cifar10-ddpmpp": ("ddpmpp", CIFAR10),
    "cifar10-ncsnpp": ("ncsnpp", CIFAR10),
    "ffhq64-ddpmpp": ("ddpmpp", FFHQ),
    "ffhq64-ncsnpp": ("ncsnpp", FFHQ),
    "imagenet64-adm": ("adm", {"img_resolution": 64, "label_dim": 1000, **RGB}),
    # What a newcomer trains first.
    "small": (
        "SongUNet",
        {
            "img_resolution": 32,
            "in_channels": 1,
            "out_channels": 1,
            "model_channels": 32,
            "channel_mult": (1, 2, 2),
            "num_blocks": 1,
            "attn_resolutions": (16,),
            "dropout": 0.13,
        },
    ),
}
PUBLISHED = tuple(name for name in NETS if name != "small")


def build(name: str, **changes: Any) -> models.UNet:
    """The network of a row of NETS."""
    preset, arguments = NETS[name]
    return models.build(preset, **arguments, **changes)


def random_variables(net: models.UNet, key: jax.Array) -> Any:
    """Weights none of which is at its initial zero, so that every layer matters."""

    def draw(key: jax.Array, leaf: Any) -> jax.Array:
        if leaf.ndim == 1:
            return 0.1 * jax.random.normal(key, leaf.shape)
        return jax.random.normal(key, leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))

    initial = models.init_variables(net, key)
    leaves, tree = jax.tree.flatten(initial)
    keys = jax.random.split(key, len(leaves))
    drawn = [draw(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]
    random = jax.tree.unflatten(tree, drawn)
    # Scales stay near one, frequencies what they are.
    return jax.tree_util.tree_map_with_path(
        lambda path, a, b: a + b if path[-1].key in ("scale", "bias") else
        (a if path[-1].key == "freqs" else b),
        initial, random,
    )  # fmt: skip


def inputs(net: models.UNet, batch: int) -> dict[str, Any]:
    """Images, noise levels and labels of a batch."""
    keys = jax.random.split(jax.random.key(1), 3)
    shape = (batch, net.img_resolution, net.img_resolution, net.in_channels)
    labels = {}
    if net.label_dim:
        labels["class_labels"] = jax.nn.one_hot(jnp.arange(batch) % net.label_dim, net.label_dim)
    if net.augment_dim:
        labels["augment_labels"] = 0.1 * jax.random.normal(keys[0], (batch, net.augment_dim))
    return {
        "images": 0.5 * jax.random.normal(keys[1], shape),
        "c_noise": jax.random.normal(keys[2], (batch,)) / 4,
        "labels": labels,
    }


def shared(variables: Any, data: Any) -> tuple[Any, Any]:
    """The variables on every device, and the batch shared by them; on one device, as they are."""
    if jax.device_count() == 1:
        return variables, data
    mesh = make_mesh()
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(variables, everywhere), jax.device_put(data, batch_sharding(mesh))


def make_forward(net: models.UNet) -> Any:
    """Jitted ``(variables, inputs) -> F``."""
    return jax.jit(
        lambda variables, data: net.apply(
            variables, data["images"], data["c_noise"], **data["labels"]
        )
    )


def make_step(net: models.UNet, optimizer: optax.GradientTransformation) -> Any:
    """Jitted ``(variables, state, inputs, key) -> (variables, state, loss)``."""

    def step(variables: Any, state: Any, data: Any, key: jax.Array) -> Any:
        y = data["images"]
        sigma_key, noise_key, dropout_key = jax.random.split(key, 3)
        sigma = noise.sample_sigma(noise.LogNormal(), sigma_key, y.shape[:1])
        n = jax.random.normal(noise_key, y.shape)

        def loss_fn(params: Any) -> jax.Array:
            def net_fn(x: jax.Array, c_noise: jax.Array) -> jax.Array:
                return net.apply(
                    {**variables, "params": params}, x, c_noise, **data["labels"], train=True,
                    rngs={"dropout": dropout_key},
                )  # fmt: skip

            denoise = precond.precondition(net_fn, precond.edm_preconditioning())
            loss = losses.denoising_loss(denoise, y, sigma, n, noise.edm_weight)
            return losses.sum_per_image(loss).mean()

        loss, grads = jax.value_and_grad(loss_fn)(variables["params"])
        updates, state = optimizer.update(grads, state)
        params = optax.apply_updates(variables["params"], updates)
        return {**variables, "params": params}, state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def memory_mb(compiled: Any) -> float:
    """Arguments, results and temporary arrays of a program, in MB (2^20 bytes)."""
    m = compiled.memory_analysis()
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return (total - m.alias_size_in_bytes) / 2**20


class Ceiling:
    """A large matrix product, the fastest thing the machine does."""

    def __init__(self) -> None:
        size = 2048 if jax.default_backend() == "cpu" else 8192
        self.flops = 2 * size**3
        self.matrix = jax.random.normal(jax.random.key(0), (size, size))
        self.product = jax.jit(jnp.dot)

    def __call__(self) -> jax.Array:
        return self.product(self.matrix, self.matrix)


def speed_row(
    label: str,
    compiled: Any,
    compile_seconds: float,
    flops: float,
    call: Any,
    batch: int,
    repeats: int,
) -> list[str]:
    """One row of the first table."""
    ceiling = Ceiling()
    seconds, ceiling_seconds = common.interleaved([call, ceiling], repeats=repeats)
    share = (flops / seconds) / (ceiling.flops / ceiling_seconds)
    return [
        label,
        f"{batch}",
        f"{batch / seconds:.2f}",
        f"{flops / batch / 1e9:.1f}",
        f"{flops / seconds / 1e9:.0f}",
        f"{100 * share:.0f} %",
        f"{compile_seconds:.1f}",
        f"{memory_mb(compiled):.0f}",
    ]


def measure(name: str, batch: int, repeats: int, profile: bool) -> list[list[str]]:
    """Rows of the first table for one network."""
    net = build(name)
    variables, data = shared(random_variables(net, jax.random.key(0)), inputs(net, batch))
    program = make_forward(net)
    forward, seconds = common.compile_timed(program, variables, data)
    flops = costs.flops(program.trace(variables, data).jaxpr)
    rows = [speed_row(f"{name} forward", forward, seconds, flops,
                      lambda: forward(variables, data), batch, repeats)]  # fmt: skip
    if profile:
        op_times.report(f"{name} forward", forward, lambda: forward(variables, data))

    optimizer = optax.adam(1e-4)
    key = jax.random.key(2)
    # Made from the parameters, so it lies where they do.
    state = (variables, jax.jit(optimizer.init)(variables["params"]))
    program = make_step(net, optimizer)
    step, seconds = common.compile_timed(program, *state, data, key)
    flops = costs.flops(program.trace(*state, data, key).jaxpr)

    def call() -> Any:
        nonlocal state
        *state, loss = step(*state, data, key)
        return loss

    rows.append(speed_row(f"{name} training", step, seconds, flops, call, batch, repeats))
    if profile:
        op_times.report(f"{name} training", step, call)
    return rows


def precision_row(name: str, batch: int) -> list[str]:
    """Deviation of the output in half precision from float32, relative, rms and largest."""
    net = build(name)
    variables, data = random_variables(net, jax.random.key(0)), inputs(net, batch)
    exact = make_forward(net)(variables, data)
    row = [name]
    for dtype in ("bfloat16", "float16"):
        error = make_forward(net.clone(dtype=dtype))(variables, data) - exact
        rms = jnp.sqrt(jnp.mean(jnp.square(error)) / jnp.mean(jnp.square(exact)))
        largest = jnp.abs(error).max() / jnp.abs(exact).max()
        row += [f"{100 * rms:.2f} %", f"{100 * largest:.2f} %"]
    return row


def remat_row(name: str, batch: int) -> list[str]:
    """Temporary memory and operations of a training step, blocks kept or recomputed."""
    optimizer = optax.adam(1e-4)
    temporary, flops = [], []
    for remat in ("none", "blocks"):
        net = build(name, remat=remat)
        variables = models.abstract_variables(net)
        state = jax.eval_shape(optimizer.init, variables["params"])
        data = jax.eval_shape(lambda net=net: inputs(net, batch))
        step = make_step(net, optimizer).lower(variables, state, data, jax.random.key(0)).compile()
        temporary.append(step.memory_analysis().temp_size_in_bytes / 2**20)
        flops.append(step.cost_analysis()["flops"])
    saved = 1 - temporary[1] / temporary[0]
    more = flops[1] / flops[0] - 1
    return [name, *(f"{t:.0f}" for t in temporary), f"{100 * saved:.0f} %", f"{100 * more:.0f} %"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", default=",".join(PUBLISHED), help=f"of {', '.join(NETS)}")
    parser.add_argument("--batch", type=int, default=8, help="images per call")
    parser.add_argument("--repeats", type=int, default=5, help="timings taken, median shown")
    parser.add_argument("--quick", action="store_true", help="first network, one timing, batch 2")
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    parser.add_argument("--devices", type=int, help="share the batch; of a CPU's cores so many")
    args = parser.parse_args()
    names = args.nets.split(",")
    for name in names:
        if name not in NETS:
            parser.error(f"--nets: {name!r} is not one of {', '.join(NETS)}")
    if args.batch < 1 or args.repeats < 1:
        parser.error("--batch and --repeats must be at least 1")
    if args.devices is not None:
        count = f"--xla_force_host_platform_device_count={args.devices}"  # before JAX starts
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
        cores.keep_memory()
        if args.devices < 1 or args.batch % args.devices:
            parser.error(f"--devices must divide --batch={args.batch}, got {args.devices}")
    if args.quick:
        names, args.batch, args.repeats = names[:1], 2, 1

    device = jax.devices()[0]
    ceiling = Ceiling()
    seconds = common.seconds_per_call(ceiling, repeats=5)
    print(
        f"{jax.device_count()} {device.platform} {device.device_kind}, jax {jax.__version__}, "
        f"float32; matrix product {ceiling.flops / seconds / 1e9:.0f} GFLOP/s"
    )
    header = ["network", "batch", "img/s", "GFLOP/img", "GFLOP/s", "of product", "compile s", "MB"]
    rows = []
    for i, name in enumerate(names):  # minutes each on a CPU: say where we are
        print(f"[{i + 1}/{len(names)}] {name} ...", file=sys.stderr, flush=True)
        rows += measure(name, args.batch, args.repeats, args.profile)
    common.print_table(header, rows)
    print("\ndeviation of the output from float32, of its size (rms, largest)")
    header = ["network", "bfloat16", "largest", "float16", "largest"]
    common.print_table(header, [precision_row(name, min(args.batch, 2)) for name in names])
    print("\ntemporary memory of a training step")
    header = ["network", "remat none MB", "blocks MB", "saved", "more operations"]
    common.print_table(header, [remat_row(name, args.batch) for name in names])


if __name__ == "__main__":
    main()
