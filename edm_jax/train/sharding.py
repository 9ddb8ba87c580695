"""The device mesh and where each array of the training state lives.

Two layouts: ``data`` keeps a copy of the state on every device and splits the batch;
``fsdp`` also splits parameters, optimizer moments and averages over the devices, by a
rule on the logical axis names of the parameters.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from edm_jax.typing import PyTree

DATA_AXIS = "data"
LAYOUTS = ("data", "fsdp")

# Logical axes that may be split, in order of preference: first output axes, whose split
# needs no sum over devices in the forward pass.
FSDP_AXES = (
    "channels_out", "qkv", "embed_out", "embed", "channels", "channels_in", "embed_in", "unnamed",
)  # fmt: skip
# Splitting a small array costs more in communication than it saves in memory.
FSDP_MIN_SIZE = 2**12


def make_mesh(devices: list | None = None) -> Mesh:
    """A one-dimensional mesh over all devices of all hosts."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (DATA_AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split the leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh, micro_batch: int = 0) -> None:
    """Raise ValueError unless the batch splits evenly over devices and rounds.

    Args:
      batch_size: global batch.
      mesh: of all devices.
      micro_batch: global images per accumulation round; 0 for the whole batch.
    """
    if batch_size < 1 or batch_size % mesh.size:
        raise ValueError(
            f"batch size {batch_size} must be a positive multiple of the number of devices "
            f"({mesh.size})"
        )
    if micro_batch and (batch_size % micro_batch or micro_batch % mesh.size):
        raise ValueError(
            f"micro batch {micro_batch} must divide the batch size ({batch_size}) and be a "
            f"multiple of the number of devices ({mesh.size})"
        )


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put a copy of every array on every device."""
    return jax.device_put(tree, replicated(mesh))


def fsdp_spec(shape: tuple[int, ...], axes: tuple[str, ...], num_devices: int) -> PartitionSpec:
    """How one parameter is split: along the first axis of FSDP_AXES that divides evenly.

    Args:
      shape: of the parameter.
      axes: its logical axis names.
      num_devices: to split over.
    """
    if np.prod(shape) >= FSDP_MIN_SIZE:
        for name in FSDP_AXES:
            for position, axis in enumerate(axes):
                if axis == name and shape[position] % num_devices == 0:
                    return PartitionSpec(*(None,) * position, DATA_AXIS)
    return PartitionSpec()


def state_shardings(state: PyTree, axes: PyTree, mesh: Mesh, layout: str = "data") -> PyTree:
    """A sharding for every array of a training state.

    An array of the state belongs to a parameter if its path ends in that parameter's path
    and the shapes agree: averages and optimizer moments repeat the tree of the parameters.

    Args:
      state: arrays or ShapeDtypeStructs.
      axes: logical axis names, in the tree of the parameters (`models.logical_axes`).
      mesh: of all devices.
      layout: one of LAYOUTS.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layout == "data":
        return jax.tree.map(lambda _: replicated(mesh), state)
    names = {
        tuple(path): axis_names
        for path, axis_names in jax.tree_util.tree_leaves_with_path(
            axes, is_leaf=lambda x: isinstance(x, tuple)
        )
    }

    def sharding_of(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        for start in range(len(path)):
            axis_names = names.get(tuple(path[start:]))
            if axis_names is not None and len(axis_names) == len(leaf.shape):
                return NamedSharding(mesh, fsdp_spec(leaf.shape, axis_names, mesh.size))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding_of, state)


def bytes_per_device(tree: PyTree, shardings: PyTree) -> int:
    """Bytes that each device holds of a tree with these shardings."""
    return sum(
        int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    )
