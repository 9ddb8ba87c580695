"""What a run costs in arithmetic and memory, known before anything runs.

As a program (``-m``), which `compiled_memory` starts, it reads a JSON object from its input,
compiles the training step for as many CPU devices as that asks for, and prints bytes per device.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from edm_jax import models
from edm_jax.data.sources.base import ImageSource
from edm_jax.models.ops import target
from edm_jax.models.variables import abstract_variables, inputs
from edm_jax.train import sharding
from edm_jax.train.state import TrainState
from edm_jax.train.step import init_state
from experiments.config import build
from experiments.config.experiment import Experiment
from experiments.preflight import children

# A process has no more CPU devices: those with higher numbers count as another one's.
MAX_DEVICES = 2048
# How well the code of an operation is optimised does not change which buffers there are.
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@dataclasses.dataclass(frozen=True)
class DataShape:
    """All that a program is made for of a data set; stands in for one.

    Attributes:
      image_shape: ``(H, W, C)``, or ``(L,)`` for sequences.
      num_classes: dimension of the labels, 0 for none.
      vector_labels: whether labels are vectors of that dimension, not classes.
    """

    image_shape: tuple[int, ...]
    num_classes: int = 0
    vector_labels: bool = False
    label_names: None = None

    @classmethod
    def of(cls, source: ImageSource) -> DataShape:
        """That of a data set; reads one image if it has labels."""
        labelled = source.num_classes > 0 and len(source) > 0
        vector = labelled and jnp.ndim(source[0]["label"]) == 1
        return cls(tuple(source.image_shape), source.num_classes, vector)

    def batch(self, size: int, where: jax.sharding.Sharding | None = None) -> dict[str, Any]:
        """A batch as ShapeDtypeStructs."""
        shapes = {"image": ((size, *self.image_shape), jnp.uint8)}
        if self.num_classes:
            vector = (size, self.num_classes)
            shapes["label"] = (vector, jnp.float32) if self.vector_labels else ((size,), jnp.int32)
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
            for name, (shape, dtype) in shapes.items()
        }


# -------------------------------------------------------------------------- arithmetic


def flops(jaxpr: Any) -> int:
    """Operations of all matrix products and convolutions of a traced program.

    A multiplication and the addition of its result are two operations; products with the
    zeros that pad an image count, as is usual.  Everything else is left out: in a U-Net it
    is about one per cent.

    Args:
      jaxpr: what ``jax.make_jaxpr(f)(*arguments)`` returns.

    Returns:
      The number for one call.  Of the branches of a condition the largest counts, a loop
      without a known length counts once.
    """
    total = 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracting, _), _ = params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracting)
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * depth
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            taps = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
            # Zeros between the inputs of a transposed convolution are skipped.
            skipped = math.prod(params["lhs_dilation"])
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * taps // skipped
        else:
            inner = [flops(part) for part in _programs(params)]
            if inner:
                once = max(inner) if name == "cond" else sum(inner)
                total += once * (params["length"] if name == "scan" else 1)
    return total


def _programs(params: Mapping[str, Any]) -> Iterator[Any]:
    """Programs among the parameters of an operation: bodies of calls, loops, branches."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(part, "jaxpr", part), "eqns"):
                yield part


def forward_flops(net: nn.Module, shape: DataShape) -> int:
    """Operations of one call of the network on one image, as sampling calls it."""
    given = inputs(net, shape.image_shape)
    if not hasattr(net, "example_inputs"):
        given = given[:3]  # sampling says nothing of augmentation
    return flops(jax.make_jaxpr(net.apply)(abstract_variables(net), *given))


@dataclasses.dataclass(frozen=True)
class TrainingCosts:
    """Of one image in a training step.

    Attributes:
      flops: operations of loss and gradient, augmentation included.
      kept_bytes: what the gradient keeps of the forward pass before a compiler fuses part
        of it away; mostly too high for the memory of activations.
    """

    flops: int
    kept_bytes: int


def training_costs(experiment: Experiment, net: nn.Module, shape: DataShape) -> TrainingCosts:
    """Costs of an image in training; the network is traced, not compiled."""
    objective = experiment.build_objective(net, shape)
    variables = abstract_variables(net)
    buffers = variables.get("buffers", {})
    key = jax.eval_shape(lambda: jax.random.key(0))

    def loss(size: int):
        def sum_of_losses(params: Any, buffers: Any, batch: Any, key: jax.Array) -> jax.Array:
            image_ids = jnp.arange(size)
            return jnp.sum(objective.per_image(params, buffers, batch, key, image_ids)[0])

        return sum_of_losses

    def kept(size: int) -> int:
        def residuals(params: Any, *others: Any) -> Any:
            return jax.vjp(lambda params: loss(size)(params, *others), params)[1]

        return tree_bytes(
            jax.eval_shape(residuals, variables["params"], buffers, shape.batch(size), key)
        )

    gradient = jax.make_jaxpr(jax.grad(loss(1)))
    with target.plain_forms():
        program = gradient(variables["params"], buffers, shape.batch(1), key)
        # Of two images less of one: without the weights, which are kept once.
        return TrainingCosts(flops(program), kept(2) - kept(1))


# ------------------------------------------------------------------------------ memory


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def abstract_state(
    experiment: Experiment, net: nn.Module, shape: DataShape | ImageSource
) -> TrainState:
    """The training state as ShapeDtypeStructs: weights, optimizer, averages, metrics."""

    objective = experiment.build_objective(net, shape)

    def make() -> TrainState:
        variables = models.init_variables(net, jax.random.key(0))
        return init_state(variables, experiment.optimizer, experiment.averaging, objective)

    return jax.eval_shape(make)


def state_bytes(experiment: Experiment, net: nn.Module, state: TrainState, num_devices: int) -> int:
    """Bytes of the training state on each device; the least that training needs."""
    mesh = jax.sharding.AbstractMesh((num_devices,), (sharding.DATA_AXIS,))
    layout = sharding.state_shardings(
        state, models.logical_axes(net), mesh, experiment.training.sharding
    )
    return sharding.bytes_per_device(state, layout)


@dataclasses.dataclass(frozen=True)
class CompiledMemory:
    """Bytes on each device of a compiled training step.

    Attributes:
      state: arguments: training state and batch, which the results replace.
      temporary: everything else while the step runs.
      platform: of the devices it was compiled for.
    """

    state: int
    temporary: int
    platform: str

    @property
    def total(self) -> int:
        """Peak bytes."""
        return self.state + self.temporary


def lower_step(
    experiment: Experiment, shape: DataShape, devices: list[jax.Device]
) -> jax.stages.Lowered:
    """The training step for these devices, traced; ``compile()`` allocates nothing on them."""
    net = experiment.build_network(shape)
    mesh = sharding.make_mesh(devices)
    state = abstract_state(experiment, net, shape)
    layout = sharding.state_shardings(
        state, models.logical_axes(net), mesh, experiment.training.sharding
    )
    placed = jax.tree.map(
        lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), state, layout
    )
    train_step = target.over(mesh, experiment.build_train_step(net, shape))
    step = jax.jit(train_step, donate_argnums=0, out_shardings=layout)
    batch = shape.batch(experiment.training.batch_size, sharding.batch_sharding(mesh))
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    return step.lower(placed, batch, key)


def memory_of(compiled: jax.stages.Compiled, platform: str) -> CompiledMemory:
    """What a compiled program needs on each device; results that reuse arguments count once."""
    stats = compiled.memory_analysis()
    fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return CompiledMemory(stats.argument_size_in_bytes, stats.temp_size_in_bytes + fresh, platform)


def compile_step(
    experiment: Experiment, shape: DataShape, devices: list[jax.Device]
) -> CompiledMemory:
    """Memory of the training step, compiled for these devices."""
    compiled = lower_step(experiment, shape, devices).compile()
    return memory_of(compiled, devices[0].platform)


def compiled_memory(experiment: Experiment, shape: DataShape, num_devices: int) -> CompiledMemory:
    """Memory of the training step on a mesh of ``num_devices``, compiled ahead of time.

    Compiled for the accelerators of this machine if there are as many, else for CPU devices
    in a process of its own, which only estimates what an accelerator will need.

    Raises:
      ValueError: if it cannot be compiled.
    """
    if jax.default_backend() != "cpu" and len(jax.devices()) >= num_devices:
        return compile_step(experiment, shape, jax.devices()[:num_devices])
    flags = f"--xla_force_host_platform_device_count={num_devices} {FAST_COMPILATION}"
    request = {"config": experiment.config, "shape": dataclasses.asdict(shape)}
    # This one would count for more than the flag.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    answers, done = children.ask(__spec__.name, request, environment)
    if done.returncode or not answers:
        why = children.last_words(done)
        raise ValueError(f"the training step does not compile for {num_devices} devices ({why})")
    return CompiledMemory(**answers[-1])


def _main() -> None:
    request = json.load(sys.stdin)
    experiment = build.experiment(request["config"])
    shape = DataShape(**request["shape"])
    with target.plain_forms():  # the CPU stands in for another device
        memory = compile_step(experiment, shape, jax.devices())
    children.answer(dataclasses.asdict(memory))


if __name__ == "__main__":
    _main()
