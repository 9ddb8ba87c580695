"""Several requests in one program: what they have in common once, their numbers side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import generate
from edm_jax import seeds as seeds_lib
from edm_jax.model import Model
from edm_jax.typing import Array, PyTree

# What a lane is: (sigmas (N+1,), Request, guidance or None).
Lane = tuple[np.ndarray, Any, Any]


def signature(lane: Lane) -> Any:
    """What makes the program of a lane: lanes with equal ones run side by side.

    Structure and names of request and guidance, the number of levels, and which arrays
    (weights of a second network) they hold.
    """
    leaves, structure = jax.tree.flatten(lane)
    return structure, tuple(len(leaf) if i == 0 else _kind(leaf) for i, leaf in enumerate(leaves))


def _kind(leaf: Any) -> Any:
    return "number" if np.ndim(leaf) == 0 else id(leaf)


def stack(lanes: Sequence[Lane]) -> tuple[list[np.ndarray], list[Any], Any, tuple[bool, ...]]:
    """The numbers of all lanes ``(L, ...)``, what they share, their structure, which is which."""
    columns = list(zip(*(jax.tree.leaves(lane) for lane in lanes), strict=True))
    is_number = tuple(i == 0 or np.ndim(column[0]) == 0 for i, column in enumerate(columns))
    numbers = [
        np.stack([np.asarray(value, np.float32) for value in column])
        for column, own in zip(columns, is_number, strict=True)
        if own
    ]
    shared = [column[0] for column, own in zip(columns, is_number, strict=True) if not own]
    return numbers, shared, jax.tree.structure(lanes[0]), is_number


def run(
    body: Callable[..., PyTree],
    numbers: Sequence[Array],
    shared: Sequence[Any],
    structure: Any,
    is_number: tuple[bool, ...],
) -> PyTree:
    """``body(sigmas, request, guidance)`` for every lane; results with axis 0 over lanes."""

    def one(numbers: Sequence[Array]) -> PyTree:
        own, common = iter(numbers), iter(shared)
        leaves = [next(own) if number else next(common) for number in is_number]
        return body(*jax.tree.unflatten(structure, leaves))

    if numbers[0].shape[0] == 1:  # as it would run alone
        return jax.tree.map(lambda a: a[None], one([n[0] for n in numbers]))
    return jax.vmap(one)(numbers)


@functools.partial(jax.jit, static_argnames=("structure", "is_number"))
def _sample(
    model: Model,
    seeds: Array,
    rows: Array | None,
    numbers: Sequence[Array],
    shared: Sequence[Any],
    *,
    structure: Any,
    is_number: tuple[bool, ...],
) -> Array:
    """Images ``(L, b, H, W, C)``; compiled once per (network, shapes, signature)."""

    def body(sigmas: Array, asked: Any, guidance: Any) -> Array:
        return generate.sample_batch(
            model, seeds, rows, sigmas=sigmas, asked=asked, guidance=guidance, trajectory=False
        )

    return run(body, numbers, shared, structure, is_number)


def batches(
    model: Model,
    seeds: np.ndarray,
    rows_of: Callable[[np.ndarray], np.ndarray | None],
    lanes: Sequence[Lane],
    *,
    batch_size: int,
    sharding: jax.sharding.NamedSharding | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Images of some seeds under every lane; image i depends on seed i and its lane alone.

    Args:
      model: as `generate.batches` takes it.
      seeds: ``(n,)``.
      rows_of: as `generate.row_source` makes it.
      lanes: of one signature.
      batch_size: images of a lane at a time; the last batch is padded.
      sharding: of the images over devices of this process; None for one device.

    Yields:
      Position of the first image, and ``(L, b, H, W, C)`` float32.
    """
    numbers, shared, structure, is_number = stack(lanes)
    place = jnp.asarray
    # Weights from NumPy would be sent again with every batch, and be another program.
    model = jax.tree.map(jnp.asarray, model)
    if sharding is not None:
        batch_size = -(-batch_size // sharding.mesh.size) * sharding.mesh.size
        place = functools.partial(jax.device_put, device=sharding)
        replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        model, shared = jax.device_put((model, shared), replicated)
    for start in range(0, len(seeds), batch_size):
        index = np.minimum(start + np.arange(batch_size), len(seeds) - 1)  # padded with the last
        rows = rows_of(index)
        images = _sample(
            model,
            place(seeds_lib.seed_bits(seeds[index])),
            None if rows is None else place(rows),
            numbers,
            shared,
            structure=structure,
            is_number=is_number,
        )
        yield start, np.asarray(images)[:, : len(seeds) - start]
