"""The device mesh and where each array of the training state lives."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from edm_jax.typing import PyTree

DATA_AXIS = "data"


def make_mesh(devices: list | None = None) -> Mesh:
    """A one-dimensional mesh over all devices of all hosts."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (DATA_AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split the leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raise ValueError unless the batch splits evenly over the devices."""
    if batch_size < 1 or batch_size % mesh.size:
        raise ValueError(
            f"batch size {batch_size} must be a positive multiple of the number of devices "
            f"({mesh.size})"
        )


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put a copy of every array on every device."""
    return jax.device_put(tree, replicated(mesh))
